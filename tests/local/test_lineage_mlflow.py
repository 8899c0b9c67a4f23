"""Lineage against a real MLflow server: what is written, that it is written once, and what happens while the server is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow_server import MlflowServer

from llmops_api.lineage import ModelType, Tag
from llmops_api.v1alpha1.embedding_index import IndexVersion, RetrievalScores, SourceDigest
from llmops_api.v1alpha1.rag_service import RegisteredModel
from llmops_operator.controllers.lineage.mlflow import MlflowLineage
from llmops_operator.controllers.ports import Key
from llmops_operator.domain.lineage import (
    EndRecord,
    IndexRecord,
    Recorded,
    RegisteredVersion,
    RunEnd,
    RunRecord,
    ServiceRecord,
    Unrecorded,
    Unresolved,
)
from llmops_operator.domain.workload import Owner

INDEX: Key = ("EmbeddingIndex", "docs", "handbook")
SERVICE: Key = ("RagService", "docs", "chat")


@pytest.fixture
def client(mlflow_server: MlflowServer) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow_server.url, registry_uri=mlflow_server.url)


class News:
    """A lineage thread, and what it told."""

    def __init__(self, lineage: MlflowLineage) -> None:
        self.lineage = lineage
        self.told: list[Key] = []
        self.arrived = asyncio.Event()
        lineage.start(self._hear)

    def _hear(self, key: Key) -> None:
        self.told.append(key)
        self.arrived.set()

    async def until(self, holds: Callable[[], bool], seconds: float = 120) -> None:
        async with asyncio.timeout(seconds):
            while not holds():
                self.arrived.clear()
                await self.arrived.wait()


@pytest.fixture
async def news(mlflow_server: MlflowServer) -> AsyncIterator[News]:
    news = News(MlflowLineage(mlflow_server.url, poll=0.3, retry=0.2, retry_cap=0.5))
    yield news
    await asyncio.to_thread(news.lineage.stop)


def owner(key: Key, uid: str) -> Owner:
    return Owner(*key, uid)


def index_record(uid: str, digest: str = "d1", collection: str = "docs.handbook.abc123") -> IndexRecord:
    version = IndexVersion(
        collection=collection,
        fingerprint="abc123" * 8,
        digest=digest,
        documents=3,
        chunks=9,
        dimensions=384,
        evaluation=RetrievalScores(
            questions=10, uri="file:///data/questions.jsonl", digest="c4" * 32, recall_at5="0.9", mrr="0.75"
        ),
    )
    sources = (SourceDigest(name="hr", uri="file:///data/hr", documents=3, digest="a1" * 32),)
    return IndexRecord(
        owner(INDEX, uid), 2, "kind: EmbeddingIndex\n", version, sources, "pkg://minilm/model", "e5" * 32
    )


def service_record(uid: str, **changes: object) -> ServiceRecord:
    facts: dict[str, object] = {
        "owner": owner(SERVICE, uid),
        "generation": 1,
        "manifest": "kind: RagService\n",
        "revision": "0123456789",
        "model_name": "assistant-v1",
        "model_uri": "pkg://smollm2/model.gguf",
        "registered_uri": None,
        "collections": {"handbook": "docs.handbook.abc123"},
    }
    return ServiceRecord(**{**facts, **changes})  # type: ignore[arg-type]


def recorded(news: News, uid: str, key: str) -> Recorded | None:
    state = news.lineage.states(uid).of(key)
    return state if isinstance(state, Recorded) else None


def experiment_of_docs(client: MlflowClient) -> str:
    """The id of the namespace's experiment, which the first test that needs it makes."""
    known = client.get_experiment_by_name("llmops/docs")
    return str(known.experiment_id) if known else client.create_experiment("llmops/docs")


def runs_of(client: MlflowClient, uid: str) -> list[object]:
    return list(client.search_runs([experiment_of_docs(client)], f"tags.`{Tag.UID.value}` = '{uid}'"))


