"""What a workload takes along from its object's spec: what its pods are like, who queues it, and which claims it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from llmops_api.programs import token_variable
from llmops_api.v1alpha1.meta import Compute, ObjectMeta, ReplicaCompute, Source
from llmops_api.v1alpha1.pod_template import PodTemplate
from llmops_operator.domain.workload import Secret

QUEUE_LABELS = "kueue.x-k8s.io/"
"""Labels with this prefix say in which queue of Kueue an object's work stands, and with what priority."""


class Placed(TypedDict, total=False):
    """Arguments of a `Workload`."""

    labels: Mapping[str, str]
    pod_template: Mapping[str, Any]
    claims: tuple[str, ...]
    secrets: tuple[Secret, ...]


class Asked(TypedDict):
    """Arguments of a `Workload`."""

    cpu: str | None
    memory: str | None
    gpus: int
    gpu_product: str | None


def placed(
    metadata: ObjectMeta, template: PodTemplate | None, reads: Sequence[Source], *, secrets: tuple[Secret, ...] = ()
) -> Placed:
    """Where a workload that reads some sources runs, and what it needs to read them, beside other `secrets`."""
    return {
        "labels": {key: value for key, value in sorted(metadata.labels.items()) if key.startswith(QUEUE_LABELS)},
        "pod_template": template.manifest() if template else {},
        "claims": claims(source.uri for source in reads),
        "secrets": (*secrets, *tokens(reads)),
    }


def asked(compute: Compute | ReplicaCompute) -> Asked:
    """What each worker or replica asks for."""
    return {
        "cpu": compute.resources.cpu,
        "memory": compute.resources.memory,
        "gpus": compute.gpus.count if compute.gpus else 0,
        "gpu_product": compute.gpus.product if compute.gpus else None,
    }


def claims(uris: Iterable[str]) -> tuple[str, ...]:
    """The claims that `pvc://claim/path` URIs name, each once."""
    found = (uri.removeprefix("pvc://").partition("/")[0] for uri in uris if uri.startswith("pvc://"))
    return tuple(sorted(set(found)))


def tokens(reads: Iterable[Source]) -> tuple[Secret, ...]:
    """The tokens that sources name, each for its URI."""
    found = {token_variable(source.uri): source.secret_ref for source in reads if source.secret_ref}
    return tuple(Secret(env, ref.name, ref.key) for env, ref in sorted(found.items()))
