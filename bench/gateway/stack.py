"""The processes that the gateway is measured and tested with: stub engines, the gateway itself, the real vector store and indexer.

Each is a context manager that waits until its process answers and ends it afterwards. Ports are free ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
START_SECONDS = 60.0
STOP_SECONDS = 25.0
Json = dict[str, Any]


@dataclass
class Running:
    """A process that serves at `url`; what it prints goes to `log`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def get(self, path: str, timeout: float = 10.0) -> tuple[int, bytes]:
        """Status and body of a GET."""
        return fetch(self.url + path, timeout=timeout)

    def post(
        self, path: str, body: object, timeout: float = 60.0, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of a POST of JSON."""
        return fetch(self.url + path, json.dumps(body).encode(), timeout=timeout, headers=headers)

    def stats(self) -> Json:
        """What a stub engine has counted."""
        stats: Json = json.loads(self.get("/stats")[1])
        return stats


@dataclass
class Gateway(Running):
    """A running gateway and its config file."""

    config: Path

    def write(self, config: Json) -> None:
        """Replace the live file as the backends do: written aside, renamed."""
        aside = self.config.with_suffix(".new")
        aside.write_text(json.dumps(config), encoding="utf-8")
        aside.replace(self.config)

    def wait(self, *, revision: str | None = None, ready: bool = True, seconds: float = START_SECONDS) -> Json:
        """Wait for /readyz to be (un)ready, with this revision; returns the report."""
        end = time.monotonic() + seconds
        while True:
            status, body = self.get("/readyz")
            report: Json = json.loads(body)
            if (status == 200) == ready and revision in (None, report["revision"]):
                return report
            if time.monotonic() > end:
                raise TimeoutError(f"/readyz says {report}; {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)


def fetch(
    url: str, body: bytes | None = None, *, timeout: float = 10.0, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body; errors of HTTP are answers too."""
    request = urllib.request.Request(url, body, {"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path) -> Iterator[Running]:
    """A process of any kind, without an address yet; it and its children are ended by SIGTERM, then by SIGKILL."""
    with log.open("ab") as out:
        started = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **env}, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield Running("", started, log)
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def printed(running: Running, pattern: str) -> str:
    """Wait until the process has printed this; returns the first group."""
    end = time.monotonic() + START_SECONDS
    while True:
        text = running.log.read_text(errors="replace")
        if match := re.search(pattern, text):
            return match[1]
        code = running.process.poll()
        if code is not None or time.monotonic() > end:
            raise RuntimeError(f"{running.process.args!r} did not start (exit code {code}): {text[-2000:]}")
        time.sleep(0.02)


@contextlib.contextmanager
def stub_engine(
    folder: Path,
    *,
    models: Sequence[str] = ("stub",),
    ttft_ms: float = 0,
    itl_ms: float = 0,
    tokens: int = 20,
    answer: str | None = None,
    port: int = 0,
    max_model_len: int = 64000,
) -> Iterator[Running]:
    """A stub engine of known timing, see stub_engine.py."""
    log = _new_log(folder, "engine")
    command = [sys.executable, str(HERE / "stub_engine.py"), "--port", str(port), "--ttft-ms", str(ttft_ms),
               "--itl-ms", str(itl_ms), "--tokens", str(tokens), "--max-model-len", str(max_model_len)]  # fmt: skip
    command += [word for model in models for word in ("--model", model)]
    command += ["--answer", answer] if answer is not None else []
    with process(command, log, {}, folder) as running:
        found = printed(running, r'"port": (\d+)')
        running.url = f"http://127.0.0.1:{found}"
        yield running


def gateway_config(engines: Sequence[str], *, name: str = "chat", model: str = "stub", **more: Any) -> Json:
    """A `GatewayConfig` in JSON."""
    about = {"kind": "RagService", "namespace": "default", "name": name, "uid": "00000000-0000-0000-0000-000000000001"}
    return {"object": about, "revision": "r1", "engines": list(engines), "model": model, **more}


@contextlib.contextmanager
def gateway(folder: Path, config: Json, *, wait: bool = True, **env: str) -> Iterator[Gateway]:
    """The gateway with this configuration, ready unless `wait` is false."""
    log = _new_log(folder, "gateway")
    path = log.with_suffix(".json")
    path.write_text(json.dumps(config), encoding="utf-8")
    env = {**env, "LLMOPS_HOST": "127.0.0.1", "LLMOPS_PORT": "0"}
    with process([sys.executable, "-m", "llmops_services.gateway", str(path)], log, env, folder) as started:
        running = Gateway(printed(started, r"gateway: (http://\S+)"), started.process, log, path)
        if wait:
            running.wait()
        yield running


@contextlib.contextmanager
def vector_store(folder: Path) -> Iterator[Running]:
    """The embedded vector store, its collections under `folder`."""
    log = _new_log(folder, "vectorstore")
    path = log.with_suffix(".json")
    path.write_text(json.dumps({"host": "127.0.0.1", "port": 0, "folder": str(folder / "qdrant")}), encoding="utf-8")
    with process([sys.executable, "-m", "llmops_services.vectorstore", str(path)], log, {}, folder) as running:
        running.url = printed(running, r"vector store: (http://\S+)")
        yield running


@contextlib.contextmanager
def indexing(folder: Path, store: str, name: str, documents: Path, model: str, **spec: Any) -> Iterator[Running]:
    """The indexer at work on a folder of documents; wait for the process to end, its log is in `folder`."""
    log = _new_log(folder, "indexing")
    path = log.with_suffix(".json")
    about = {
        "kind": "EmbeddingIndex",
        "namespace": "default",
        "name": name,
        "uid": "00000000-0000-0000-0000-000000000002",
    }
    full = {
        "sources": [{"name": "documents", "uri": f"file://{documents}"}],
        "embedding": {"model": {"uri": model}},
        **spec,
    }
    path.write_text(json.dumps({"object": about, "spec": full}), encoding="utf-8")
    env = {"QDRANT_URL": store, "LLMOPS_STATE_DIR": str(folder / f"state-{name}"), "MLFLOW_TRACKING_URI": ""}
    with process([sys.executable, "-m", "llmops_services.indexing", str(path)], log, env, folder) as running:
        yield running


def build_index(
    folder: Path, store: str, name: str, documents: Path, model: str, timeout: float = 600, **spec: Any
) -> None:
    """Index a folder of documents and wait for the end."""
    with indexing(folder, store, name, documents, model, **spec) as running:
        if running.process.wait(timeout) != 0:
            log = running.log.read_text(errors="replace")
            raise RuntimeError(f"the indexer ended with {running.process.returncode}: {log[-2000:]}")


def _new_log(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{kind}-{len(list(folder.glob(f'{kind}-*.log')))}.log"
    log.touch()
    return log