def register_adapter(client: MlflowClient, name: str, type_: ModelType = ModelType.ADAPTER) -> str:
    """A version of a registered model as the training program makes it; the id of its logged model."""
    experiment_id = experiment_of_docs(client)
    run = client.create_run(experiment_id)
    model = client.create_logged_model(experiment_id, name=name, source_run_id=run.info.run_id, model_type=type_.value)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    client.create_model_version(
        name, source=f"models:/{model.model_id}", run_id=run.info.run_id, model_id=model.model_id
    )
    return str(model.model_id)


async def test_an_index_version_is_a_run_with_its_documents_its_embedding_model_and_the_index(
    news: News, client: MlflowClient
) -> None:
    record = index_record("uid-index-1")
    assert news.lineage.record(INDEX, record)
    await news.until(lambda: recorded(news, "uid-index-1", record.key) is not None)
    assert news.told == [INDEX]
    state = recorded(news, "uid-index-1", record.key)
    assert state is not None
    run = client.get_run(str(state.run_id))
    assert run.info.status == "FINISHED"
    assert run.data.tags[Tag.VERSION.value] == "docs.handbook.abc123"
    assert run.data.tags[Tag.GENERATION.value] == "2"
    assert run.data.metrics == {"recall_at_5": 0.9, "mrr": 0.75}
    assert run.data.params["chunks"] == "9"
    data = {
        one.dataset.name: (one.dataset, [(tag.key, tag.value) for tag in one.tags]) for one in run.inputs.dataset_inputs
    }
    assert data.keys() == {"hr", "questions"}
    documents, context = data["hr"]
    assert (documents.digest, context) == ("a1" * 16, [("mlflow.data.context", "documents")])
    assert json.loads(documents.profile)["sha256"] == "a1" * 32
    questions, context = data["questions"]
    assert (questions.digest, context) == ("c4" * 16, [("mlflow.data.context", "evaluation")])
    assert json.loads(questions.profile)["num_rows"] == 10
    [embedding] = run.inputs.model_inputs
    assert client.get_logged_model(embedding.model_id).tags[Tag.URI.value] == "pkg://minilm/model"
    [output] = run.outputs.model_outputs
    assert output.model_id == state.model_id
    index = client.get_logged_model(output.model_id)
    assert (index.model_type, index.status, index.params["collection"]) == (
        "vector-index",
        LoggedModelStatus.READY,
        "docs.handbook.abc123",
    )
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["manifest.yaml"]
    assert state.run_url == f"{client.tracking_uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


async def test_the_same_record_asked_for_again_by_another_control_plane_is_the_same_run(
    mlflow_server: MlflowServer, news: News, client: MlflowClient
) -> None:
    record = index_record("uid-index-2")
    news.lineage.record(INDEX, record)
    await news.until(lambda: recorded(news, "uid-index-2", record.key) is not None)
    other = News(MlflowLineage(mlflow_server.url))
    other.lineage.record(INDEX, record)
    await other.until(lambda: recorded(other, "uid-index-2", record.key) is not None)
    await asyncio.to_thread(other.lineage.stop)
    assert recorded(other, "uid-index-2", record.key) == recorded(news, "uid-index-2", record.key)
    assert len(runs_of(client, "uid-index-2")) == 1


async def test_a_version_that_is_held_back_is_a_run_with_its_scores_and_nothing_to_use(
    news: News, client: MlflowClient
) -> None:
    served = index_record("uid-index-5")
    held_back = replace(served, gate_passed=False, gate_message="recall@5 is 0.90, below the 0.95", held_back=True)
    for record in (held_back, served):
        news.lineage.record(INDEX, record)
        await news.until(lambda key=record.key: recorded(news, "uid-index-5", key) is not None)  # type: ignore[misc]
    told = recorded(news, "uid-index-5", held_back.key)
    assert told is not None
    run = client.get_run(str(told.run_id))
    assert {key: run.data.tags.get(key) for key in (Tag.HELD_BACK, Tag.GATE, Tag.GATE_MESSAGE)} == {
        Tag.HELD_BACK: "true", Tag.GATE: "failed", Tag.GATE_MESSAGE: "recall@5 is 0.90, below the 0.95",
    }  # fmt: skip
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"recall_at_5": 0.9, "mrr": 0.75})
    assert (run.outputs.model_outputs, told.model_id) == ([], None)
    assert len(runs_of(client, "uid-index-5")) == 2, "when it is served it is recorded as such"


