"""What makes another revision of a RagService, and which of them are recorded."""

from __future__ import annotations

from typing import Any

import pytest
from decisions import said
from service_decisions import (
    BASE,
    BY_JOB,
    ENGINE,
    PLAIN,
    WANTED,
    gateway_says,
    live,
    look,
    revision_of,
    serving,
    trained,
)

from llmops_operator.domain.lineage import (
    Recorded,
    RecordState,
    ServiceRecord,
    Unrecorded,
)

REVISIONS: dict[str, tuple[dict[str, Any], bool]] = {
    "the prompt": ({"prompt": {"system": "Be brief."}}, True),
    "the retrieval": ({"retrieval": {"topK": 3}}, True),
    "the engine": ({"engine": {"dtype": "float32"}}, True),
    "the base": ({"model": {"base": {"uri": "pkg://llm/other.gguf"}}}, True),
    "the replicas": ({"replicas": 4}, False),
    "who asks": ({"metadata": {"uid": "other"}}, False),
}


@pytest.mark.parametrize(("change", "differs"), REVISIONS.values(), ids=REVISIONS)
def test_the_revision_differs_exactly_with_what_decides_an_answer(change: dict[str, Any], differs: bool) -> None:
    change = dict(change)
    decision = look(change.pop("model", PLAIN), **change)
    assert (revision_of(decision) != WANTED) == differs


def test_another_collection_or_adapter_is_another_revision() -> None:
    one, other = serving("default.handbook.aaa"), serving("default.handbook.bbb")
    made = {revision_of(look(indexes={"handbook": index})) for index in (one, other)}
    made |= {revision_of(look(BY_JOB, job=trained(version=version))) for version in ("1", "2")}
    assert len(made) == 4


def test_an_edit_of_the_prompt_does_not_touch_the_engine() -> None:
    before, after = look(), look(metadata={"generation": 9}, prompt={"system": "Be brief."})
    assert before.workloads[0] == after.workloads[0]
    assert before.workloads[1].files == after.workloads[1].files == {}


LINEAGE: dict[str, tuple[RecordState, tuple[str, str], str | None, bool]] = {
    "waiting": (RecordState(), ("Unknown", "Recording"), None, True),
    "away": (RecordState(by_key={WANTED: Unrecorded("refused", "noon")}), ("False", "MLflowUnavailable"), None, True),
    "written": (
        RecordState(by_key={WANTED: Recorded("run-1", "http://run-1", "m-1")}),
        ("True", "Recorded"),
        "m-1",
        False,
    ),
    "no MLflow": (RecordState(enabled=False), ("Unknown", "Disabled"), None, False),
}


@pytest.mark.parametrize(("records", "expected", "model_id", "asked"), LINEAGE.values(), ids=LINEAGE)
def test_a_revision_that_answers_is_recorded(
    records: RecordState, expected: tuple[str, str], model_id: str | None, asked: bool
) -> None:
    workloads = {"chat-engine": ENGINE, "chat-gateway": gateway_says(revision=WANTED)}
    decision = look(workloads=workloads, records=records)
    assert said(decision, "LineageRecorded")[:2] == expected
    assert decision.status.mlflow_model_id == model_id
    assert live(decision, "gateway.json").get("mlflowModelId") == model_id
    assert (decision.record is not None) == asked
    again = look(workloads=workloads, status=decision.status, records=RecordState(enabled=records.enabled))
    assert again.status == decision.status or expected[0] != "True"


def test_a_revision_that_is_not_the_wanted_one_is_not_recorded() -> None:
    decision = look(workloads={"chat-engine": ENGINE, "chat-gateway": gateway_says()})
    assert decision.status.revision == "0123456789"
    assert decision.record is None


def test_the_record_names_everything_that_answers() -> None:
    ready = look(BY_JOB, job=trained(), indexes={"handbook": serving()})
    report = {"revision": revision_of(ready), "model": "assistant-v1", "indexes": {"handbook": "default.handbook.aaa"}}
    decision = look(
        BY_JOB, job=trained(), indexes={"handbook": serving()}, workloads={"chat-gateway": gateway_says(**report)}
    )
    record = decision.record
    assert isinstance(record, ServiceRecord)
    assert (record.model_uri, record.registered_uri, record.model_name) == (
        BASE,
        "mlflow://assistant/1",
        "assistant-v1",
    )
    assert record.collections == {"handbook": "default.handbook.aaa"}
