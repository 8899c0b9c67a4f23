"""What is decided about an EmbeddingIndex, situation by situation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llmops_api.programs import IndexingAction, IndexingConfig
from llmops_api.v1alpha1 import EmbeddingIndex, EmbeddingIndexStatus
from llmops_api.v1alpha1.embedding_index import IndexVersion, RetrievalScores
from llmops_api.v1alpha1.meta import Attempt, Condition, Progress
from llmops_operator.domain.conditions import find
from llmops_operator.domain.decision import Decision
from llmops_operator.domain.embedding_index import FINALIZER, SYNC_REQUESTED, IndexInput, decide
from llmops_operator.domain.lineage import IndexRecord, Recorded, RecordState
from llmops_operator.domain.timing import timestamp
from llmops_operator.domain.workload import State, WorkloadStatus

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
GENERATION = 3
VERSION = IndexVersion(collection="default.handbook.aaa", fingerprint="aaa", digest="d1", documents=3, chunks=9)


def ago(seconds: float) -> str:
    return timestamp(NOW - timedelta(seconds=seconds))


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


def over(
    number: int, reason: str = "Completed", *, code: int | None = 0, began: float = 60, ended: float = 30
) -> Attempt:
    return Attempt(
        number=number,
        start_time=ago(began),
        end_time=ago(ended),
        exit_code=code,
        reason=reason,
        message=f"{reason} said",
    )


def running(number: int = 1) -> Attempt:
    return Attempt(number=number, start_time=ago(60))


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


def said(decision: Decision[EmbeddingIndexStatus], type_: str) -> tuple[str, str, str]:
    condition = find(decision.status.conditions, type_)
    assert condition is not None
    return condition.status, condition.reason, condition.message


def with_attempts(*attempts: Attempt, synced: Condition | None = None) -> EmbeddingIndexStatus:
    conditions = (synced or known("Synced"), known("GatePassed"), known("LineageRecorded"))
    return SYNCED.model_copy(update={"attempts": attempts, "conditions": conditions})


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
    assert (config.action, config.object.generation, config.spec.compute.workers) == (
        IndexingAction.SYNC,
        GENERATION,
        3,
    )
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


def result(**facts: Any) -> dict[str, WorkloadStatus]:
    serving = VERSION.model_copy(update={"digest": "d2"}).dump()
    told = {"alias": "default.handbook", "serving": serving, "counts": {"added": 2, "unchanged": 1}} | facts
    return {"handbook-sync-2": WorkloadStatus(State.SUCCEEDED, exit_code=0, result=told)}


def test_a_result_becomes_the_status() -> None:
    rejected = [{"path": "hr/broken.md", "reason": "not UTF-8: save it as UTF-8"}]
    sources = [{"name": "docs", "uri": "file:///docs", "documents": 3, "digest": "a1"}]
    facts = {"rejected": rejected, "rejectedCount": 1, "sources": sources, "embeddingModelDigest": "e5"}
    decision = look(with_attempts(over(1), running(2)), result(**facts))
    status = decision.status
    assert (status.alias, status.documents, status.chunks, status.rejected_count) == ("default.handbook", 3, 9, 1)
    assert status.last_sync_time == ago(60)
    assert status.last_sync is not None
    assert status.last_sync.added == 2
    assert said(decision, "Synced") == (
        "True",
        "Synced",
        "3 documents, 9 chunks; 2 added, 0 updated, 0 deleted, 1 unchanged; 1 documents were rejected, see status.rejected",
    )
    assert said(decision, "GatePassed")[1] == "NoGate"
    assert said(decision, "Ready") == ("True", "Ready", "default.handbook.aaa")
    record = decision.record
    assert isinstance(record, IndexRecord)
    assert (record.key, record.embedding_digest, record.sources[0].digest) == ("default.handbook.aaa@d2", "e5", "a1")
    assert said(decision, "LineageRecorded")[:2] == ("Unknown", "Recording")


def test_a_result_with_the_same_documents_is_not_recorded_again() -> None:
    same = result(serving=VERSION.dump(), counts={"unchanged": 3})
    status = with_attempts(over(1), running(2)).model_copy(update={"run_id": "run-1"})
    decision = look(status, same)
    assert (decision.record, decision.status.run_id) == (None, "run-1")
    assert said(decision, "LineageRecorded")[0] == "True"


def test_a_record_that_is_written_gives_its_run() -> None:
    status = SYNCED.model_copy(update={"conditions": (known("Synced"), known("GatePassed"))})
    records = RecordState(by_key={"default.handbook.aaa@d1": Recorded("run-7", "http://run-7", "m-7")})
    decision = look(status, records=records)
    assert (decision.status.run_id, decision.status.run_url, decision.record) == ("run-7", "http://run-7", None)
    assert look(status, records=RecordState(enabled=False)).record is None


def test_a_gate_that_passes_says_its_numbers() -> None:
    decision = look(with_attempts(over(1), running(2)), result(gatePassed=True, gateMessage="recall@5 0.92 ≥ 0.8"))
    assert said(decision, "GatePassed") == ("True", "GatePassed", "recall@5 0.92 ≥ 0.8")


def test_a_gate_that_fails_keeps_the_old_version_and_says_so() -> None:
    candidate = IndexVersion(collection="default.handbook.bbb", fingerprint="bbb", documents=4, chunks=12).dump()
    facts = {
        "serving": VERSION.dump(),
        "candidate": candidate,
        "gatePassed": False,
        "gateMessage": "recall@5 0.5 < 0.8",
    }
    decision = look(with_attempts(over(1), running(2)), result(**facts))
    assert said(decision, "Synced")[2].startswith("4 documents, 12 chunks")
    assert said(decision, "GatePassed") == ("False", "GateNotPassed", "recall@5 0.5 < 0.8")
    assert said(decision, "Serving") == (
        "True",
        "Serving",
        "default.handbook.aaa; a newer version did not pass its gate",
    )
    assert said(decision, "Ready") == ("False", "GateNotPassed", "recall@5 0.5 < 0.8")


def test_a_first_version_that_fails_its_gate_serves_nothing() -> None:
    candidate = VERSION.dump()
    facts = {"serving": None, "candidate": candidate, "gatePassed": False, "gateMessage": "recall@5 0.5 < 0.8"}
    decision = look(
        EmbeddingIndexStatus(attempts=(running(2),), conditions=(known("Synced", "False"),)), result(**facts)
    )
    assert decision.status.version is None
    assert said(decision, "Serving")[:2] == ("False", "NothingServed")
    assert decision.status.phase == "Pending"


def test_a_version_that_is_held_back_is_recorded_beside_the_one_that_is_served() -> None:
    asked = RetrievalScores(questions=9, uri="file:///q.jsonl", digest="0123456789abcdef", recall_at5="0.5", mrr="0.4")
    candidate = IndexVersion(collection="default.handbook.bbb", fingerprint="bbb", digest="d9", evaluation=asked)
    facts = {
        "serving": VERSION.dump(),
        "candidate": candidate.dump(),
        "gatePassed": False,
        "gateMessage": "recall@5 0.5 < 0.8",
    }
    before = with_attempts(over(1), running(2)).model_copy(update={"run_id": "run-1"})
    decision = look(before, result(**facts))
    record = decision.record
    assert isinstance(record, IndexRecord)
    assert (record.version, record.held_back, record.gate_passed) == (candidate, True, False)
    assert record.gate_message == "recall@5 0.5 < 0.8"
    assert (record.key, decision.status.run_id) == ("default.handbook.bbb@d9/0123456789/held-back", "run-1")
    assert said(decision, "LineageRecorded")[1] == "Recording"

    written = RecordState(by_key={record.key: Recorded("run-2")})
    after = look(decision.status, records=written)
    assert (after.record, after.status.run_id) == (None, "run-1")
    assert said(after, "LineageRecorded") == ("True", "Recorded", "run run-2 in MLflow")

    again = look(after.status.model_copy(update={"attempts": (over(1), running(2))}), result(**facts), records=written)
    assert again.record is None
    served = result(serving=candidate.dump(), gatePassed=True, gateMessage="recall@5 0.9")
    passed = look(after.status.model_copy(update={"attempts": (over(1), running(2))}), served, records=written).record
    assert isinstance(passed, IndexRecord)
    assert (passed.key, passed.held_back) == ("default.handbook.bbb@d9/0123456789", False)


def test_a_served_version_keeps_its_run_when_that_is_written_after_the_next_one_was_held_back() -> None:
    status = SYNCED.model_copy(update={"candidate": VERSION.model_copy(update={"digest": "d9"}), "run_id": None})
    decision = look(status, records=RecordState(by_key={"default.handbook.aaa@d1": Recorded("run-1", "http://run-1")}))
    assert (decision.status.run_id, decision.status.run_url) == ("run-1", "http://run-1")


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