async def test_documents_that_changed_in_place_are_another_run_of_the_same_collection(
    news: News, client: MlflowClient
) -> None:
    for digest in ("d1", "d2"):
        news.lineage.record(INDEX, index_record("uid-index-3", digest))
    await news.until(lambda: len(news.lineage.states("uid-index-3").by_key) == 2)
    assert len(runs_of(client, "uid-index-3")) == 2


async def test_a_run_that_was_written_late_begins_when_its_documents_were_served(
    news: News, client: MlflowClient
) -> None:
    record = index_record("uid-index-6")
    record = replace(record, version=record.version.model_copy(update={"updated_at": "2026-01-02T03:04:05.678Z"}))
    news.lineage.record(INDEX, record)
    await news.until(lambda: recorded(news, "uid-index-6", record.key) is not None)
    told = recorded(news, "uid-index-6", record.key)
    assert told is not None
    started = client.get_run(str(told.run_id)).info.start_time
    assert datetime.fromtimestamp(started / 1000, UTC).isoformat() == "2026-01-02T03:04:05.678000+00:00"


async def test_a_service_revision_points_at_base_model_adapter_and_index(news: News, client: MlflowClient) -> None:
    adapter = register_adapter(client, "assistant")
    index = index_record("uid-index-4", collection="docs.handbook.late")
    collections = {"handbook": "docs.handbook.late"}
    record = service_record("uid-service-1", registered_uri="mlflow://assistant/1", collections=collections)
    news.lineage.record(SERVICE, record)
    news.lineage.record(INDEX, index)
    await news.until(lambda: recorded(news, "uid-service-1", record.key) is not None)
    service, indexed = recorded(news, "uid-service-1", record.key), recorded(news, "uid-index-4", index.key)
    assert service is not None
    assert indexed is not None
    run = client.get_run(str(service.run_id))
    inputs = {one.model_id: client.get_logged_model(one.model_id).model_type for one in run.inputs.model_inputs}
    assert inputs[adapter] == "lora-adapter"
    assert sorted(inputs.values()) == ["base-model", "lora-adapter", "vector-index"]
    [output] = run.outputs.model_outputs
    assert output.model_id == service.model_id
    assert client.get_logged_model(output.model_id).model_type == "rag-service"


async def test_what_never_appears_in_mlflow_is_left_out_after_some_tries(news: News, client: MlflowClient) -> None:
    record = service_record("uid-service-2", collections={"gone": "docs.gone.000"}, registered_uri="mlflow://nobody/7")
    news.lineage.record(SERVICE, record)
    await news.until(lambda: recorded(news, "uid-service-2", record.key) is not None)
    state = recorded(news, "uid-service-2", record.key)
    assert state is not None
    assert len(client.get_run(str(state.run_id)).inputs.model_inputs) == 1


async def test_the_run_of_a_training_is_found_once_it_is_open(news: News, client: MlflowClient) -> None:
    job: Key = ("TrainingJob", "opening", "assistant")
    news.lineage.record(job, RunRecord(owner(job, "uid-early")))
    news.lineage.record(job, RunRecord(owner(job, "uid-never")))
    run = client.create_run(client.create_experiment("llmops/opening"), tags={Tag.UID.value: "uid-early"})
    await news.until(lambda: recorded(news, "uid-early", "run") is not None)
    found = recorded(news, "uid-early", "run")
    assert found is not None
    assert found.run_id == run.info.run_id
    assert str(found.run_url).endswith(f"/runs/{run.info.run_id}")
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    await news.until(lambda: recorded(news, "uid-never", "run") == Recorded(None))


