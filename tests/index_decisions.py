"""An EmbeddingIndex in a situation, and what is decided about it."""

from __future__ import annotations

from typing import Any

from decisions import NOW, over

from llmops_api.v1alpha1 import EmbeddingIndex, EmbeddingIndexStatus
from llmops_api.v1alpha1.embedding_index import IndexVersion
from llmops_api.v1alpha1.meta import Attempt, Condition
from llmops_operator.domain.decision import Decision
from llmops_operator.domain.embedding_index import IndexInput, decide
from llmops_operator.domain.lineage import RecordState
from llmops_operator.domain.workload import State, WorkloadStatus

GENERATION = 3
VERSION = IndexVersion(collection="default.handbook.aaa", fingerprint="aaa", digest="d1", documents=3, chunks=9)


def index(status: EmbeddingIndexStatus, metadata: dict[str, Any] | None = None, **spec: Any) -> EmbeddingIndex:
    base = {"sources": [{"name": "docs", "uri": "file:///docs"}], "embedding": {"model": {"uri": "pkg://minilm/model"}}}
    made = EmbeddingIndex.model_validate(
        {
            "metadata": {"name": "handbook", "uid": "u", "generation": GENERATION, **(metadata or {})},
            "spec": base | spec,
        }
    )
    return made.model_copy(update={"status": status})


def known(type_: str, status: str = "True", reason: str = "Fine", generation: int = GENERATION) -> Condition:
    return Condition(type=type_, status=status, reason=reason, observed_generation=generation)


SYNCED = EmbeddingIndexStatus(
    attempts=(over(1),),
    version=VERSION,
    conditions=(known("Synced"), known("GatePassed"), known("LineageRecorded")),
)
"""An index at rest."""


def look(
    status: EmbeddingIndexStatus = SYNCED,
    workloads: dict[str, WorkloadStatus] | None = None,
    metadata: dict[str, Any] | None = None,
    records: RecordState | None = None,
    **spec: Any,
) -> Decision[EmbeddingIndexStatus]:
    made = index(status, metadata, **spec)
    return decide(IndexInput(made, NOW, workloads=workloads or {}, records=records or RecordState()))


def with_attempts(*attempts: Attempt, synced: Condition | None = None) -> EmbeddingIndexStatus:
    conditions = (synced or known("Synced"), known("GatePassed"), known("LineageRecorded"))
    return SYNCED.model_copy(update={"attempts": attempts, "conditions": conditions})


def result(**facts: Any) -> dict[str, WorkloadStatus]:
    serving = VERSION.model_copy(update={"digest": "d2"}).dump()
    told = {"alias": "default.handbook", "serving": serving, "counts": {"added": 2, "unchanged": 1}} | facts
    return {"handbook-sync-2": WorkloadStatus(State.SUCCEEDED, exit_code=0, result=told)}
