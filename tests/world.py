"""The real control plane on the memory store and backend; the programs are played."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fake_lineage import FakeLineage

from llmops_api.programs import IndexingConfig
from llmops_operator.backends.memory import MemoryBackend, MemoryCollections, MemoryStore
from llmops_operator.controllers.control_plane import ControlPlane, Options
from llmops_operator.controllers.ports import Key
from llmops_operator.controllers.queue import WorkQueue
from llmops_operator.domain.timing import Timing
from llmops_operator.domain.workload import State

Object = dict[str, Any]
API = {"apiVersion": "llmops.dev/v1alpha1"}
T: Key = ("TrainingJob", "default", "assistant")
I: Key = ("EmbeddingIndex", "default", "handbook")  # noqa: E741
R: Key = ("RagService", "default", "chat")
OPTIONS = Options(timing=Timing(retry_first=0.03, retry_cap=0.1, progress_interval=0.0, drop_deadline=0.3))


def job(**spec: Any) -> Object:
    base = {
        "baseModel": {"uri": "pkg://llm/base.gguf"},
        "data": {"train": {"uri": "file:///train.jsonl"}},
        "hyperparameters": {"maxSteps": 5},
        "output": {"model": "assistant"},
    }
    return {**API, "kind": "TrainingJob", "metadata": {"name": "assistant"}, "spec": base | spec}


def index(annotations: Mapping[str, str] | None = None, **spec: Any) -> Object:
    base = {"sources": [{"name": "docs", "uri": "file:///docs"}], "embedding": {"model": {"uri": "pkg://minilm/model"}}}
    metadata = {"name": "handbook", "annotations": dict(annotations or {})}
    return {**API, "kind": "EmbeddingIndex", "metadata": metadata, "spec": base | spec}


def service(adapter: Any = None, **spec: Any) -> Object:
    adapter = adapter or {"trainingJobRef": {"name": "assistant"}}
    base = {
        "model": {"base": {"uri": "pkg://llm/base.gguf"}, "adapter": adapter},
        "indexes": [{"indexRef": {"name": "handbook"}}],
    }
    return {**API, "kind": "RagService", "metadata": {"name": "chat"}, "spec": base | spec}


@dataclass
class World:
    """Store, backend, lineage, and a control plane over them that can die and be started anew."""

    store: MemoryStore = field(default_factory=MemoryStore)
    backend: MemoryBackend = field(default_factory=MemoryBackend)
    lineage: Any = field(default_factory=FakeLineage)
    collections: MemoryCollections = field(default_factory=MemoryCollections)
    options: Options = OPTIONS
    documents: str = "v1"
    plane: ControlPlane | None = None
    task: asyncio.Task[None] | None = None

    def start(self) -> None:
        queue: WorkQueue[Key] = WorkQueue(first=0.005, cap=0.05)
        self.plane = ControlPlane(self.store, self.backend, self.lineage, self.collections, self.options, queue=queue)
        self.task = asyncio.create_task(self.plane.run())

    async def die(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        self.store.unsubscribe_all()
        self.backend.unsubscribe_all()
        self.plane = None

    async def until(self, holds: Callable[[], object], what: str = "") -> None:
        """Wait until something holds and the queue is idle."""
        assert self.plane is not None
        end = asyncio.get_running_loop().time() + 10
        while not (holds() and self.plane.queue.idle):
            assert asyncio.get_running_loop().time() < end, f"{what or holds} does not come about: {self.describe()}"
            await asyncio.sleep(0.002)

    async def settled(self) -> None:
        await asyncio.sleep(0.01)
        await self.until(lambda: True)

    def status(self, key: Key) -> Any:
        manifest = self.store.get(key)
        assert manifest is not None, f"there is no {key}"
        return manifest["status"]

    def condition(self, key: Key, type_: str) -> Any:
        conditions = {one["type"]: one for one in self.status(key).get("conditions", [])}
        return conditions.get(type_, {"status": "absent", "reason": "", "message": ""})

    def is_true(self, key: Key, type_: str) -> bool:
        return self.store.get(key) is not None and bool(self.condition(key, type_)["status"] == "True")

    def live(self, workload: str, file: str) -> Any:
        return json.loads(self.backend.workload(workload).live_files[file])

    def describe(self) -> str:
        objects = [one for kind in ("TrainingJob", "EmbeddingIndex", "RagService") for one in self.store.list(kind)]
        return json.dumps({"workloads": self.backend.names, "objects": objects}, indent=1)

    # The programs

    def train(self, name: str, version: str = "1", gate: bool | None = None, *, adapter: bool = True) -> None:
        scores = {"examples": 4, "loss": "2", "perplexity": "7.4", "tokenF1": "0.3"}
        evaluation = {
            "before": {"domain": scores},
            "after": {"domain": scores},
            "gatePassed": gate,
            "gateMessage": "Loss fell by 0.3",
        }
        model = {"name": "assistant", "version": version, "adapter": adapter}
        result = {"runId": "run-1", "experimentId": "7", "steps": 5, "model": model}
        self.backend.finish(name, result | ({} if gate is None else {"evaluation": evaluation}))

    def sync(self, name: str, *, gate: bool | None = None) -> None:
        config = IndexingConfig.model_validate_json(self.backend.workload(name).files["indexing.json"])
        fingerprint = f"{config.spec.chunking.max_tokens:010}"
        self.collections.uids[f"default.handbook.{fingerprint}"] = config.object.uid
        version = {
            "collection": f"default.handbook.{fingerprint}",
            "fingerprint": fingerprint,
            "digest": self.documents,
            "documents": 3,
            "chunks": 9,
        }
        result = {
            "alias": "default.handbook",
            "counts": {"added": 3},
            "gatePassed": gate,
            "gateMessage": "recall@5 is 0.5",
        }
        if gate is False:
            old = self.status(I).get("version")
            self.backend.finish(name, {**result, "serving": old, "candidate": version})
        else:
            self.collections.aliases["default.handbook"] = str(version["collection"])
            self.backend.finish(name, {**result, "serving": version})

    def answer(self, name: str = "chat-gateway") -> None:
        """The gateway has taken over its configuration, as far as the engine has the adapter."""
        config = self.live(name, "gateway.json")
        collections = {}
        for one in config["indexes"]:
            manifest = self.store.get(("EmbeddingIndex", "default", one["name"]))
            collections[one["name"]] = manifest["status"]["version"]["collection"] if manifest else "gone"
        report = {"ready": True, "revision": config["revision"], "model": config["model"], "indexes": collections}
        if self._report(name) != report:
            self.backend.ready(name, report=report)

    def _report(self, name: str) -> Any:
        for owner in self.backend.owners():
            if name in self.backend.observe(owner):
                return self.backend.observe(owner)[name].report
        return None

    def play(self) -> None:
        """Each program that runs does its work."""
        for owner in self.backend.owners():
            for name, status in self.backend.observe(owner).items():
                if status.state in (State.SUCCEEDED, State.FAILED):
                    continue
                if "-train-" in name:
                    self.train(name)
                elif "-sync-" in name:
                    self.sync(name)
                elif name.endswith("-engine") and not status.ready_replicas:
                    self.backend.ready(name)
                elif name.endswith("-gateway"):
                    self.answer(name)

    async def play_until(self, holds: Callable[[], object]) -> None:
        """Play the programs until something holds and nothing more happens."""
        for _ in range(60):
            await self.settled()
            before = len(self.backend.changes), len(self.store.writes)
            self.play()
            await self.settled()
            if holds() and before == (len(self.backend.changes), len(self.store.writes)):
                return
        raise AssertionError(self.describe())

    def state(self, name: str) -> State | None:
        """Where a workload stands; None when there is none of that name."""
        statuses = [self.backend.observe(owner).get(name) for owner in self.backend.owners()]
        return next((status.state for status in statuses if status), None)

    def all_ready(self) -> bool:
        return self.is_true(T, "Succeeded") and self.is_true(I, "Ready") and self.is_true(R, "Ready")

    def end_state(self) -> Any:
        """Everything but times and what is made up anew for each object."""
        objects = {}
        for kind in ("TrainingJob", "EmbeddingIndex", "RagService"):
            for one in self.store.list(kind):
                objects[one["metadata"]["name"]] = _timeless(one["status"])
        files = {
            name: [_timeless(json.loads(text)) for text in self.backend.workload(name).live_files.values()]
            for name in self.backend.names
        }
        return objects, files


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if not key.endswith("Time") and key != "uid"}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


async def ready(world: World, *objects: Object) -> World:
    for one in objects or (job(), index(), service()):
        world.store.apply(one)
    await world.play_until(world.all_ready)
    return world
