"""RagServices: gather with all they refer to, decide."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from llmops_api.v1alpha1 import EmbeddingIndexStatus, RagService, RagServiceStatus, TrainingJobStatus
from llmops_api.v1alpha1.meta import ModelSource
from llmops_api.v1alpha1.training_job import Lora
from llmops_operator.controllers.gathering import Look
from llmops_operator.controllers.ports import Key, Manifest, Store
from llmops_operator.domain.admission import tolerant
from llmops_operator.domain.decision import Decision
from llmops_operator.domain.rag_service import KIND, ServiceInput, decide
from llmops_operator.domain.serving import IndexView, JobView

S = TypeVar("S", bound=BaseModel)


def look(service: RagService, at: Look) -> Decision[RagServiceStatus]:
    """What is to be done about a RagService. From now on it is looked at again when what it refers to changes."""
    key: Key = (KIND, service.metadata.namespace, service.metadata.name)
    adapter = service.spec.model.adapter
    job = _job_key(service)
    indexes = {index.index_ref.name: _index_key(service, index.index_ref.name) for index in service.spec.indexes}
    at.sources.references.put(key, [*indexes.values(), *([job] if job else [])])
    store = at.sources.store
    return decide(
        ServiceInput(
            service=service,
            job=_job(store, job) if job else None,
            resolution=at.sources.lineage.resolve(key, adapter.model if adapter else None),
            indexes={name: _index(store, index) for name, index in indexes.items()},
            **at.about(service),
        )
    )


def _job_key(service: RagService) -> Key | None:
    adapter = service.spec.model.adapter
    if adapter is None or adapter.training_job_ref is None:
        return None
    return ("TrainingJob", service.metadata.namespace, adapter.training_job_ref.name)


def _index_key(service: RagService, name: str) -> Key:
    return ("EmbeddingIndex", service.metadata.namespace, name)


def _job(store: Store, key: Key) -> JobView | None:
    manifest = store.get(key)
    if manifest is None:
        return None
    tuning = manifest.get("spec", {}).get("tuning") or {}
    full = "full" in tuning
    try:
        rank = None if full else Lora.model_validate(tuning.get("lora") or {}).rank
    except ValidationError:
        rank = None
    return JobView(_status(manifest, TrainingJobStatus), full=full, deleting=_deleting(manifest), rank=rank)


def _index(store: Store, key: Key) -> IndexView | None:
    manifest = store.get(key)
    if manifest is None:
        return None
    embedding = manifest.get("spec", {}).get("embedding") or {}
    try:
        model = ModelSource.model_validate(embedding.get("model"))
    except ValidationError:
        model = None
    return IndexView(_status(manifest, EmbeddingIndexStatus), deleting=_deleting(manifest), embedding_model=model)


def _deleting(manifest: Manifest) -> bool:
    return bool(manifest["metadata"].get("deletionTimestamp"))


def _status(manifest: Manifest, type_: type[S]) -> S:
    """The status of another object; one that cannot be read counts as none, its own controller says what is wrong with it."""
    try:
        return tolerant(type_, manifest.get("status") or {})
    except ValidationError:
        return type_()
