"""The folders of a pod: its working folder with the config files, what outlives it, and what it only reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmops_operator.backends.kubernetes.config import Claim, OperatorConfig
from llmops_operator.backends.kubernetes.rendering.names import CACHE_CLAIM, live_name, state_claim
from llmops_operator.domain.workload import Owner, Role, Scope, Workload

WORKING_FOLDER = "/run/llmops"
FOLDERS = {Scope.OBJECT: "/var/lib/llmops/state", Scope.SHARED: "/var/lib/llmops/cache"}
CLAIMS = "/mnt/pvc"
"""Where `pvc://claim/path` is found, as `<claim>/path`."""


@dataclass(frozen=True)
class Mounted:
    """Volumes of a pod and where its container has them; `env` tells the program of those that it asked for."""

    volumes: tuple[dict[str, Any], ...]
    mounts: tuple[dict[str, Any], ...]
    env: dict[str, str]


def mounted(owner: Owner, workload: Workload, config: OperatorConfig) -> Mounted:
    """Everything that a workload's pods have mounted. The root file system is read-only: what else is written goes to /tmp."""
    found: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"name": "llmops-tmp", "emptyDir": {}}, {"mountPath": "/tmp"}),  # noqa: S108 - a path in the pod
        ({"name": "llmops-run", "emptyDir": {}}, {"mountPath": WORKING_FOLDER}),
        (
            {"name": "llmops-config", "projected": {"sources": _config_sources(workload)}},
            {"mountPath": f"{WORKING_FOLDER}/config", "readOnly": True},
        ),
    ]
    env = {}
    if workload.role in (Role.ENGINE, Role.TRAINER) or workload.workers > 1:
        # Ray's object store and the collectives of several GPUs share memory; a container has 64 MiB of it by default.
        found.append(({"name": "llmops-shm", "emptyDir": {"medium": "Memory"}}, {"mountPath": "/dev/shm"}))  # noqa: S108
    for volume in workload.volumes:
        env[volume.env] = FOLDERS[volume.scope]
        source: dict[str, Any]
        if volume.scope is Scope.OBJECT:
            source = {"persistentVolumeClaim": {"claimName": state_claim(owner)}}
        elif config.cache.empty_dir is not None:
            limit = config.cache.empty_dir.size_limit
            source = {"emptyDir": {"sizeLimit": limit} if limit else {}}
        else:
            source = {"persistentVolumeClaim": {"claimName": CACHE_CLAIM}}
        found.append(({"name": f"llmops-{volume.name}", **source}, {"mountPath": FOLDERS[volume.scope]}))
    for number, claim in enumerate(workload.claims):
        # Several pods may read a claim that only one node may write, so nothing here asks for writing.
        found.append(
            (
                {"name": f"llmops-claim-{number}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
                {"mountPath": f"{CLAIMS}/{claim}", "readOnly": True},
            )
        )
    return Mounted(
        volumes=tuple(volume for volume, _ in found),
        mounts=tuple({"name": volume["name"], **mount} for volume, mount in found),
        env=env,
    )


def _config_sources(workload: Workload) -> list[dict[str, Any]]:
    names = ([workload.name] if workload.files else []) + ([live_name(workload.name)] if workload.live_files else [])
    return [{"configMap": {"name": name}} for name in names]


def claim_spec(claim: Claim) -> dict[str, Any]:
    """The spec of a PersistentVolumeClaim. An empty class name means a volume that was made by hand."""
    spec: dict[str, Any] = {
        "accessModes": list(claim.access_modes),
        "resources": {"requests": {"storage": claim.size}},
    }
    return spec if claim.storage_class_name is None else spec | {"storageClassName": claim.storage_class_name}
