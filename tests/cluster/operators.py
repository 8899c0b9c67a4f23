"""The operator under test: its configuration, the process with a backend in memory, and the objects that it is given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.api_server import ApiServer
from llmops_operator.backends.kubernetes.client import Client, Guard
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.process import main
from llmops_operator.backends.memory import MemoryBackend

CHECKOUT = Path(__file__).parents[2]
KINDS = {"TrainingJob": "trainingjobs", "EmbeddingIndex": "embeddingindexes", "RagService": "ragservices"}


class Backend(MemoryBackend):
    """What is started does not run: these tests are about objects."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def make_backend(client: Client, config: OperatorConfig, guard: Guard) -> Backend:
    return Backend()


def configuration(namespace: str, *, lease: float = 15, renew: float = 2, **more: Any) -> dict[str, Any]:
    return {
        "images": {"services": "services:1", "engine": "engine:1"},
        "qdrant": {"url": "http://qdrant:6333"},
        "leaderElection": {"namespace": namespace, "leaseSeconds": lease, "renewSeconds": renew},
        "watchNamespaces": [namespace],
        "port": 0,
        **more,
    }


def install_crds(server: ApiServer) -> None:
    files = [str(file) for file in (CHECKOUT / "crds").glob("*.yaml")]
    server.kubectl("apply", "--server-side", "--force-conflicts", *(part for file in files for part in ("-f", file)))
    server.kubectl.await_crds(*(f"{plural}.llmops.dev" for plural in KINDS.values()))


@contextmanager
def namespace(server: ApiServer) -> Iterator[str]:
    name = f"t-{uuid.uuid4().hex[:8]}"
    server.kubectl("create", "namespace", name)
    yield name
    for plural in KINDS.values():
        server.kubectl.run("delete", plural, "--all", "-n", name, "--timeout=20s")


def manifest(kind: str, namespace: str, name: str, **metadata: Any) -> dict[str, Any]:
    specs: dict[str, Any] = {
        "TrainingJob": {
            "baseModel": {"uri": "pkg://llm/base.gguf"},
            "data": {"train": {"uri": "pkg://data/train.jsonl"}},
            "hyperparameters": {"maxSteps": 5},
            "output": {"model": name},
        },
        "EmbeddingIndex": {
            "sources": [{"name": "docs", "uri": "pkg://docs/docs"}],
            "embedding": {"model": {"uri": "pkg://minilm/model"}},
        },
        "RagService": {
            "model": {"base": {"uri": "pkg://llm/base.gguf"}},
            "indexes": [{"indexRef": {"name": "handbook"}}],
        },
    }
    head = {"apiVersion": "llmops.dev/v1alpha1", "kind": kind}
    return {**head, "metadata": {"name": name, "namespace": namespace, **metadata}, "spec": specs[kind]}


IN_MEMORY = (__file__,)
REAL = ("-m", "llmops_operator.backends.kubernetes")


class Operator:
    """An operator in a process of its own. Its log is `log`."""

    def __init__(
        self, folder: Path, kubeconfig: Path, config: dict[str, Any], program: tuple[str, ...] = IN_MEMORY
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log, path = folder / "log", folder / "operator.yaml"
        path.write_text(json.dumps(config))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "--config", str(path), "--log-format", "text"],
                env={**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(Path(__file__).parent)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def says(self, what: str, seconds: float = 60) -> None:
        until(lambda: what in self.log.read_text() or self.process.poll() is not None, seconds, self._read)
        assert what in self.log.read_text(), self._read()

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """SIGTERM. Returns the exit code."""
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise

    def _read(self) -> str:
        return self.log.read_text()[-4000:]


def until(holds: Callable[[], bool], seconds: float = 60, said: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {said()}"
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(make_backend))
