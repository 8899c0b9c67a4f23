"""What is started for an EmbeddingIndex: the indexer."""

from __future__ import annotations

from llmops_api.programs import IndexingConfig
from llmops_api.v1alpha1.embedding_index import EmbeddingIndex
from llmops_operator.domain.decision import object_id
from llmops_operator.domain.files import CACHE, STATE, config_file, program
from llmops_operator.domain.fingerprint import workload_name
from llmops_operator.domain.placement import asked, placed
from llmops_operator.domain.workload import Lifecycle, Role, Workload


def sync_name(index: EmbeddingIndex, number: int) -> str:
    """The name of the workload of a sync."""
    return workload_name(index.metadata.name, f"sync-{number}", workers=index.spec.compute.workers)


def indexer(index: EmbeddingIndex, number: int) -> Workload:
    """The workload of a sync."""
    identity = object_id(index.kind, index.metadata, generation=index.metadata.generation)
    spec = index.spec.model_copy(update={"pod_template": None})
    config = IndexingConfig(object=identity, spec=spec)
    return Workload(
        name=sync_name(index, number),
        role=Role.INDEXER,
        lifecycle=Lifecycle.COMPLETES,
        command=program("indexing"),
        files={"indexing.json": config_file(config)},
        workers=spec.compute.workers,
        volumes=(STATE, CACHE),
        **asked(spec.compute),
        **placed(index.metadata, index.spec.pod_template, spec.reads()),
    )
