"""The operator under test: its configuration, its process, and the objects that it is given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from waiting import wait_until

from harness.api_server import ApiServer

CHECKOUT = Path(__file__).parents[2]
SUMMARIES = {"TrainingJob": "Succeeded", "EmbeddingIndex": "Ready", "RagService": "Ready"}
CHILDREN = "jobs,deployments,services,configmaps,persistentvolumeclaims"
OURS = "app.kubernetes.io/managed-by=llmops-operator"
KINDS = {"TrainingJob": "trainingjobs", "EmbeddingIndex": "embeddingindexes", "RagService": "ragservices"}


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
        server.kubectl.run("delete", plural, "--all", "-n", name, "--wait=false")
        for one in json.loads(server.kubectl.run("get", plural, "-n", name, "-o", "json").stdout or "{}").get(
            "items", ()
        ):
            # No operator is left that would take its finalizer away.
            patch = '{"metadata": {"finalizers": null}}'
            server.kubectl.run("patch", plural, one["metadata"]["name"], "-n", name, "--type=merge", "-p", patch)


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


def chain(namespace: str, name: str) -> list[dict[str, Any]]:
    """A service that answers with a model and an index of its own."""
    job, index, service = (manifest(kind, namespace, name) for kind in KINDS)
    service["spec"]["model"]["adapter"] = {"trainingJobRef": {"name": name}}
    service["spec"]["indexes"] = [{"indexRef": {"name": name}}]
    return [service, index, job]


def objects(server: ApiServer, namespace: str) -> list[dict[str, Any]]:
    """All objects of our kinds."""
    found: list[dict[str, Any]] = server.kubectl.get(",".join(KINDS.values()), "-n", namespace)["items"]
    return found


def children(server: ApiServer, namespace: str) -> dict[str, str]:
    """Names of children with their uids."""
    found = server.kubectl.get(CHILDREN, "-n", namespace, "-l", OURS)["items"]
    return {f"{one['kind']}/{one['metadata']['name']}": one["metadata"]["uid"] for one in found}


def all_settled(server: ApiServer, namespace: str, count: int) -> bool:
    """Whether there are so many objects, and all are Succeeded or Ready."""
    found = objects(server, namespace)
    return len(found) == count and all(map(settled, found))


def settled(one: dict[str, Any]) -> bool:
    """Whether an object is Succeeded or Ready."""
    conditions = {c["type"]: c["status"] for c in (one.get("status") or {}).get("conditions", [])}
    return conditions.get(SUMMARIES[one["kind"]]) == "True"


def not_settled(server: ApiServer, namespace: str) -> str:
    """The statuses of those that are not."""
    return json.dumps([one.get("status") for one in objects(server, namespace) if not settled(one)], indent=1)


class Operator:
    """An operator in a process of its own. Its log is `log`."""

    def __init__(self, folder: Path, kubeconfig: Path, config: dict[str, Any], *, level: str = "info") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log, path = folder / "log", folder / "operator.yaml"
        path.write_text(json.dumps(config))
        program = [sys.executable, "-m", "llmops_operator.backends.kubernetes", "--config", str(path)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*program, "--log-format", "text", "--log-level", level],
                env={**os.environ, "KUBECONFIG": str(kubeconfig)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def says(self, what: str, seconds: float = 60) -> None:
        wait_until(
            lambda: what in self.log.read_text() or self.process.poll() is not None,
            lambda: f"{what!r} in its log: {self._read()}",
            seconds=seconds,
        )
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


Start = Callable[..., Operator]


@contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """Gives what starts operators (as `Operator` is made, but for its folder); those that run after the block are killed."""
    started: list[Operator] = []

    def start(kubeconfig: Path, config: dict[str, Any], **options: Any) -> Operator:
        started.append(Operator(folder / str(len(started)), kubeconfig, config, **options))
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait(10)
