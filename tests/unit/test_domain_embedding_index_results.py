"""What the result of a sync becomes: the status, the version that serves or is held back, and its record."""

from __future__ import annotations

from decisions import ago, over, running, said
from index_decisions import SYNCED, VERSION, known, look, result, with_attempts

from llmops_api.v1alpha1 import EmbeddingIndexStatus
from llmops_api.v1alpha1.embedding_index import IndexVersion, RetrievalScores
from llmops_operator.domain.lineage import IndexRecord, Recorded, RecordState


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
