"""What children are called and marked with. Names say whose they are, labels find them, annotations remember what was applied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmops_api.v1alpha1 import API_VERSION
from llmops_operator.domain.fingerprint import workload_name
from llmops_operator.domain.workload import Owner, Workload

MANAGER = "llmops-operator"
"""The field manager of server-side apply, and the value of the label that all children have."""
MANAGED_BY = "app.kubernetes.io/managed-by"
SELECTOR = f"{MANAGED_BY}={MANAGER}"
KIND, NAME, UID = "llmops.dev/kind", "llmops.dev/name", "llmops.dev/uid"
WORKLOAD = "llmops.dev/workload"
ROLE = "app.kubernetes.io/component"

APPLIED = "llmops.dev/applied"
"""On each child: the digest of what was rendered for it."""
FILES = "llmops.dev/files"
"""On pod templates: the digest of the config files, so that a change of them rolls the pods."""
CREDENTIALS = "llmops.dev/credentials"
"""On pod templates: the digest of the credentials for MLflow and Qdrant, so that other ones roll the pods."""
LIVE = "llmops.dev/live"
"""On pods: the digest of the live files they were told of. Any change of a pod has the kubelet look at its volumes at once."""
RESULT = "llmops.dev/result"
"""On Jobs and RayJobs: the JSON object that the program left, so that it outlives the pod."""

CACHE_CLAIM = "llmops-cache"
"""The claim of a namespace for models that its programs share; it belongs to no single object."""
CONNECTION = "llmops-connection"
"""The Secret of a namespace with the credentials for MLflow and Qdrant, copied from the operator's."""

GATEWAY_PORT, ENGINE_PORT = 8080, 8000


def state_claim(owner: Owner) -> str:
    """The claim with the folder of an object that outlives its tries."""
    return workload_name(owner.name, f"{owner.kind.lower()}-state")


def live_name(workload: str) -> str:
    """The ConfigMap with the live files of a workload."""
    return f"{workload}-live"


def owner_labels(owner: Owner) -> dict[str, str]:
    """What all children of an object are found by."""
    return {
        MANAGED_BY: MANAGER,
        "app.kubernetes.io/part-of": "llmops",
        KIND: owner.kind,
        NAME: owner.name,
        UID: owner.uid,
    }


def labels(owner: Owner, workload: Workload) -> dict[str, str]:
    """What the children of a workload, and its pods, are found by."""
    return owner_labels(owner) | {ROLE: workload.role.value, WORKLOAD: workload.name}


def owned(owner: Owner) -> list[dict[str, Any]]:
    """The ownerReferences of a child: Kubernetes deletes it with its owner."""
    return [
        {
            "apiVersion": API_VERSION,
            "kind": owner.kind,
            "name": owner.name,
            "uid": owner.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def owner_of(manifest: Mapping[str, Any]) -> Owner | None:
    """Whose child an object is, by its labels; None when it is nobody's."""
    metadata = manifest["metadata"]
    found = metadata.get("labels") or {}
    try:
        return Owner(found[KIND], metadata["namespace"], found[NAME], found[UID])
    except KeyError:
        return None