async def test_the_run_of_a_training_that_died_is_ended_and_one_that_ended_is_left_alone(
    news: News, client: MlflowClient
) -> None:
    job: Key = ("TrainingJob", "docs", "assistant")
    experiment_id = experiment_of_docs(client)
    dead = client.create_run(experiment_id, tags={Tag.UID.value: "uid-dead"})
    done = client.create_run(experiment_id, tags={Tag.UID.value: "uid-done"})
    client.set_terminated(done.info.run_id, "FINISHED")
    for uid in ("uid-dead", "uid-done", "uid-without-run"):
        news.lineage.record(job, EndRecord(owner(job, uid), RunEnd.KILLED))
    await news.until(lambda: len(news.told) == 3)
    assert client.get_run(dead.info.run_id).info.status == "KILLED"
    assert client.get_run(done.info.run_id).info.status == "FINISHED"
    ended = recorded(news, "uid-dead", "end:KILLED")
    assert ended is not None
    assert ended.run_id == dead.info.run_id
    assert recorded(news, "uid-without-run", "end:KILLED") == Recorded(None)


async def test_an_alias_is_followed_to_the_version_it_points_at(news: News, client: MlflowClient) -> None:
    reference = RegisteredModel(name="followed", alias="champion")
    assert news.lineage.resolve(SERVICE, reference) is None
    await news.until(lambda: isinstance(news.lineage.resolve(SERVICE, reference), Unresolved))
    missing = news.lineage.resolve(SERVICE, reference)
    assert isinstance(missing, Unresolved)
    assert 'no alias "champion" of "followed"' in missing.message

    register_adapter(client, "followed")
    client.set_registered_model_alias("followed", "champion", "1")
    first = RegisteredVersion("followed", "1", adapter=True)
    await news.until(lambda: news.lineage.resolve(SERVICE, reference) == first)

    register_adapter(client, "followed", ModelType.FULL)
    client.set_registered_model_alias("followed", "champion", "2")
    second = RegisteredVersion("followed", "2", adapter=False)
    await news.until(lambda: news.lineage.resolve(SERVICE, reference) == second)

    told = len(news.told)
    assert news.lineage.resolve(SERVICE, None) is None
    client.set_registered_model_alias("followed", "champion", "1")
    await asyncio.sleep(1)
    assert len(news.told) == told


async def test_a_version_by_number_is_found(news: News, client: MlflowClient) -> None:
    register_adapter(client, "numbered")
    reference = RegisteredModel(name="numbered", version="1")
    news.lineage.resolve(SERVICE, reference)
    await news.until(
        lambda: news.lineage.resolve(SERVICE, reference) == RegisteredVersion("numbered", "1", adapter=True)
    )


async def test_a_deleted_experiment_is_brought_back(news: News, client: MlflowClient) -> None:
    experiment_id = client.create_experiment("llmops/graveyard")
    client.delete_experiment(experiment_id)
    key: Key = ("RagService", "graveyard", "chat")
    record = service_record("uid-graveyard", owner=owner(key, "uid-graveyard"), collections={})
    news.lineage.record(key, record)
    await news.until(lambda: recorded(news, "uid-graveyard", record.key) is not None)
    assert client.get_experiment(experiment_id).lifecycle_stage == "active"


async def test_while_mlflow_is_away_it_is_said_since_when_and_written_afterwards(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path)
    news = News(MlflowLineage(server.url, retry=0.2, retry_cap=0.5, poll=0.3))
    record = index_record("uid-away")
    reference = RegisteredModel(name="away", alias="champion")
    try:
        news.lineage.record(INDEX, record)
        news.lineage.resolve(SERVICE, reference)
        await news.until(lambda: isinstance(news.lineage.states("uid-away").of(record.key), Unrecorded))
        first = news.lineage.states("uid-away").of(record.key)
        assert isinstance(first, Unrecorded)
        assert "refused" in first.error
        await news.until(lambda: isinstance(news.lineage.resolve(SERVICE, reference), Unresolved))
        await asyncio.sleep(1)
        assert news.lineage.states("uid-away").of(record.key) == first
        assert len(news.told) == 2
        await asyncio.to_thread(server.start)
        await news.until(lambda: recorded(news, "uid-away", record.key) is not None)
    finally:
        await asyncio.to_thread(news.lineage.stop)
        server.stop()
