"""How an EmbeddingIndex goes: its collections first, and not for ever."""

from __future__ import annotations

from typing import Any

import pytest
from decisions import ago
from index_decisions import SYNCED, look

from llmops_api.programs import IndexingAction, IndexingConfig
from llmops_api.v1alpha1 import EmbeddingIndexStatus
from llmops_operator.domain.decision import Decision
from llmops_operator.domain.embedding_index import FINALIZER
from llmops_operator.domain.workload import State, WorkloadStatus


@pytest.mark.parametrize(("policy", "wanted"), [("Delete", True), ("Retain", False)])
def test_the_finalizer_is_there_exactly_when_something_must_go(policy: str, wanted: bool) -> None:
    assert look(deletionPolicy=policy).finalizer is wanted


def deleted(
    seconds: float = 1,
    drop: WorkloadStatus | None = None,
    status: EmbeddingIndexStatus = SYNCED,
    finalizers: tuple[str, ...] = (FINALIZER,),
    **spec: Any,
) -> Decision[EmbeddingIndexStatus]:
    metadata = {"deletionTimestamp": ago(seconds), "finalizers": finalizers}
    workloads = {"handbook-sync-1": WorkloadStatus(State.SUCCEEDED)}
    return look(status, workloads | ({"handbook-drop": drop} if drop else {}), metadata, **spec)


def failed_ago(seconds: float | None) -> WorkloadStatus:
    ended = None if seconds is None else ago(seconds)
    return WorkloadStatus(State.FAILED, exit_code=75, message="Qdrant is away", ended_at=ended)


DELETIONS: dict[str, tuple[Decision[EmbeddingIndexStatus], list[str], bool | None, float | None]] = {
    "the collections are dropped first": (deleted(), ["handbook-drop"], None, 119),
    "dropping goes on": (deleted(drop=WorkloadStatus(State.RUNNING)), ["handbook-drop"], None, 119),
    "they are dropped": (deleted(drop=WorkloadStatus(State.SUCCEEDED)), [], False, None),
    "dropping failed just now": (deleted(drop=failed_ago(4)), [], None, 6),
    "dropping failed a while ago": (deleted(20, drop=failed_ago(10)), ["handbook-drop"], None, 100),
    "dropping failed at no known time": (deleted(20, drop=failed_ago(None)), ["handbook-drop"], None, 100),
    "dropping failed just before the deadline": (deleted(118, drop=failed_ago(4)), [], None, 2),
    "dropping failed for too long": (deleted(120, drop=failed_ago(1)), [], False, None),
    "dropping hangs for too long": (deleted(121, drop=WorkloadStatus(State.RUNNING)), [], False, None),
    "there is nothing to drop": (deleted(status=EmbeddingIndexStatus()), [], False, None),
    "the policy was changed at the last moment": (deleted(deletionPolicy="Retain"), [], False, None),
    "somebody else's finalizer holds it": (deleted(finalizers=("example.org/theirs",)), [], None, None),
}  # fmt: skip


@pytest.mark.parametrize(("decision", "starts", "finalizer", "after"), DELETIONS.values(), ids=DELETIONS)
def test_a_deletion(
    decision: Decision[EmbeddingIndexStatus], starts: list[str], finalizer: bool | None, after: float | None
) -> None:
    assert [one.name for one in decision.workloads] == starts
    assert decision.finalizer is finalizer
    assert decision.requeue_after == (pytest.approx(after) if after else None)
    assert "handbook-sync-1" in decision.remove
    assert decision.discard_volumes == (decision.finalizer is False or (not starts and after is None))


def test_dropping_that_failed_is_begun_anew() -> None:
    assert deleted(20, drop=failed_ago(10)).remove == ("handbook-drop", "handbook-sync-1")
    [workload] = deleted().workloads
    assert IndexingConfig.model_validate_json(workload.files["indexing.json"]).action is IndexingAction.DROP


def test_what_is_left_behind_is_named() -> None:
    [event] = deleted(120, drop=failed_ago(1)).events
    assert event.reason == "CollectionsLeftBehind"
    assert event.message == (
        "gave up dropping the collections after 120 s: Qdrant is away. "
        "Drop the alias default.handbook and the collections default.handbook.* by hand"
    )
