"""Whole stories on the memory store and backend: the programs are played by the test, everything else is the real control plane."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llmops_api.programs import EngineConfig, GatewayConfig, IndexingConfig, TrainingConfig
from llmops_api.v1alpha1.meta import Progress
from llmops_api.v1alpha1.rag_service import RegisteredModel
from llmops_operator.backends.memory import MemoryBackend, MemoryStore
from llmops_operator.controllers import control_plane, rag_services
from llmops_operator.controllers.control_plane import ControlPlane, Options
from llmops_operator.controllers.lineage.port import NoLineage
from llmops_operator.controllers.ports import Conflict, Key, NotYet, Refused
from llmops_operator.controllers.queue import WorkQueue
from llmops_operator.domain.lineage import (
    Record,
    Recorded,
    RecordState,
    RegisteredVersion,
    Resolution,
    Unrecorded,
    Unresolved,
)
from llmops_operator.domain.timing import Timing, timestamp
from llmops_operator.domain.workload import Lifecycle, Owner, Role, State, Workload

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


class FakeLineage:
    """Lineage that writes at once, or not at all while it is away. The registry holds what a test puts into it."""

    def __init__(self) -> None:
        self.away = False
        self.full = False
        self.records: dict[tuple[str, str], Record] = {}
        self.registry: dict[str, RegisteredVersion] = {}
        self._states: dict[str, dict[str, Recorded | Unrecorded]] = {}
        self._watched: dict[Key, RegisteredModel] = {}
        self._tell: Callable[[Key], None] = lambda key: None

    def start(self, listener: Callable[[Key], None]) -> None:
        self._tell = listener

    def stop(self) -> None:
        self._tell = lambda key: None

    def record(self, key: Key, record: Record) -> bool:
        if self.full:
            return False
        if (record.owner.uid, record.key) not in self.records:
            self.records[record.owner.uid, record.key] = record
            self._write(key, record)
        return True

    def _write(self, key: Key, record: Record) -> None:
        state: Recorded | Unrecorded = Recorded(f"run-{record.key}", f"http://mlflow/{record.key}", f"m-{record.key}")
        if self.away:
            state = Unrecorded("connection refused", "2026-01-01T00:00:00.000Z")
        self._states.setdefault(record.owner.uid, {})[record.key] = state
        self._tell(key)

    def comes_back(self) -> None:
        self.away = False
        for record in self.records.values():
            self._write((record.owner.kind, record.owner.namespace, record.owner.name), record)

    def states(self, uid: str) -> RecordState:
        return RecordState(by_key=dict(self._states.get(uid, {})))

    def resolve(self, key: Key, reference: RegisteredModel | None) -> Resolution | None:
        if reference is None:
            self._watched.pop(key, None)
            return None
        self._watched[key] = reference
        found = self.registry.get(f"{reference.name}@{reference.alias}")
        return found or Unresolved("ModelNotFound", f'the model registry has no alias "{reference.alias}"')

    def register(self, name: str, alias: str, version: str, *, adapter: bool = True) -> None:
        self.registry[f"{name}@{alias}"] = RegisteredVersion(name, version, adapter)
        for key in self._watched:
            self._tell(key)

    def run_url(self, experiment_id: str, run_id: str) -> str | None:
        return f"http://mlflow/{experiment_id}/{run_id}"


@dataclass
class World:
    """Store, backend, lineage, and a control plane over them that can die and be started anew."""

    store: MemoryStore = field(default_factory=MemoryStore)
    backend: MemoryBackend = field(default_factory=MemoryBackend)
    lineage: Any = field(default_factory=FakeLineage)
    options: Options = OPTIONS
    documents: str = "v1"
    plane: ControlPlane | None = None
    task: asyncio.Task[None] | None = None

    def start(self) -> None:
        queue: WorkQueue[Key] = WorkQueue(first=0.005, cap=0.05)
        self.plane = ControlPlane(self.store, self.backend, self.lineage, self.options, queue=queue)
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
        fingerprint = f"{config.spec.embedding.model.uri.rsplit('/', 1)[-1]}{config.spec.chunking.max_tokens}"
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
                elif name.endswith("-drop"):
                    self.backend.finish(name)
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


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.start()
    yield world
    if world.plane:
        await world.die()


async def ready(world: World, *objects: Object) -> World:
    for one in objects or (job(), index(), service()):
        world.store.apply(one)
    await world.play_until(world.all_ready)
    return world


# From nothing to an answer


@pytest.mark.parametrize("order", list(itertools.permutations((0, 1, 2))), ids=str)
@pytest.mark.parametrize("patience", ["at once", "one after the other has settled"])
async def test_any_order_of_creation_ends_in_the_same_state(order: tuple[int, ...], patience: str) -> None:
    ends = []
    for each in ((0, 1, 2), order):
        world = World()
        world.start()
        for position in each:
            world.store.apply((job(), index(), service())[position])
            if patience != "at once":
                await world.settled()
                world.play()
        await world.play_until(world.all_ready)
        ends.append((world.end_state(), sorted(world.backend.starts)))
        await world.die()
    assert ends[0] == ends[1]
    assert sorted(world.backend.starts) == ["assistant-train-1", "chat-engine", "chat-gateway", "handbook-sync-1"]


async def test_the_programs_get_what_their_objects_say(world: World) -> None:
    await ready(world)
    trainer, indexer = world.backend.workload("assistant-train-1"), world.backend.workload("handbook-sync-1")
    engine, gateway = world.backend.workload("chat-engine"), world.backend.workload("chat-gateway")
    assert trainer.command == ("python", "-m", "llmops_services.training", "config/training.json")
    training = TrainingConfig.model_validate_json(trainer.files["training.json"])
    assert training.spec.hyperparameters.max_steps == 5
    assert "maxSteps: 5" in training.manifest
    assert IndexingConfig.model_validate_json(indexer.files["indexing.json"]).object.name == "handbook"
    assert EngineConfig.model_validate_json(engine.files["engine.json"]).adapters
    config = GatewayConfig.model_validate(world.live("chat-gateway", "gateway.json"))
    assert (config.model, config.engines) == ("assistant-v1", ("http://chat-engine",))
    assert [(one.name, one.alias) for one in config.indexes] == [("handbook", "default.handbook")]
    assert (config.mlflow_experiment, config.mlflow_model_id) == ("llmops/default", f"m-{config.revision}")
    roles = [(one.role, one.lifecycle) for one in (trainer, indexer, engine, gateway)]
    assert roles == [
        (Role.TRAINER, Lifecycle.COMPLETES),
        (Role.INDEXER, Lifecycle.COMPLETES),
        (Role.ENGINE, Lifecycle.RUNS),
        (Role.GATEWAY, Lifecycle.RUNS),
    ]


async def test_the_engine_starts_before_the_adapter_and_the_indexes_are_there(world: World) -> None:
    world.store.apply(service())
    await world.settled()
    assert world.backend.names == ["chat-engine"]
    assert 'there is no TrainingJob "assistant"' in world.condition(R, "ModelResolved")["message"]
    assert 'there is no EmbeddingIndex "handbook"' in world.condition(R, "IndexesResolved")["message"]


async def test_the_status_says_what_answers_and_where(world: World) -> None:
    await ready(world)
    status = world.status(R)
    assert status["url"] == "http://chat-gateway"
    assert status["model"] == {"name": "assistant-v1", "version": "1", "uri": "mlflow://assistant/1", "adapter": True}
    assert status["indexes"] == [{"name": "handbook", "collection": "default.handbook.model256"}]
    assert (status["replicas"], status["readyReplicas"], status["phase"]) == (1, 1, "Ready")
    assert status["runUrl"] == f"http://mlflow/{status['revision']}"
    assert world.status(T)["runUrl"] == "http://mlflow/7/run-1"
    assert world.status(I)["runId"] == "run-default.handbook.model256@v1"


async def test_all_conditions_are_written_at_first_sight_and_unknown_where_nobody_has_looked(world: World) -> None:
    world.store.apply(job())
    await world.settled()
    types = [one["type"] for one in world.status(T)["conditions"]]
    assert types == ["Accepted", "Trained", "GatePassed", "Registered", "LineageRecorded", "Suspended", "Succeeded"]
    assert world.condition(T, "Registered")["status"] == "Unknown"


async def test_nothing_is_written_in_a_steady_state(world: World) -> None:
    await ready(world)
    writes, changes = len(world.store.writes), len(world.backend.changes)
    assert world.plane is not None
    for _ in range(3):
        for key in (T, I, R):
            world.plane.queue.add(key)
        await world.settled()
    assert (len(world.store.writes), len(world.backend.changes)) == (writes, changes)


async def test_a_control_plane_that_starts_over_a_steady_state_writes_nothing(world: World) -> None:
    await ready(world)
    await world.die()
    writes, changes = len(world.store.writes), len(world.backend.changes)
    world.lineage = FakeLineage()
    world.start()
    await world.settled()
    assert (len(world.store.writes), len(world.backend.changes)) == (writes, changes)
    assert world.lineage.records == {}


async def test_everything_is_looked_at_again_now_and_then(world: World) -> None:
    await world.die()
    world.options = Options(resync_seconds=0.05, timing=OPTIONS.timing)
    world.start()
    await ready(world)
    world.store.unsubscribe_all()
    world.store.apply(job(suspend=True) | {"metadata": {"name": "later"}})
    await world.until(lambda: world.is_true(("TrainingJob", "default", "later"), "Suspended"))


# Crashes


class Crash:
    """Kills the control plane at its call number `at` to the world outside, before or after the call."""

    def __init__(self, world: World, at: int, *, after: bool) -> None:
        self.at, self.after, self.calls = at, after, 0
        self.dead = asyncio.Event()
        for target, names in (
            (world.store, ("write_status", "set_finalizer", "record_event")),
            (world.backend, ("apply", "remove", "discard_volumes")),
        ):
            for name in names:
                setattr(target, name, self._counted(getattr(target, name)))

    def _counted(self, call: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def counted(*arguments: Any, **options: Any) -> None:
            self.calls += 1
            dies = self.calls == self.at
            if not dies or self.after:
                await call(*arguments, **options)
            if dies:
                self.dead.set()
                await asyncio.Event().wait()

        return counted


async def _story(world: World, crash: Crash) -> None:
    """The quickstart, its first attempt at training lost, ridden out across the death of the control plane."""
    for _ in range(300):
        if crash.dead.is_set():
            crash.dead.clear()
            await world.die()
            world.lineage = FakeLineage()
            world.start()
        await asyncio.sleep(0.004)
        if world.state("assistant-train-1") is State.PENDING:
            world.backend.fail("assistant-train-1", exit_code=75, reason="LostWorker", message="lost")
        world.play()
        assert world.plane is not None
        if world.all_ready() and world.plane.queue.idle and not crash.dead.is_set():
            break
    await world.play_until(world.all_ready)


async def _end_of_story(at: int, *, after: bool) -> tuple[Any, list[str], bool]:
    """The end state, what was started, and whether the control plane made as many calls as to die."""
    world = World()
    crash = Crash(world, at, after=after)
    world.start()
    for one in (service(), index(), job()):
        world.store.apply(one)
    await _story(world, crash)
    end, starts = world.end_state(), sorted(world.backend.starts)
    await world.die()
    return end, starts, crash.calls >= at


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_call_ends_in_the_same_state_with_nothing_started_twice(after: bool) -> None:
    end, starts, _ = await _end_of_story(1_000_000, after=after)
    assert starts == ["assistant-train-1", "assistant-train-2", "chat-engine", "chat-gateway", "handbook-sync-1"]
    for at in itertools.count(1):
        other_end, other_starts, died = await _end_of_story(at, after=after)
        assert other_starts == starts, f"crash at call {at}"
        assert other_end == end, f"crash at call {at}"
        if not died:
            break
    assert at > 50, "the story has become so short that it says little"


async def test_a_write_that_comes_too_late_is_decided_anew(world: World) -> None:
    write, conflicts = world.store.write_status, []

    async def late(key: Key, status: Any, *, resource_version: str) -> None:
        if len(conflicts) < 3:
            conflicts.append(key)
            raise Conflict("it has changed")
        await write(key, status, resource_version=resource_version)

    world.store.write_status = late  # type: ignore[method-assign]
    await ready(world)
    assert len(conflicts) == 3
    assert sorted(world.backend.starts) == ["assistant-train-1", "chat-engine", "chat-gateway", "handbook-sync-1"]


async def training(world: World) -> Key:
    key = world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    return key


async def test_what_takes_its_time_to_go_is_asked_for_again_without_a_word(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    key = await training(world)
    remove, asked = world.backend.remove, []

    async def slow(owner: Owner, name: str) -> None:
        asked.append(name)
        if len(asked) < 3:
            raise NotYet(f"{name} is ending")
        await remove(owner, name)

    world.backend.remove = slow  # type: ignore[method-assign]
    world.store.delete(key)
    await world.until(lambda: not world.backend.names)
    assert asked == ["assistant-train-1"] * 3
    assert not caplog.records


# Training


async def test_a_lost_worker_is_tried_again_after_a_pause_and_both_attempts_are_kept(world: World) -> None:
    world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    world.backend.fail("assistant-train-1", exit_code=75, reason="LostWorker", message="a worker went away")
    await world.until(lambda: "assistant-train-2" in world.backend.names)
    world.train("assistant-train-2")
    await world.until(lambda: world.is_true(T, "Succeeded"))
    ended = [(one["number"], one["reason"], one.get("exitCode")) for one in world.status(T)["attempts"]]
    assert ended == [(1, "LostWorker", 75), (2, "Completed", 0)]
    assert world.backend.names == ["assistant-train-1", "assistant-train-2"]


async def test_the_users_mistake_ends_the_job_for_good_and_its_run(world: World) -> None:
    world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    sentence = "train.jsonl:17 is not JSON: write one object a line"
    world.backend.fail("assistant-train-1", exit_code=64, reason="BadData", message=sentence)
    await world.until(lambda: world.condition(T, "Succeeded")["status"] == "False")
    assert world.condition(T, "Succeeded")["message"] == sentence
    await world.until(lambda: world.is_true(T, "LineageRecorded"))
    assert [record.key for record in world.lineage.records.values()] == ["end:FAILED"]
    await asyncio.sleep(0.1)
    await world.settled()
    assert world.backend.starts == ["assistant-train-1"]
    assert (T, "Warning", "BadData", sentence) in world.store.events


async def test_a_suspended_training_stops_and_goes_on_without_counting_an_attempt(world: World) -> None:
    world.store.apply(job(backoffLimit=0))
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    before = world.backend.workload("assistant-train-1")
    world.backend.run("assistant-train-1")
    world.store.apply(job(backoffLimit=0, suspend=True))
    await world.until(lambda: world.backend.names == [] and world.is_true(T, "Suspended"))
    assert world.status(T)["phase"] == "Suspended"
    assert world.backend.volumes, "the checkpoints stay"
    world.store.apply(job(backoffLimit=0))
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    assert world.backend.workload("assistant-train-1") == before
    world.train("assistant-train-1")
    await world.until(lambda: world.is_true(T, "Succeeded"))
    assert [one["reason"] for one in world.status(T)["attempts"]] == ["Suspended", "Completed"]


async def test_a_version_below_its_gate_is_registered_and_not_served(world: World) -> None:
    for one in (job(), index(), service()):
        world.store.apply(one)
    await world.until(lambda: "assistant-train-1" in world.backend.names and "handbook-sync-1" in world.backend.names)
    world.train("assistant-train-1", gate=False)
    world.sync("handbook-sync-1")
    world.backend.ready("chat-engine")
    await world.until(lambda: world.is_true(T, "Succeeded") and world.is_true(I, "Ready"))
    assert world.condition(T, "GatePassed")["message"] == "Loss fell by 0.3"
    await world.until(lambda: world.condition(R, "Ready")["reason"] == "GateNotPassed")
    assert 'TrainingJob "assistant" did not pass its gate (Loss fell by 0.3)' in world.condition(R, "Ready")["message"]
    assert world.live("chat-engine", "adapters.json") == {"adapters": []}
    assert "chat-gateway" not in world.backend.names


async def test_progress_is_written_into_the_status_only_so_often(world: World) -> None:
    await world.die()
    world.options = Options(timing=Timing(progress_interval=0.15))
    world.start()
    world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    world.backend.run("assistant-train-1", progress=Progress(doing="training", step=0))
    await world.settled()
    before = len(world.store.writes)
    for step in range(1, 11):
        world.backend.run("assistant-train-1", progress=Progress(doing="training", step=step))
        await asyncio.sleep(0.01)
    await world.until(lambda: world.status(T)["progress"]["step"] == 10)
    assert len(world.store.writes) - before <= 3


# Indexes


async def test_an_edit_while_a_sync_runs_starts_it_anew(world: World) -> None:
    world.store.apply(index())
    await world.until(lambda: "handbook-sync-1" in world.backend.names)
    world.backend.run("handbook-sync-1")
    world.store.apply(index(chunking={"maxTokens": 128}))
    await world.until(lambda: world.backend.names == ["handbook-sync-2"])
    world.sync("handbook-sync-2")
    await world.until(lambda: world.is_true(I, "Ready"))
    assert world.status(I)["version"]["collection"] == "default.handbook.model128"
    assert [one["reason"] for one in world.status(I)["attempts"]] == ["SpecChanged", "Completed"]


async def test_a_result_that_arrives_together_with_an_edit_is_taken_and_the_edit_is_synced(world: World) -> None:
    world.store.apply(index())
    await world.until(lambda: "handbook-sync-1" in world.backend.names)
    world.sync("handbook-sync-1")
    world.store.apply(index(chunking={"maxTokens": 128}))
    await world.until(lambda: "handbook-sync-2" in world.backend.names)
    assert world.status(I)["version"]["collection"] == "default.handbook.model256"
    assert not world.is_true(I, "Synced")
    world.sync("handbook-sync-2")
    await world.until(lambda: world.is_true(I, "Ready"))
    assert world.status(I)["version"]["collection"] == "default.handbook.model128"


async def test_a_sync_that_is_asked_for_runs_once(world: World) -> None:
    world.store.apply(index())
    await world.play_until(lambda: world.is_true(I, "Ready"))
    world.store.apply(index({"llmops.dev/sync-requested-at": timestamp(datetime.now(UTC))}))
    await world.until(lambda: "handbook-sync-2" in world.backend.names)
    assert world.is_true(I, "Serving")
    world.documents = "v2"
    await world.play_until(lambda: world.is_true(I, "Ready"))
    assert world.status(I)["version"]["digest"] == "v2"
    assert world.backend.starts == ["handbook-sync-1", "handbook-sync-2"]
    assert world.backend.names == ["handbook-sync-2"]


async def test_an_index_is_refreshed_when_its_time_is_over(world: World) -> None:
    world.store.apply(index(refresh={"everySeconds": 5}))
    await world.until(lambda: "handbook-sync-1" in world.backend.names)
    world.sync("handbook-sync-1")
    await world.until(lambda: world.is_true(I, "Ready"))
    assert world.plane is not None
    world.plane._clock = lambda: datetime.now(UTC) + timedelta(seconds=6)
    world.plane.queue.add(I)
    await world.until(lambda: "handbook-sync-2" in world.backend.names)
    assert world.is_true(I, "Ready"), "what is known goes on being said while it is looked at again"


async def test_a_failed_sync_is_tried_again_while_the_old_version_serves(world: World) -> None:
    await ready(world)
    world.store.apply(index(chunking={"maxTokens": 128}))
    await world.until(lambda: "handbook-sync-2" in world.backend.names)
    world.backend.fail(
        "handbook-sync-2", exit_code=75, reason="VectorStoreUnavailable", message="Qdrant does not answer"
    )
    await world.until(lambda: "handbook-sync-3" in world.backend.names)
    assert world.condition(I, "Synced")["reason"] == "VectorStoreUnavailable"
    assert world.is_true(I, "Serving")
    assert world.is_true(R, "Ready")
    await world.play_until(world.all_ready)
    assert world.status(R)["indexes"] == [{"name": "handbook", "collection": "default.handbook.model128"}]


async def test_a_version_that_fails_its_gate_leaves_the_old_one_serving(world: World) -> None:
    await ready(world)
    world.store.apply(index(chunking={"maxTokens": 128}))
    await world.until(lambda: "handbook-sync-2" in world.backend.names)
    world.sync("handbook-sync-2", gate=False)
    await world.until(lambda: world.condition(I, "GatePassed")["status"] == "False")
    assert world.condition(I, "Ready")["reason"] == "GateNotPassed"
    assert world.condition(I, "Ready")["message"] == "recall@5 is 0.5"
    assert world.is_true(I, "Serving")
    await world.settled()
    assert world.is_true(R, "Ready")
    assert world.status(R)["indexes"] == [{"name": "handbook", "collection": "default.handbook.model256"}]


# Services


async def test_a_new_version_of_the_adapter_is_taken_over_without_restarting_anything(world: World) -> None:
    world.lineage.register("assistant", "champion", "1")
    by_alias = {"model": {"name": "assistant", "alias": "champion"}}
    for one in (index(), service(by_alias)):
        world.store.apply(one)
    await world.play_until(lambda: world.is_true(R, "Ready"))
    starts = list(world.backend.starts)
    world.lineage.register("assistant", "champion", "2")
    await world.until(lambda: world.live("chat-gateway", "gateway.json")["model"] == "assistant-v2")
    loaded = [one["name"] for one in world.live("chat-engine", "adapters.json")["adapters"]]
    assert loaded == ["assistant-v1", "assistant-v2"], "the old one stays until the gateway asks for the new one"
    assert world.condition(R, "Ready")["reason"] == "TakingOver"
    world.answer()
    await world.until(lambda: world.is_true(R, "Ready"))
    assert [one["name"] for one in world.live("chat-engine", "adapters.json")["adapters"]] == ["assistant-v2"]
    assert world.status(R)["model"]["version"] == "2"
    await world.play_until(lambda: world.is_true(R, "LineageRecorded"))
    assert world.backend.starts == starts


async def test_an_alias_that_is_taken_away_leaves_the_last_version_answering(world: World) -> None:
    world.lineage.register("assistant", "champion", "1")
    for one in (index(), service({"model": {"name": "assistant", "alias": "champion"}})):
        world.store.apply(one)
    await world.play_until(lambda: world.is_true(R, "Ready"))
    before = world.backend.workload("chat-engine"), world.backend.workload("chat-gateway")
    world.lineage.registry.clear()
    world.lineage._tell(R)
    await world.until(lambda: world.condition(R, "ModelResolved")["reason"] == "ModelNotFound")
    assert "meanwhile assistant-v1 answers" in world.condition(R, "ModelResolved")["message"]
    assert (world.backend.workload("chat-engine"), world.backend.workload("chat-gateway")) == before


async def test_a_training_job_that_is_deleted_leaves_its_adapter_answering_across_a_restart(world: World) -> None:
    await ready(world)
    before = world.backend.workload("chat-engine"), world.live("chat-gateway", "gateway.json")
    world.store.delete(T)
    await world.until(lambda: world.condition(R, "ModelResolved")["reason"] == "TrainingJobNotFound")
    await world.die()
    world.start()
    await world.settled()
    assert (world.backend.workload("chat-engine"), world.live("chat-gateway", "gateway.json")) == before


async def test_full_weights_become_the_base_of_the_engine(world: World) -> None:
    for one in (job(tuning={"full": {}}), index(), service()):
        world.store.apply(one)
    await world.settled()
    assert "chat-engine" not in world.backend.names, "the base model is not known yet"
    world.train("assistant-train-1", adapter=False)
    await world.play_until(world.all_ready)
    engine = EngineConfig.model_validate_json(world.backend.workload("chat-engine").files["engine.json"])
    assert (engine.base.uri, engine.served_name, engine.adapters) == ("mlflow://assistant/1", "assistant-v1", False)
    assert world.live("chat-gateway", "gateway.json")["model"] == "assistant-v1"


async def test_an_index_is_swapped_live(world: World) -> None:
    await ready(world)
    starts, revision = list(world.backend.starts), world.status(R)["revision"]
    world.store.apply(index(chunking={"maxTokens": 128}))
    await world.play_until(world.all_ready)
    await world.play_until(lambda: world.status(R)["revision"] != revision)
    assert world.status(R)["indexes"] == [{"name": "handbook", "collection": "default.handbook.model128"}]
    assert world.backend.starts == [*starts, "handbook-sync-2"]


async def test_a_prompt_is_changed_live(world: World) -> None:
    await ready(world)
    starts, revision = list(world.backend.starts), world.status(R)["revision"]
    world.store.apply(service(prompt={"system": "Be brief."}))
    await world.until(lambda: world.live("chat-gateway", "gateway.json")["prompt"]["system"] == "Be brief.")
    await world.play_until(world.all_ready)
    assert world.status(R)["revision"] != revision
    assert world.backend.starts == starts


async def test_an_index_that_is_added_and_not_there_leaves_the_others_searched(world: World) -> None:
    await ready(world)
    more = [{"indexRef": {"name": "handbook"}}, {"indexRef": {"name": "manuals"}}]
    world.store.apply(service(indexes=more))
    await world.until(lambda: world.condition(R, "IndexesResolved")["reason"] == "IndexNotFound")
    assert "meanwhile handbook is searched" in world.condition(R, "IndexesResolved")["message"]
    assert [one["name"] for one in world.live("chat-gateway", "gateway.json")["indexes"]] == ["handbook"]


async def test_a_suspended_service_stops_and_comes_back(world: World) -> None:
    await ready(world)
    world.store.apply(service(suspend=True))
    await world.until(lambda: world.is_true(R, "Suspended") and "chat-engine" not in world.backend.names)
    assert "chat-gateway" not in world.backend.names
    assert "url" not in world.status(R)
    assert world.condition(R, "Ready")["reason"] == "Suspended"
    world.store.apply(service())
    await world.play_until(world.all_ready)


async def test_engines_that_run_elsewhere_need_no_engine_of_ours(world: World) -> None:
    endpoint = {"urls": ["http://one:8000/v1", "http://two:8000/v1/"], "name": "llama", "secretRef": {"name": "key"}}
    world.store.apply(index())
    world.store.apply(service(model={"endpoint": endpoint}, replicas=2))
    await world.play_until(lambda: world.is_true(R, "Ready"))
    assert "chat-engine" not in world.backend.names
    gateway = world.backend.workload("chat-gateway")
    config = world.live("chat-gateway", "gateway.json")
    assert (config["engines"], config["model"]) == (["http://one:8000", "http://two:8000"], "llama")
    assert [(one.env, one.name, one.key) for one in gateway.secrets] == [("LLMOPS_ENGINE_API_KEY", "key", "apiKey")]
    assert (gateway.replicas, world.status(R)["readyReplicas"]) == (2, 2)


async def test_why_a_program_does_not_get_well_is_said_in_its_words(world: World) -> None:
    await ready(world)
    world.backend.unready(
        "chat-engine", reason="CrashLoopBackOff", message="restarted 4 times; last line: CUDA out of memory"
    )
    await world.until(lambda: world.condition(R, "Ready")["reason"] == "CrashLoopBackOff")
    assert "CUDA out of memory" in world.condition(R, "EngineReady")["message"]
    assert world.live("chat-gateway", "gateway.json")["engines"] == []
    world.backend.ready("chat-engine")
    world.backend.unready("chat-gateway", reason="PortInUse", message="port 8080 is in use")
    await world.until(lambda: world.condition(R, "Ready")["reason"] == "PortInUse")


# Deletion


@pytest.mark.parametrize("order", list(itertools.permutations((T, I, R))), ids=str)
async def test_whatever_is_deleted_in_whatever_order_nothing_is_left(order: tuple[Key, ...], world: World) -> None:
    await ready(world)
    for key in order:
        world.store.delete(key)
        await world.settled()
        world.play()
    await world.play_until(lambda: world.store.list("EmbeddingIndex") == [])
    assert world.backend.names == []
    assert world.backend.owners() == frozenset()
    assert "handbook-drop" in world.backend.starts


async def test_an_index_that_keeps_its_collections_goes_at_once(world: World) -> None:
    await ready(world, job(), index(deletionPolicy="Retain"), service())
    world.store.delete(I)
    await world.until(lambda: world.store.get(I) is None)
    assert "handbook-drop" not in world.backend.starts


async def test_a_policy_that_is_changed_moves_the_finalizer(world: World) -> None:
    await ready(world)
    manifest = world.store.get(I)
    assert manifest is not None
    assert manifest["metadata"]["finalizers"] == ["llmops.dev/collections"]
    world.store.apply(index(deletionPolicy="Retain"))
    await world.until(lambda: (world.store.get(I) or {})["metadata"]["finalizers"] == [])


async def test_a_vector_store_that_is_away_holds_up_a_deletion_only_so_long(world: World) -> None:
    await ready(world)
    world.store.delete(I)
    for _ in range(2):
        await world.until(lambda: world.state("handbook-drop") is State.PENDING)
        world.backend.fail("handbook-drop", exit_code=75, reason="VectorStoreUnavailable", message="Qdrant is away")
    await world.until(lambda: world.store.get(I) is None)
    events = [event for event in world.store.events if event[2] == "CollectionsLeftBehind"]
    assert len(events) == 1
    assert "Drop the alias default.handbook and the collections default.handbook.* by hand" in events[0][3]


async def test_the_run_of_a_training_that_is_deleted_in_the_middle_is_ended(world: World) -> None:
    world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    world.store.delete(T)
    await world.until(lambda: world.backend.names == [])
    assert [record.key for record in world.lineage.records.values()] == ["end:KILLED"]


async def test_an_object_made_anew_under_the_same_name_begins_anew(world: World) -> None:
    await ready(world)
    world.store.delete(T)
    world.store.apply(job())
    await world.play_until(lambda: world.is_true(T, "Succeeded"))
    assert world.backend.starts.count("assistant-train-1") == 2
    assert world.backend.changes.index(("remove", "assistant-train-1")) < len(world.backend.changes)


async def test_what_runs_for_an_object_that_vanished_while_nobody_looked_is_removed() -> None:
    world = World()
    await world.backend.apply(Owner(*R, "old"), Workload("chat-engine", Role.ENGINE, Lifecycle.RUNS, ("python",)))
    world.start()
    await world.until(lambda: world.backend.names == [])
    await world.die()


# Lineage


async def test_mlflow_being_away_delays_nothing_and_is_said(world: World) -> None:
    world.lineage.away = True
    await ready(world)
    condition = world.condition(R, "LineageRecorded")
    assert (condition["status"], condition["reason"]) == ("False", "MLflowUnavailable")
    assert "connection refused" in condition["message"]
    assert "since 2026-01-01" in condition["message"]
    starts = list(world.backend.starts)
    world.lineage.comes_back()
    await world.until(lambda: world.is_true(R, "LineageRecorded") and world.is_true(I, "LineageRecorded"))
    assert world.live("chat-gateway", "gateway.json")["mlflowModelId"] == f"m-{world.status(R)['revision']}"
    assert world.backend.starts == starts


async def test_a_record_that_finds_no_room_is_brought_again(world: World) -> None:
    await world.die()
    world.options = Options(timing=OPTIONS.timing, lineage_retry_seconds=0.02)
    world.start()
    world.lineage.full = True
    await ready(world)
    assert world.condition(I, "LineageRecorded")["reason"] == "Recording"
    world.lineage.full = False
    await world.until(lambda: world.is_true(I, "LineageRecorded") and world.is_true(R, "LineageRecorded"))


async def test_without_mlflow_everything_works_but_the_registry(world: World) -> None:
    await world.die()
    world.lineage = NoLineage()
    world.start()
    await ready(world)
    assert world.condition(I, "LineageRecorded")["reason"] == "Disabled"
    assert "mlflowExperiment" not in world.live("chat-gateway", "gateway.json")
    world.store.apply(service({"model": {"name": "assistant", "alias": "champion"}}))
    await world.until(lambda: world.condition(R, "ModelResolved")["reason"] == "NoRegistry")
    assert world.lineage.record(R, None) is True
    assert world.lineage.run_url("1", "2") is None


# What must not spread


async def test_an_invalid_object_says_which_field_is_wrong_and_goes_on_when_it_is_corrected(world: World) -> None:
    world.store.apply(job(tuning={"lora": {}, "full": {}}, epochs=3))
    await world.until(lambda: world.condition(T, "Accepted")["status"] == "False")
    said = world.condition(T, "Accepted")["message"]
    assert "spec.tuning: tuning takes exactly one of lora and full" in said
    assert "spec.epochs: unknown field: it belongs to spec.hyperparameters.epochs" in said
    assert world.condition(T, "Succeeded")["reason"] == "Invalid"
    writes = len(world.store.writes)
    assert world.plane is not None
    world.plane.queue.add(T)
    await world.settled()
    assert len(world.store.writes) == writes
    assert [event[2] for event in world.store.events] == ["Invalid"]
    world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    assert world.is_true(T, "Accepted")


async def test_an_object_whose_status_nobody_takes_is_told_of_by_an_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise Refused("the API server takes no status of an object that breaks the schema")

    monkeypatch.setattr(world.store, "write_status", refuse)
    world.store.apply(job(epochs=3))
    await world.until(lambda: bool(world.store.events))
    await world.settled()
    assert [event[2] for event in world.store.events] == ["Invalid"]


async def test_an_invalid_edit_leaves_running_what_runs(world: World) -> None:
    await ready(world)
    names = world.backend.names
    world.store.apply(service(replicas="many"))
    await world.until(lambda: world.condition(R, "Accepted")["status"] == "False")
    assert world.condition(R, "Ready")["status"] == "False"
    assert world.backend.names == names
    assert world.status(R)["url"] == "http://chat-gateway"


async def test_an_object_that_nobody_can_look_at_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = rag_services.look

    def poisoned(one: Any, at: Any) -> Any:
        if one.metadata.name == "poisoned":
            raise RuntimeError("a bug")
        return looked(one, at)

    monkeypatch.setattr(control_plane.rag_services, "look", poisoned)
    world.store.apply(service() | {"metadata": {"name": "poisoned"}})
    await ready(world)
    assert world.status(("RagService", "default", "poisoned")) == {}


async def test_an_object_whose_workload_hangs_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    world = World(options=Options(workers=2, timeout_seconds=0.05, timing=OPTIONS.timing))
    apply = world.backend.apply

    async def hanging(owner: Owner, workload: Workload) -> None:
        if owner.name == "hanging":
            await asyncio.Event().wait()
        await apply(owner, workload)

    world.backend.apply = hanging  # type: ignore[method-assign]
    world.start()
    world.store.apply(job() | {"metadata": {"name": "hanging"}})
    for one in (job(), index(), service()):
        world.store.apply(one)
    end = asyncio.get_running_loop().time() + 10
    said = "TrainingJob default/hanging: not done within 0.05 s"
    while not (world.all_ready() and said in caplog.text):
        assert asyncio.get_running_loop().time() < end, world.describe()
        world.play()
        await asyncio.sleep(0.01)
    await world.die()


async def test_an_object_that_goes_in_the_middle_is_no_error(world: World, caplog: pytest.LogCaptureFixture) -> None:
    write = world.store.write_status

    async def gone(key: Key, status: Any, *, resource_version: str) -> None:
        world.store.delete(key)
        await write(key, status, resource_version=resource_version)

    world.store.write_status = gone  # type: ignore[method-assign]
    world.store.apply(job())
    await world.until(lambda: world.store.get(T) is None)
    await world.settled()
    assert world.backend.starts == []
    assert caplog.text == ""


async def test_a_status_of_another_object_that_cannot_be_read_counts_as_none(world: World) -> None:
    await ready(world)
    manifest = world.store.get(I)
    assert manifest is not None
    await world.store.write_status(I, {"version": 7}, resource_version=manifest["metadata"]["resourceVersion"])
    await world.until(lambda: world.condition(I, "Accepted")["status"] == "False")
    await world.until(lambda: world.condition(R, "IndexesResolved")["reason"] == "IndexNotServing")


async def test_a_service_with_a_finalizer_of_somebody_else_stops_and_waits(world: World) -> None:
    await ready(world)
    for key in (T, R):
        await world.store.set_finalizer(key, "example.org/theirs", present=True)
        world.store.delete(key)
    await world.until(lambda: world.backend.names == ["handbook-sync-1"])
    assert {owner.kind for owner in world.backend.volumes} == {"EmbeddingIndex"}
