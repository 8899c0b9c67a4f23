"""When a RagService answers: its engine, its gateway, and what is said until then."""

from __future__ import annotations

from dataclasses import replace

import pytest
from decisions import NOW, said
from service_decisions import (
    BASE,
    BY_ALIAS,
    BY_JOB,
    ENGINE,
    V1,
    WANTED,
    gateway_says,
    in_use,
    live,
    look,
    missing_for,
    revision_of,
    serving,
    trained,
)

from llmops_api.v1alpha1 import RagServiceStatus
from llmops_api.v1alpha1.meta import Progress
from llmops_api.v1alpha1.rag_service import ModelInUse
from llmops_operator.domain.lineage import RegisteredVersion, ServiceRecord
from llmops_operator.domain.serving import JobView
from llmops_operator.domain.timing import timestamp
from llmops_operator.domain.workload import State, WorkloadStatus


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


def test_a_gateway_that_nobody_has_asked_since_a_restart_is_what_it_was_unless_something_has_changed() -> None:
    before = look(workloads={"chat-engine": ENGINE, "chat-gateway": gateway_says(revision=WANTED)}).status
    unasked = WorkloadStatus(State.RUNNING, ready_replicas=1, endpoints=("http://gateway",), unasked=True)
    workloads = {"chat-engine": ENGINE, "chat-gateway": unasked}
    assert look(status=before, workloads=workloads).status == before
    edited = look(status=before, workloads=workloads, metadata={"generation": 2})
    assert said(edited, "GatewayReady")[:2] == ("False", "NotReady")
    gone = look(status=before, workloads={**workloads, "chat-gateway": replace(unasked, ready_replicas=0)})
    assert said(gone, "GatewayReady")[:2] == ("False", "NotReady")


ENGINES: dict[str, tuple[WorkloadStatus | None, str, str]] = {
    "is not there": (None, "Starting", "the engine is being started"),
    "does not run yet": (WorkloadStatus(State.PENDING), "Starting", "the engine is being started"),
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
    gone = in_use(ModelInUse(name="base")).model_copy(update={"conditions": (missing_for(11),)})
    decision = look(indexes={"handbook": None}, status=gone,
                    workloads={"chat-engine": ENGINE, "chat-gateway": gateway_says()})  # fmt: skip
    assert decision.status.phase == "Degraded"


def test_a_service_that_waits_for_something_is_waiting() -> None:
    assert look(BY_JOB, job=JobView()).status.phase == "Waiting"


def test_the_engine_waits_for_full_weights() -> None:
    assert said(look(BY_JOB, job=JobView(full=True)), "EngineReady")[1] == "WaitsForModel"


def test_the_engine_starts_with_room_for_an_adapter_that_is_being_trained() -> None:
    low, high = (look(BY_JOB, job=JobView(rank=rank)) for rank in (8, 64))
    assert live(high, "adapters.json") == {"adapters": [], "expectedRank": 64}
    assert low.workloads[0].files == high.workloads[0].files, "another job in its place restarts nothing"
    done = look(BY_JOB, job=replace(trained(), rank=64))
    assert [*live(done, "adapters.json")] == ["adapters"], "that of an adapter that is there, it says itself"


def test_how_far_the_engine_is_is_shown_until_it_is_ready() -> None:
    progress = Progress(doing="loading weights", percent=40)
    loading = WorkloadStatus(State.RUNNING, progress=progress)
    assert look(workloads={"chat-engine": loading}).status.progress == progress
    ready = WorkloadStatus(State.RUNNING, progress=progress, ready_replicas=1)
    assert look(workloads={"chat-engine": ready}).status.progress is None


def test_an_autoscaler_is_told_the_pods_of_the_engine_where_there_are_pods() -> None:
    engine, gateway = (WorkloadStatus(State.RUNNING, selector=f"role={role}") for role in ("engine", "gateway"))
    seen = {"chat-engine": engine, "chat-gateway": gateway}
    assert look(workloads=seen).status.selector == "role=engine"
    assert look({"endpoint": {"urls": ["http://e/v1"], "name": "m"}}, workloads=seen).status.selector == "role=gateway"
    assert "selector" not in look(workloads={"chat-engine": ENGINE}).status.dump()


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
