"""EmbeddingIndexes: gather, decide."""

from __future__ import annotations

from functools import partial

from llmops_api.v1alpha1 import EmbeddingIndex, EmbeddingIndexStatus
from llmops_operator.controllers.gathering import Look, as_written
from llmops_operator.domain.decision import Decision, owner_of
from llmops_operator.domain.embedding_index import KIND, IndexInput, decide


def look(index: EmbeddingIndex, at: Look) -> Decision[EmbeddingIndexStatus]:
    """What is to be done about an EmbeddingIndex."""
    return decide(
        IndexInput(
            index=index,
            now=at.now,
            manifest=partial(as_written, at.manifest),
            workloads=at.sources.backend.observe(owner_of(KIND, index.metadata)),
            records=at.sources.lineage.states(index.metadata.uid),
            timing=at.sources.timing,
        )
    )
