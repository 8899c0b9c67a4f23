"""All children of a workload, in the order in which they are to be made."""

from __future__ import annotations

from typing import Any

from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.rendering import rayjob
from llmops_operator.backends.kubernetes.rendering.names import (
    APPLIED,
    CACHE_CLAIM,
    CREDENTIALS,
    MANAGED_BY,
    MANAGER,
    ROLE,
    UID,
    WORKLOAD,
    labels,
    live_name,
    owned,
    owner_labels,
    state_claim,
)
from llmops_operator.backends.kubernetes.rendering.pod import pod, port_of
from llmops_operator.backends.kubernetes.rendering.volumes import claim_spec
from llmops_operator.domain.fingerprint import fingerprint
from llmops_operator.domain.workload import Lifecycle, Owner, Role, Scope, Workload

Manifest = dict[str, Any]


def render(owner: Owner, workload: Workload, config: OperatorConfig, *, credentials: str = "") -> tuple[Manifest, ...]:
    """The manifests of a workload's children: claims and config files first, what runs last. `credentials` is the digest of those
    that pods get in their environment.
    """
    found = [*_claims(owner, workload, config), *_config_maps(owner, workload)]
    if workload.role is Role.GATEWAY:
        found.append(_service(owner, workload))
    if workload.role is Role.ENGINE and config.network_policies:
        found.append(_network_policy(owner, workload))
    if workload.lifecycle is Lifecycle.RUNS:
        found.append(_deployment(owner, workload, config))
        if credentials:
            found[-1]["spec"]["template"]["metadata"]["annotations"][CREDENTIALS] = credentials
    elif workload.workers > 1:
        spec = rayjob.rayjob_spec(owner, workload, config)
        found.append(_child(owner, workload, rayjob.API_VERSION, rayjob.KIND, spec=spec))
    else:
        found.append(_job(owner, workload, config))
    return tuple(_marked(one) for one in found)


def main_kind(workload: Workload) -> str:
    """The kind of the child that runs the workload."""
    if workload.lifecycle is Lifecycle.RUNS:
        return "Deployment"
    return rayjob.KIND if workload.workers > 1 else "Job"


def _child(owner: Owner, workload: Workload, api_version: str, kind: str, **body: Any) -> Manifest:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": workload.name,
            "namespace": owner.namespace,
            "labels": {**workload.labels, **labels(owner, workload)},
            "ownerReferences": owned(owner),
        },
        **body,
    }


def _marked(manifest: Manifest) -> Manifest:
    metadata = {**manifest["metadata"], "annotations": {APPLIED: fingerprint(manifest)[:32]}}
    return {**manifest, "metadata": metadata}


def _job(owner: Owner, workload: Workload, config: OperatorConfig) -> Manifest:
    # Attempts are counted by the reconciler, in status.attempts: a Job is one of them.
    spec: dict[str, Any] = {"backoffLimit": 0, "template": pod(owner, workload, config)}
    if workload.deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = workload.deadline_seconds
    return _child(owner, workload, "batch/v1", "Job", spec=spec)


def _deployment(owner: Owner, workload: Workload, config: OperatorConfig) -> Manifest:
    # A new pod beside the old ones, so that nothing is lost meanwhile; where each needs a GPU there is none for it.
    surge = {"maxSurge": 0, "maxUnavailable": 1} if workload.gpus else {"maxSurge": 1, "maxUnavailable": 0}
    spec = {
        "replicas": workload.replicas,
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": 3600,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": surge},
        "selector": {"matchLabels": {UID: owner.uid, WORKLOAD: workload.name}},
        "template": pod(owner, workload, config),
    }
    return _child(owner, workload, "apps/v1", "Deployment", spec=spec)


def _service(owner: Owner, workload: Workload) -> Manifest:
    port = port_of(workload)
    spec = {
        "selector": {UID: owner.uid, WORKLOAD: workload.name},
        "ports": [{"name": "http", "port": port, "targetPort": port, "protocol": "TCP"}],
    }
    return _child(owner, workload, "v1", "Service", spec=spec)


def _network_policy(owner: Owner, workload: Workload) -> Manifest:
    """vLLM asks for no key on some routes: nobody but the gateway of the same object reaches it."""
    spec = {
        "podSelector": {"matchLabels": {UID: owner.uid, WORKLOAD: workload.name}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [{"podSelector": {"matchLabels": {UID: owner.uid, ROLE: Role.GATEWAY.value}}}],
                "ports": [{"port": port_of(workload), "protocol": "TCP"}],
            }
        ],
    }
    return _child(owner, workload, "networking.k8s.io/v1", "NetworkPolicy", spec=spec)


def _config_maps(owner: Owner, workload: Workload) -> list[Manifest]:
    found = []
    for name, files in ((workload.name, workload.files), (live_name(workload.name), workload.live_files)):
        if files:
            manifest = _child(owner, workload, "v1", "ConfigMap", data=dict(files))
            manifest["metadata"]["name"] = name
            found.append(manifest)
    return found


def _claims(owner: Owner, workload: Workload, config: OperatorConfig) -> list[Manifest]:
    found: list[Manifest] = []
    for volume in workload.volumes:
        if volume.scope is Scope.OBJECT:
            metadata = {"name": state_claim(owner), "labels": owner_labels(owner), "ownerReferences": owned(owner)}
            spec = claim_spec(config.state)
        elif config.cache.persistent_volume_claim is not None:
            metadata = {
                "name": CACHE_CLAIM,
                "labels": {MANAGED_BY: MANAGER, "app.kubernetes.io/part-of": "llmops"},
            }
            spec = claim_spec(config.cache.persistent_volume_claim)
        else:
            continue
        found.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {**metadata, "namespace": owner.namespace},
                "spec": spec,
            }
        )
    return found
