"""How an EmbeddingIndex goes: its collections first, and not for ever."""

from __future__ import annotations

from typing import Any

import pytest
from decisions import NOW, ago, said
from index_decisions import SYNCED, index, look

from llmops_api.v1alpha1 import EmbeddingIndexStatus
from llmops_operator.domain.decision import Decision
from llmops_operator.domain.embedding_index import FINALIZER, IndexInput, decide
from llmops_operator.domain.workload import State, WorkloadStatus


@pytest.mark.parametrize(("policy", "wanted"), [("Delete", True), ("Retain", False)])
def test_the_finalizer_is_there_exactly_when_something_must_go(policy: str, wanted: bool) -> None:
    assert look(deletionPolicy=policy).finalizer is wanted


def deleted(
    seconds: float = 1,
    not_dropped: str = "",
    status: EmbeddingIndexStatus = SYNCED,
    finalizers: tuple[str, ...] = (FINALIZER,),
    **spec: Any,
) -> Decision[EmbeddingIndexStatus]:
    made = index(status, {"deletionTimestamp": ago(seconds), "finalizers": finalizers}, **spec)
    workloads = {"handbook-drop": WorkloadStatus(State.FAILED)}  # of an older release
    return decide(IndexInput(made, NOW, workloads=workloads, not_dropped=not_dropped))


AWAY = "Qdrant is away"
ENDING = "handbook-sync-1 is still ending"
DELETIONS: dict[str, tuple[Decision[EmbeddingIndexStatus], bool, str | None, bool | None, float | None]] = {
    "the collections are dropped": (deleted(), True, "default.handbook", False, None),
    "after the deadline they are tried, too": (deleted(500), True, "default.handbook", False, None),
    "they could not be dropped": (deleted(20, AWAY), False, None, None, 10),
    "they could not be dropped just before the deadline": (deleted(118, AWAY), False, None, None, 2),
    "they could not be dropped for too long": (deleted(120, AWAY), False, None, False, None),
    "a sync does not end": (deleted(20, ENDING), False, None, None, 10),
    "a sync does not end for too long": (deleted(120, ENDING), False, None, False, None),
    "there is nothing to drop": (deleted(status=EmbeddingIndexStatus()), False, None, False, None),
    "the policy was changed at the last moment": (deleted(deletionPolicy="Retain"), False, None, False, None),
    "the policy was changed when they could not be dropped": (deleted(9, AWAY, deletionPolicy="Retain"), False, None, False, None),
    "somebody else's finalizer holds it": (deleted(finalizers=("example.org/theirs",)), True, None, None, None),
}  # fmt: skip


@pytest.mark.parametrize(("decision", "removes", "drop", "finalizer", "after"), DELETIONS.values(), ids=DELETIONS)
def test_a_deletion(
    decision: Decision[EmbeddingIndexStatus],
    removes: bool,
    drop: str | None,
    finalizer: bool | None,
    after: float | None,
) -> None:
    assert decision.drop == drop
    assert decision.finalizer is finalizer
    assert decision.requeue_after == (pytest.approx(after) if after else None)
    assert decision.workloads == ()
    assert decision.discard_volumes is removes
    assert ("handbook-drop" in decision.remove) is removes


def test_the_last_sync_has_to_end_before_anything_is_dropped_even_where_only_its_pods_are_left() -> None:
    assert deleted().remove == ("handbook-drop", "handbook-sync-1")


def test_the_status_says_what_it_waits_for() -> None:
    assert deleted().status.phase == "Deleting"
    waiting = deleted(20, AWAY)
    sentence = "Qdrant is away. It is tried again until 120 s after the deletion"
    assert said(waiting, "Ready") == ("False", "CollectionsNotDropped", sentence)
    assert [(one.type_, one.message) for one in waiting.events] == [("Warning", sentence)]
    assert deleted(21, AWAY, status=waiting.status).events == ()


def test_what_is_left_behind_is_named() -> None:
    [event] = deleted(120, AWAY).events
    assert event.reason == "CollectionsLeftBehind"
    assert event.message == (
        "gave up dropping the collections after 120 s: Qdrant is away. "
        "Drop the alias default.handbook and the collections default.handbook.* by hand"
    )
