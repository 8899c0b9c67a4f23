"""What a RagService is to answer with: its references resolved, or why they are not, and what goes on answering meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmops_api.names import adapter_name
from llmops_api.reasons import Reason
from llmops_api.v1alpha1.embedding_index import EmbeddingIndexCondition, EmbeddingIndexStatus
from llmops_api.v1alpha1.meta import ModelSource
from llmops_api.v1alpha1.rag_service import IndexInUse, ModelInUse, RagServiceSpec, RagServiceStatus
from llmops_api.v1alpha1.training_job import TrainingJobCondition, TrainingJobStatus
from llmops_operator.domain.conditions import Aspect, fails, find, holds, is_true, reported, waits
from llmops_operator.domain.lineage import RegisteredVersion, Resolution, Unresolved


@dataclass(frozen=True)
class JobView:
    """As much of a TrainingJob as a service that refers to it looks at. `full` says that all weights are trained, `rank` is that
    of its adapter.
    """

    status: TrainingJobStatus = field(default_factory=TrainingJobStatus)
    full: bool = False
    deleting: bool = False
    rank: int | None = None


@dataclass(frozen=True)
class IndexView:
    """As much of an EmbeddingIndex as a service that refers to it looks at."""

    status: EmbeddingIndexStatus = field(default_factory=EmbeddingIndexStatus)
    deleting: bool = False
    embedding_model: ModelSource | None = None
    """The model that embeds its questions."""


@dataclass(frozen=True)
class ResolvedModel:
    """The model that is to answer. `base` is None when it runs elsewhere or cannot be known yet; `wanted` is None until it is
    known; `adapters` says that the engine has to take adapters.
    """

    aspect: Aspect
    wanted: ModelInUse | None
    base: ModelSource | None
    adapters: bool = False


@dataclass(frozen=True)
class ResolvedIndexes:
    """The indexes that are to be searched."""

    aspect: Aspect
    wanted: tuple[IndexInUse, ...]


def base_name(uri: str) -> str:
    """A name for a base model at its engine: the last part of its URI that says something."""
    path = uri.split("://", 1)[-1].rstrip("/")
    if uri.startswith("mlflow://") and "@" not in path:
        model, _, version = path.partition("/")
        return adapter_name(model, version) if version else model
    return path.rsplit("/", 1)[-1].split("@", 1)[0].removesuffix(".gguf") or "base"


def registered(name: str, version: str, *, adapter: bool) -> ModelInUse:
    """A registered version as it is served."""
    return ModelInUse(
        name=adapter_name(name, version), version=version, uri=f"mlflow://{name}/{version}", adapter=adapter
    )


def resolve_model(
    spec: RagServiceSpec, old: RagServiceStatus, namespace: str, job: JobView | None, resolution: Resolution | None
) -> ResolvedModel:
    """The model of a spec. One that cannot be resolved (any more) leaves the one that answers answering."""
    model = spec.model
    if model.endpoint is not None:
        return ResolvedModel(
            holds(Reason.EXTERNAL, f"{model.endpoint.name} runs elsewhere"), ModelInUse(name=model.endpoint.name), None
        )
    assert model.base is not None
    base = ModelInUse(name=base_name(model.base.uri))
    if model.adapter is None:
        return ResolvedModel(holds(Reason.MODEL_RESOLVED, f"{base.name}, no adapter"), base, model.base)
    if model.adapter.training_job_ref is not None:
        found = _of_job(model.adapter.training_job_ref.name, namespace, job)
    else:
        found = _of_registry(resolution)
    if isinstance(found, ModelInUse):
        uri = model.base if found.adapter else ModelSource(uri=str(found.uri))
        return ResolvedModel(holds(Reason.MODEL_RESOLVED, found.name), found, uri, adapters=found.adapter)
    in_use = old.model
    if in_use is None:
        known_to_be_full = job is not None and job.full
        return ResolvedModel(found, None, None if known_to_be_full else model.base, adapters=not known_to_be_full)
    still = Aspect(found.status, found.reason, f"{found.message}; meanwhile {in_use.name} answers", found.trouble)
    if in_use.uri is None:
        return ResolvedModel(still, base, model.base, adapters=True)
    uri = model.base if in_use.adapter else ModelSource(uri=in_use.uri)
    return ResolvedModel(still, in_use, uri, adapters=in_use.adapter)


def _of_job(name: str, namespace: str, job: JobView | None) -> ModelInUse | Aspect:
    if job is None:
        return fails(
            Reason.TRAINING_JOB_NOT_FOUND,
            f'there is no TrainingJob "{name}" in namespace "{namespace}": create it, or name another one in '
            "spec.model.adapter.trainingJobRef",
        )
    if job.deleting:
        return fails(
            Reason.TRAINING_JOB_DELETED,
            f'TrainingJob "{name}" is being deleted: name another one, or its version in spec.model.adapter.model',
        )
    status = job.status
    gate = find(status.conditions, TrainingJobCondition.GATE_PASSED)
    succeeded = find(status.conditions, TrainingJobCondition.SUCCEEDED)
    if status.model is not None and gate is not None and gate.status == "True":
        return registered(status.model.name, status.model.version, adapter=status.model.adapter)
    if status.model is not None and gate is not None and gate.status == "False":
        return fails(
            Reason.GATE_NOT_PASSED,
            f'TrainingJob "{name}" did not pass its gate ({gate.message}): train another one, or take the version all the same by '
            f"spec.model.adapter.model with version {status.model.version} of {status.model.name}",
        )
    if status.completion_time and succeeded is not None and succeeded.status == "False":
        return fails(
            Reason.TRAINING_JOB_FAILED,
            f'TrainingJob "{name}" failed with {succeeded.reason}: {succeeded.message}. Create another one and name it in '
            "spec.model.adapter.trainingJobRef",
        )
    return waits(Reason.TRAINING_JOB_NOT_FINISHED, f'waits for TrainingJob "{name}" ({status.phase.lower()})')


def _of_registry(resolution: Resolution | None) -> ModelInUse | Aspect:
    match resolution:
        case RegisteredVersion(name=name, version=version, adapter=adapter):
            return registered(name, version, adapter=adapter)
        case Unresolved(reason=reason, message=message):
            return reported(reason, message)
        case None:
            return waits(Reason.RESOLVING, "waits for MLflow's model registry")


def resolve_indexes(
    spec: RagServiceSpec, old: RagServiceStatus, namespace: str, views: Mapping[str, IndexView | None]
) -> ResolvedIndexes:
    """The indexes of a spec. Until all of them serve a version, those that are in use stay in use."""
    found: list[IndexInUse] = []
    missing: list[Aspect] = []
    for index in spec.indexes:
        one = _of_index(index.index_ref.name, namespace, views.get(index.index_ref.name))
        (found if isinstance(one, IndexInUse) else missing).append(one)  # type: ignore[arg-type]
    if not missing:
        return ResolvedIndexes(
            holds(Reason.INDEXES_RESOLVED, ", ".join(index.collection for index in found) or "no index"), tuple(found)
        )
    first = next((aspect for aspect in missing if aspect.trouble), missing[0])
    message = "; ".join(aspect.message for aspect in missing)
    if old.model is not None and old.indexes:
        message = f"{message}; meanwhile {', '.join(index.name for index in old.indexes)} is searched as before"
    return ResolvedIndexes(Aspect(first.status, first.reason, message, first.trouble), old.indexes)


def _of_index(name: str, namespace: str, index: IndexView | None) -> IndexInUse | Aspect:
    if index is None:
        return fails(
            Reason.INDEX_NOT_FOUND,
            f'there is no EmbeddingIndex "{name}" in namespace "{namespace}": create it, or remove it from spec.indexes',
        )
    if index.deleting:
        return fails(
            Reason.INDEX_DELETED, f'EmbeddingIndex "{name}" is being deleted: name another one in spec.indexes'
        )
    conditions = index.status.conditions
    if index.status.version is not None and is_true(conditions, EmbeddingIndexCondition.SERVING):
        return IndexInUse(name=name, collection=index.status.version.collection)
    ready = find(conditions, EmbeddingIndexCondition.READY)
    why = f" ({ready.reason}: {ready.message})" if ready and ready.status == "False" else ""
    return waits(Reason.INDEX_NOT_SERVING, f'waits for EmbeddingIndex "{name}" to serve a version{why}')
