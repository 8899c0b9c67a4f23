"""When an EmbeddingIndex is synced, and what is said meanwhile and afterwards."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from decisions import NOW, ago, over, running, said
from index_decisions import GENERATION, SYNCED, index, known, look, with_attempts

from llmops_api.programs import IndexingConfig
from llmops_api.v1alpha1 import EmbeddingIndexStatus
from llmops_api.v1alpha1.meta import Attempt, Progress
from llmops_operator.domain.conditions import find
from llmops_operator.domain.embedding_index import IndexInput, decide
from llmops_operator.domain.sync_due import SYNC_REQUESTED
from llmops_operator.domain.timing import timestamp
from llmops_operator.domain.workload import State, WorkloadStatus

ASKED = {"annotations": {SYNC_REQUESTED: ago(10)}}
FAILED = known("Synced", "False", "Away")
DUE: dict[str, tuple[EmbeddingIndexStatus, dict[str, Any], dict[str, Any], str | None, float | None]] = {
    "it was never synced": (EmbeddingIndexStatus(), {}, {}, "handbook-sync-1", None),
    "it is at rest": (SYNCED, {}, {}, None, None),
    "the spec has changed": (
        with_attempts(over(1), synced=known("Synced", generation=2)), {}, {}, "handbook-sync-2", None),
    "a sync was asked for after the last one began": (SYNCED, ASKED, {}, "handbook-sync-2", None),
    "a sync was asked for before the last one began": (
        SYNCED, {"annotations": {SYNC_REQUESTED: ago(61)}}, {}, None, None),
    "a sync was asked for in words": (SYNCED, {"annotations": {SYNC_REQUESTED: "now"}}, {}, None, None),
    "refresh is over": (SYNCED, {}, {"refresh": {"everySeconds": 30}}, "handbook-sync-2", None),
    "refresh is not over": (SYNCED, {}, {"refresh": {"everySeconds": 100}}, None, 70),
    "it is suspended": (SYNCED, ASKED, {"suspend": True, "refresh": {"everySeconds": 5}}, None, None),
    "it was suspended in the middle": (
        with_attempts(over(1), over(2, "Suspended", code=None)), {}, {}, "handbook-sync-3", None),
    "it failed just now": (with_attempts(over(1, "Away", code=75, ended=4), synced=FAILED), {}, {}, None, 6),
    "it failed a while ago": (
        with_attempts(over(1, "Away", code=75, ended=10), synced=FAILED), {}, {}, "handbook-sync-2", None),
    "it failed three times": (
        with_attempts(over(7), *(over(number, "Away", code=75, ended=11) for number in (8, 9, 10)), synced=FAILED),
        {}, {}, None, 29),
    "it failed and was asked for": (
        with_attempts(over(1, "Away", code=75, ended=4), synced=FAILED), ASKED, {}, "handbook-sync-2", None),
    "it failed and a refresh comes sooner than the next try": (
        with_attempts(*(over(number, "Away", code=75, ended=11) for number in range(1, 6)), synced=FAILED),
        {}, {"refresh": {"everySeconds": 12}}, None, 1),
    "it is the user's mistake": (with_attempts(over(1, "BadData", code=64), synced=FAILED), {}, {}, None, None),
    "the user's mistake is looked at again by refresh": (
        with_attempts(over(1, "BadData", code=64), synced=FAILED), {}, {"refresh": {"everySeconds": 20}}, "handbook-sync-2", None),
    "the user's mistake is corrected in the spec": (
        with_attempts(over(1, "BadData", code=64), synced=known("Synced", "False", generation=2)),
        {}, {}, "handbook-sync-2", None),
}  # fmt: skip


@pytest.mark.parametrize(("status", "metadata", "spec", "starts", "after"), DUE.values(), ids=DUE)
def test_when_a_sync_starts(
    status: EmbeddingIndexStatus,
    metadata: dict[str, Any],
    spec: dict[str, Any],
    starts: str | None,
    after: float | None,
) -> None:
    decision = look(status, metadata=metadata, **spec)
    assert [one.name for one in decision.workloads] == ([starts] if starts else [])
    assert decision.requeue_after == (pytest.approx(after) if after else None)
    if starts:
        assert decision.status.attempts[-1] == Attempt(number=int(starts[-1]), start_time=timestamp(NOW))
        synced = find(decision.status.conditions, "Synced")
        assert synced is not None
        assert synced.observed_generation == GENERATION


def test_a_request_in_words_is_answered_in_the_status() -> None:
    decision = look(metadata={"annotations": {SYNC_REQUESTED: "now"}})
    assert said(decision, "Accepted")[2] == (
        "the annotation llmops.dev/sync-requested-at is 'now': write a time like 2026-11-23T06:17:36Z"
    )


def test_a_new_index_waits_and_serves_nothing() -> None:
    decision = look(EmbeddingIndexStatus())
    assert said(decision, "Synced")[:2] == ("False", "Syncing")
    assert said(decision, "GatePassed")[0] == "Unknown"
    assert said(decision, "Serving")[:2] == ("False", "NothingServed")
    assert said(decision, "Ready")[:2] == ("False", "Syncing")
    assert decision.status.phase == "Syncing"


def test_the_indexer_gets_the_whole_spec() -> None:
    [workload] = look(EmbeddingIndexStatus(), compute={"workers": 3, "resources": {"memory": "2Gi"}}).workloads
    config = IndexingConfig.model_validate_json(workload.files["indexing.json"])
    assert (config.object.generation, config.spec.compute.workers) == (GENERATION, 3)
    assert (workload.workers, workload.memory) == (3, "2Gi")


def test_a_running_sync_shows_how_far_it_is() -> None:
    progress = Progress(doing="embedding", step=5, total=10, percent=50)
    running_well = {"handbook-sync-1": WorkloadStatus(State.RUNNING, progress=progress)}
    decision = look(
        EmbeddingIndexStatus(attempts=(running(),), conditions=(known("Synced", "False", "Syncing"),)), running_well
    )
    assert decision.status.progress == progress
    assert said(decision, "Synced")[:2] == ("False", "Syncing")


def test_why_a_sync_does_not_get_going_is_said() -> None:
    stuck = {"handbook-sync-1": WorkloadStatus(State.PENDING, reason="Unschedulable", message="no node has 2 GPUs")}
    decision = look(with_attempts(running()), stuck)
    assert said(decision, "Synced") == ("False", "Unschedulable", "no node has 2 GPUs")
    well = look(decision.status, {"handbook-sync-1": WorkloadStatus(State.RUNNING)})
    assert said(well, "Synced")[:2] == ("False", "Syncing")


REFRESH_KEEPS = {
    "what was synced stays synced while it is refreshed": (with_attempts(over(1), running(2)), ("True", "Fine")),
    "a failure stays said while it is tried again": (
        with_attempts(over(1, "Away", code=75), running(2), synced=FAILED), ("False", "Away")),
    "a failure of an earlier spec is no longer said": (
        with_attempts(over(1, "BadData", code=64), running(2), synced=known("Synced", "False", "Syncing")), ("False", "Syncing")),
}  # fmt: skip


@pytest.mark.parametrize(("status", "expected"), REFRESH_KEEPS.values(), ids=REFRESH_KEEPS)
def test_what_is_said_while_a_sync_runs(status: EmbeddingIndexStatus, expected: tuple[str, str]) -> None:
    decision = look(status, {"handbook-sync-2": WorkloadStatus(State.RUNNING)})
    assert said(decision, "Synced")[:2] == expected


FAILURES: dict[str, tuple[int, str, str, str]] = {
    "the user's mistake": (64, "EmptyIndex", "no document matches **/*.md", "no document matches **/*.md"),
    "something passing": (75, "VectorStoreUnavailable", "Qdrant is away", "Qdrant is away (it is tried again)"),
    "no memory": (137, "", "", "lower embedding.batchSize, or raise compute.resources.memory"),
}


@pytest.mark.parametrize(("code", "reason", "message", "expected"), FAILURES.values(), ids=FAILURES)
def test_a_failed_sync_is_said_and_the_old_version_serves(code: int, reason: str, message: str, expected: str) -> None:
    failed = {"handbook-sync-2": WorkloadStatus(State.FAILED, exit_code=code, reason=reason, message=message)}
    decision = look(with_attempts(over(1), running(2)), failed)
    status, said_reason, said_message = said(decision, "Synced")
    assert (status, said_reason) == ("False", reason or "OutOfMemory")
    assert expected in said_message
    assert said(decision, "Serving")[0] == "True"
    assert decision.status.phase == "Failed"
    assert [event.type_ for event in decision.events if event.reason == said_reason] == ["Warning"]


def test_an_edit_ends_the_running_sync_and_begins_the_next() -> None:
    status = with_attempts(over(1), running(2), synced=known("Synced", generation=2))
    workloads = {name: WorkloadStatus(State.RUNNING) for name in ("handbook-sync-1", "handbook-sync-2")}
    decision = look(status, workloads)
    assert decision.remove == ("handbook-sync-1", "handbook-sync-2")
    assert [one.name for one in decision.workloads] == ["handbook-sync-3"]
    assert [one.reason for one in decision.status.attempts] == ["Completed", "SpecChanged", ""]


def test_suspending_ends_the_running_sync_and_goes_on_serving() -> None:
    decision = look(
        with_attempts(over(1), running(2)), {"handbook-sync-2": WorkloadStatus(State.RUNNING)}, suspend=True
    )
    assert decision.remove == ("handbook-sync-2",)
    assert (decision.workloads, decision.status.phase) == ((), "Suspended")
    assert said(decision, "Suspended")[0] == "True"
    assert said(decision, "Serving")[0] == "True"


def test_an_index_that_was_never_synced_and_is_suspended_says_so() -> None:
    decision = look(EmbeddingIndexStatus(), suspend=True)
    assert said(decision, "Synced") == ("False", "Suspended", "never synced: set spec.suspend to false")
    first = EmbeddingIndexStatus(attempts=(running(),), conditions=(known("Synced", "False", "Syncing"),))
    stopped = look(first, {"handbook-sync-1": WorkloadStatus(State.RUNNING)}, suspend=True)
    assert said(stopped, "Synced")[1] == "Suspended"
    assert look(stopped.status, suspend=True).status == stopped.status


def test_attempts_are_bounded_and_their_numbers_go_on() -> None:
    many = tuple(over(number) for number in range(1, 17))
    decision = look(with_attempts(*many), metadata=ASKED)
    assert len(decision.status.attempts) == 16
    assert decision.workloads[0].name == "handbook-sync-17"


def test_an_index_at_rest_stays_as_it_is() -> None:
    at_rest = look().status
    for seconds in (1, 100_000):
        made = index(at_rest)
        decision = decide(IndexInput(made, NOW + timedelta(seconds=seconds)))
        assert decision.status == at_rest
        assert (decision.workloads, decision.events, decision.requeue_after) == ((), (), None)
