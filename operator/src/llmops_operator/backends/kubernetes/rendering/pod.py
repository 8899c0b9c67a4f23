"""The pod of a workload: one container under the Pod Security Standard `restricted`, on a read-only root file system."""

from __future__ import annotations

import json
from typing import Any

from llmops_api.programs import Env
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.rendering.names import (
    CONNECTION,
    ENGINE_PORT,
    FILES,
    GATEWAY_PORT,
    labels,
)
from llmops_operator.backends.kubernetes.rendering.pod_template import merged
from llmops_operator.backends.kubernetes.rendering.volumes import WORKING_FOLDER, mounted
from llmops_operator.backends.surroundings import QUIET
from llmops_operator.domain.fingerprint import fingerprint
from llmops_operator.domain.workload import Lifecycle, Owner, Role, Workload

USER = 10001
"""The user of the images of llmops; files of volumes are made readable for its group."""
DRAIN_SECONDS = 5
"""Between the end of a pod's being an endpoint and its signal to stop: so long others may still send it requests."""
START_SECONDS = 1800
"""Large weights are loaded for minutes before an engine answers."""
PROBE_SECONDS = 3
CPU = "100m"
"""What is asked for where nothing is said. Pods that ask for something share a full node, and leave nothing to one that asks for nothing."""

COLLECTIVES = {
    # Without it NCCL fails with a number; with it, with a reason. NVIDIA calls it the least for production.
    "NCCL_DEBUG": "WARN",
    # A collective that hangs ends its process, and the training goes on from its checkpoint. This is torch's default, but Ray Train
    # sets 1, where the communicators are aborted first: that may hang too.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
}
"""Variables of pods whose GPUs compute together. What a cluster's network needs is for its `podTemplate` to say."""


def port_of(workload: Workload) -> int:
    """Where a workload that listens does so."""
    return GATEWAY_PORT if workload.role is Role.GATEWAY else ENGINE_PORT


def pod(
    owner: Owner, workload: Workload, config: OperatorConfig, *, container: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The pod template of a workload; `container` replaces parts of its container."""
    folders = mounted(owner, workload, config)
    ours = {
        "name": workload.role.value,
        "image": config.images.engine if _heavy(workload) else config.images.services,
        "imagePullPolicy": config.image_pull_policy,
        "command": list(workload.command),
        "workingDir": WORKING_FOLDER,
        "env": _env(workload, config, folders.env),
        "volumeMounts": list(folders.mounts),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **_resources(workload),
        **(_listening(workload) if workload.port else {}),
        **(container or {}),
    }
    if config.connection_secret:
        ours["envFrom"] = [{"secretRef": {"name": CONNECTION}}]
    grace = int(workload.grace_seconds) + (DRAIN_SECONDS if workload.port else 0) + 5
    spec: dict[str, Any] = {
        "containers": [ours],
        "volumes": list(folders.volumes),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": grace,
    }
    if workload.lifecycle is Lifecycle.COMPLETES:
        spec["restartPolicy"] = "Never"
    if workload.gpus:
        # Nodes with GPUs are commonly kept free of all else by this taint.
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if workload.gpu_product:
        spec["nodeSelector"] = {"nvidia.com/gpu.product": workload.gpu_product}
    if config.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in config.image_pull_secrets]
    template: dict[str, Any] = {
        "metadata": {"labels": labels(owner, workload), "annotations": {FILES: fingerprint(dict(workload.files))[:16]}},
        "spec": spec,
    }
    wished = merged(merged(template, workload.pod_template), config.pod_template.manifest())
    return merged(wished, {"env": _collectives(workload)})


def _heavy(workload: Workload) -> bool:
    """Whether it needs the image with vLLM, Ray and CUDA."""
    return workload.role in (Role.ENGINE, Role.TRAINER) or workload.workers > 1 or workload.gpus > 0


def _collectives(workload: Workload) -> list[dict[str, str]]:
    """For several GPUs of a training, or of one copy of an engine: those of an index work each by itself."""
    together = workload.role in (Role.TRAINER, Role.ENGINE) and workload.gpus * workload.workers > 1
    return [{"name": name, "value": value} for name, value in COLLECTIVES.items()] if together else []


def _env(workload: Workload, config: OperatorConfig, folders: dict[str, str]) -> list[dict[str, Any]]:
    plain: dict[str, str] = {
        **QUIET,
        # A user without an entry in /etc/passwd, on a root file system that nobody can write.
        "HOME": "/tmp",  # noqa: S108 - a path in the pod
        "USER": "llmops",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **({Env.MLFLOW_TRACKING_URI: config.mlflow.tracking_uri} if config.mlflow.tracking_uri else {}),
        Env.QDRANT_URL: config.qdrant.url,
        **({Env.HOST: "0.0.0.0", Env.PORT: str(port_of(workload))} if workload.port else {}),  # noqa: S104 - in its pod
        **folders,
        **workload.env,
    }
    secrets = [
        {"name": str(secret.env), "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
        for secret in workload.secrets
    ]
    return [*({"name": str(name), "value": value} for name, value in plain.items()), *secrets]


def _resources(workload: Workload) -> dict[str, Any]:
    """Memory is a limit too (a program that leaks stops itself only); CPU is not, for an idle node's is free to use."""
    # Ray on several pods takes what each asks for as the number of its CPUs.
    cpu = workload.cpu or (CPU if workload.workers == 1 else None)
    requests = {key: value for key, value in (("cpu", cpu), ("memory", workload.memory)) if value}
    limits = {"memory": workload.memory} if workload.memory else {}
    if workload.gpus:
        limits["nvidia.com/gpu"] = str(workload.gpus)
    found = {key: value for key, value in (("requests", requests), ("limits", limits)) if value}
    return {"resources": found} if found else {}


def _listening(workload: Workload) -> dict[str, Any]:
    port = port_of(workload)
    parts: dict[str, Any] = {
        "ports": [{"name": "http", "containerPort": port}],
        "lifecycle": {"preStop": {"sleep": {"seconds": DRAIN_SECONDS}}},
    }
    if workload.readiness is None:
        return parts
    get = {"path": workload.readiness.path, "port": port}
    timeout = max(1, int(workload.readiness.timeout_seconds))
    ready = {"readinessProbe": {"httpGet": get, "periodSeconds": PROBE_SECONDS, "timeoutSeconds": timeout}}
    if workload.role is Role.GATEWAY:
        return parts | ready  # it may wait for its engine for as long as that takes
    # One that loads is given time, and then started anew.
    failures = START_SECONDS // PROBE_SECONDS
    return parts | {"startupProbe": {**ready["readinessProbe"], "failureThreshold": failures}} | ready


def shell(command: tuple[str, ...]) -> str:
    """A command as a line for a shell that begins in another folder."""
    return f"cd {WORKING_FOLDER} && exec {' '.join(json.dumps(word) for word in command)}"
