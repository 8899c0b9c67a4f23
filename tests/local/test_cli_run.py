"""`llmops run`, `up`, `ask`, `lineage` and `down` as processes, on a real daemon, MLflow server, vector store, indexer and gateway.

Only the engine is a stand-in: it streams what it was asked, so that what reaches it can be told from the answer.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import uvicorn
from cli_objects import LLMOPS
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

QUESTION = "How many days of leave may be carried over?"

pytestmark = pytest.mark.timeout(900)


async def _chat(request: Request) -> Response:
    body = await request.json()
    answer = "Eight days [1]." if "Up to 8 days" in json.dumps(body["messages"]) else "Nobody told me."

    async def events() -> AsyncIterator[str]:
        for number, word in enumerate(answer.split(" ")):
            yield _event(body, {"content": " " * bool(number) + word}, None)
        yield _event(body, {}, "stop")
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def _event(body: dict[str, object], delta: dict[str, str], finish: str | None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": body["model"], "choices": [choice]}
    return f"data: {json.dumps(event)}\n\n"


async def _well(_: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": "stand-in", "object": "model"}]})


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    routes = [
        Route("/v1/chat/completions", _chat, methods=["POST"]),
        Route("/v1/models", _well),
        Route("/health", _well),
    ]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, engine: str, tiny_embedding_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("example")
    (folder / "documents").mkdir()
    (folder / "documents" / "leave.md").write_text("# Leave\n\n## Carry-over\n\nUp to 8 days may be carried over.\n")
    (folder / "documents" / "bikes.md").write_text("# Bicycles\n\nA lease costs 40 euros.\n")
    (folder / "index.yaml").write_text(
        f"""\
apiVersion: llmops.dev/v1alpha1
kind: EmbeddingIndex
metadata: {{name: handbook}}
spec:
  sources: [{{name: hr, uri: file://./documents}}]
  chunking: {{maxTokens: 32, overlapTokens: 4}}
  embedding: {{model: {{uri: "file://{tiny_embedding_model}"}}}}
"""
    )
    (folder / "service.yaml").write_text(
        f"""\
apiVersion: llmops.dev/v1alpha1
kind: RagService
metadata: {{name: chat}}
spec:
  model: {{endpoint: {{urls: ["{engine}"], name: stand-in}}}}
  indexes: [{{indexRef: {{name: handbook}}}}]
  retrieval: {{minScore: "-1"}}
"""
    )
    (folder / "ask.txt").write_text(f"{QUESTION}\n")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home") / ".llmops"
    yield home
    llmops(home, "down")
    assert processes_of(home) == []


def llmops(home: Path, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LLMOPS, "--home", str(home), *words],
        capture_output=True, text=True, timeout=timeout, check=False, env=_environment(),
    )  # fmt: skip


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "QDRANT_URL")}


def processes_of(home: Path) -> list[str]:
    """The command lines of processes that were started for a home."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(home) in word for word in words):
            found.append(shlex.join(process.cmdline()))
    return found


def test_a_folder_is_brought_about_asked_and_left_without_a_process(home: Path, folder: Path) -> None:
    done = llmops(home, "run", str(folder), "--once", "--timeout", "9m")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout, "no control codes where there is no terminal"
    lines = done.stdout.splitlines()
    assert any(re.search(r"embeddingindex/handbook: done. 2 documents, \d chunks", line) for line in lines), done.stdout
    assert not any("unchanged" in line for line in lines), "nothing is reused the first time"
    asked = lines.index(QUESTION)
    answered = lines.index("Eight days [1].", asked)
    assert any(re.search(r"\[1\] Leave > .*Carry-over.*lines? \d.* \(.*leave\.md\)", line) for line in lines[answered:])
    assert lines.index("Nobody told me.", answered), "the same question without retrieval"
    tree = lines[next(number for number, line in enumerate(lines) if line.startswith("answer tr-")) :]
    for thing in (
        "document",
        "EmbeddingIndex handbook",
        "RagService chat",
        "dataset hr",
        "embedding model",
        "manifest",
    ):
        assert any(thing in line for line in tree), thing
    assert any(line.startswith("  curl -s http://127.0.0.1:") for line in lines)
    assert any(line.startswith("MLflow is at http://127.0.0.1:") for line in lines)
    assert processes_of(home) == []


def test_a_second_time_says_what_was_reused_and_serves_until_interrupted(home: Path, folder: Path) -> None:
    command = [*LLMOPS, "--home", str(home), "run", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment()) as running:
        try:
            assert running.stdout is not None
            lines = []
            for line in running.stdout:
                lines.append(line.rstrip("\n"))
                if "Ctrl-C stops everything" in line:
                    break
            said = "\n".join(lines)
            assert "handbook: 2 documents unchanged, 0 chunks embedded" in said
            assert "ragservice.llmops.dev/chat unchanged" in said
            _ask_what_is_running(home, next(line.strip() for line in lines if line.startswith("  curl ")))
            _refuse_a_second_daemon(home, running.pid)
        finally:
            running.send_signal(signal.SIGINT)
        assert running.wait(120) == 0
    assert processes_of(home) == []


def _ask_what_is_running(home: Path, curl: str) -> None:
    words = shlex.split(curl)
    assert QUESTION in json.loads(words[words.index("-d") + 1])["messages"][0]["content"]
    asked = llmops(home, "ask", "chat", QUESTION)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("Eight days [1].\n")
    assert "[1] Leave" in asked.stdout
    answer = json.loads(llmops(home, "ask", "rag/chat", "--no-rag", "-o", "json", QUESTION).stdout)
    assert answer["answer"] == "Nobody told me."
    assert answer["citations"] == []
    one = json.loads(llmops(home, "ask", "chat", "--top-k", "1", "-o", "json", *QUESTION.split()).stdout)
    assert one["id"].startswith("tr-")
    assert one["llmops"]["retrieved"] <= 1
    lineage = _when_recorded(home, one["id"])
    assert {"EmbeddingIndex", "RagService", "answer"} <= {node["kind"] for node in lineage["nodes"]}
    ready = llmops(home, "wait", "rag/chat", "ei/handbook", "--for=condition=Ready", "--timeout=10s")
    assert ready.returncode == 0, ready.stderr
    assert llmops(home, "logs", "rag/chat", "--tail", "3").stdout.count("\n") <= 3
    assert llmops(home, "ask", "nothing", "x").returncode == 1


def _when_recorded(home: Path, answer: str) -> dict[str, list[dict[str, str]]]:
    end = time.monotonic() + 60
    while (done := llmops(home, "lineage", f"answer/{answer}", "-o", "json")).returncode != 0:
        assert time.monotonic() < end, done.stderr
        time.sleep(1)
    found: dict[str, list[dict[str, str]]] = json.loads(done.stdout)
    return found


def _refuse_a_second_daemon(home: Path, pid: int) -> None:
    second = llmops(home, "up")
    assert second.returncode == 1
    assert f"process {pid}" in second.stderr
    assert "llmops down" in second.stderr


def test_what_fails_for_good_ends_the_run_with_its_sentence(home: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(
        (folder / "index.yaml").read_text().replace("name: handbook", "name: broken").replace("embedding: {", f"embedding: {{documentPrefix: {'policy ' * 40!r}, ")
        .replace("file://./documents", f"file://{folder}/documents")
    )  # fmt: skip
    done = llmops(home, "run", str(tmp_path), "--timeout", "9m")
    assert done.returncode == 1, done.stdout
    assert "error: embeddingindex.llmops.dev/broken: " in done.stderr
    assert "maxTokens" in done.stderr
    assert processes_of(home) == []
    described = llmops(home, "describe", "ei/broken").stdout
    assert "maxTokens" in described
    assert "llmops logs ei/broken" in described


def test_questions_to_a_service_that_is_down_are_refused_at_once(home: Path) -> None:
    asked = llmops(home, "ask", "chat", "x")
    assert asked.returncode == 1
    assert "start `llmops up`" in asked.stderr or "does not answer yet" in asked.stderr


def test_up_works_on_what_is_applied_until_down(home: Path, folder: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*LLMOPS, "--home", str(home), "up"], stdout=subprocess.PIPE, text=True, env=_environment()
    ) as up:
        try:
            assert up.stdout is not None
            assert any("up. MLflow: http://127.0.0.1:" in line for line in up.stdout), "it never came up"
            (tmp_path / "index.yaml").write_text(
                (folder / "index.yaml")
                .read_text()
                .replace("name: handbook", "name: second")
                .replace("./documents", f"{folder}/documents")
            )
            applied = llmops(home, "apply", "-f", str(tmp_path / "index.yaml"))
            assert (applied.returncode, applied.stderr) == (0, ""), "somebody acts on it"
            ready = llmops(home, "wait", "ei/second", "--for=condition=Ready", "--timeout=5m")
            assert ready.returncode == 0, ready.stderr
            assert llmops(home, "get", "ei/second").stderr == ""
            deleted = llmops(home, "delete", "ei/second", "--timeout=3m")
            assert deleted.stdout.splitlines()[-1] == "embeddingindex.llmops.dev/second deleted", deleted.stderr
            assert llmops(home, "down").stdout == "stopped\n"
            assert up.wait(60) == 0
        finally:
            up.kill()
    assert processes_of(home) == []


def test_down_with_nothing_running_says_so(home: Path, tmp_path: Path) -> None:
    assert llmops(home, "down").stdout == "nothing was running\n"
    assert llmops(tmp_path / "none", "down").stdout == "nothing was running\n"
    assert not (tmp_path / "none").exists()
