"""The lineage thread when MLflow refuses, is away or is asked too much; what it writes is tested against a real server elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from rendered_workloads import CONFIG

from llmops_api.v1alpha1.rag_service import RegisteredModel
from llmops_operator.backends.kubernetes import operator
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.controllers.lineage import mlflow as thread
from llmops_operator.controllers.lineage.mlflow import MlflowLineage
from llmops_operator.controllers.lineage.writing import NotYet
from llmops_operator.controllers.ports import Key
from llmops_operator.domain.lineage import (
    EndRecord,
    Record,
    Recorded,
    RegisteredVersion,
    RunEnd,
    Unrecorded,
    Unresolved,
)
from llmops_operator.domain.workload import Owner

KEY: Key = ("TrainingJob", "default", "assistant")
AWAY = MlflowException("API request failed with exception Connection refused")
REFUSED = MlflowException("a param cannot be changed", error_code=INVALID_PARAMETER_VALUE)


def record(uid: str) -> EndRecord:
    return EndRecord(Owner(*KEY, uid), RunEnd.FAILED)


class Mlflow:
    """What MLflow answers: errors first, one a call, then success. `calls` has what it was asked."""

    def __init__(self) -> None:
        self.errors: dict[str, list[Exception]] = {}
        self.registry: Any = RegisteredVersion("assistant", "1", adapter=True)
        self.calls: list[tuple[str, bool]] = []
        self.pages: str | None = None

    def write(self, client: object, record: Record, *, last_try: bool) -> Recorded:
        self.calls.append((record.owner.uid, last_try))
        errors = self.errors.get(record.owner.uid, []) or self.errors.get("*", [])
        if errors:
            raise errors.pop(0)
        return Recorded(f"run-{record.owner.uid}", self.pages and f"{self.pages}/#/runs/{record.owner.uid}")

    def resolve(self, client: object, reference: RegisteredModel) -> Any:
        self.calls.append((reference.name, False))
        if isinstance(self.registry, Exception):
            raise self.registry
        return self.registry


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    server = Mlflow()
    monkeypatch.setattr(thread, "MlflowClient", lambda **options: object())
    monkeypatch.setattr(thread.writing, "write", server.write)
    monkeypatch.setattr(thread, "_resolve", server.resolve)
    return server


class Heard:
    def __init__(self, lineage: MlflowLineage) -> None:
        self.lineage, self.keys, self.news = lineage, [], asyncio.Event()
        lineage.start(self._hear)

    keys: list[Key]

    def _hear(self, key: Key) -> None:
        self.keys.append(key)
        self.news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self.news.clear()
                await self.news.wait()

    def state(self, uid: str) -> Recorded | Unrecorded | None:
        return self.lineage.states(uid).of("end:FAILED")


@pytest.fixture
async def heard(server: Mlflow) -> AsyncIterator[Heard]:
    heard = Heard(MlflowLineage("http://mlflow", retry=0.01, retry_cap=0.03, poll=0.02, capacity=3))
    yield heard
    await asyncio.to_thread(heard.lineage.stop)


async def test_a_record_is_written_once_however_often_it_is_asked_for(server: Mlflow, heard: Heard) -> None:
    assert heard.lineage.record(KEY, record("a"))
    await heard.until(lambda: heard.state("a") == Recorded("run-a"))
    assert heard.lineage.record(KEY, record("a"))
    assert heard.lineage.record(KEY, record("b"))
    await heard.until(lambda: heard.state("b") == Recorded("run-b"))
    assert server.calls == [("a", False), ("b", False)]


async def test_pages_are_where_people_reach_them(server: Mlflow) -> None:
    mlflow = {"trackingUri": "http://mlflow:5000/", "externalUrl": "https://mlflow.example.com/"}
    document = CONFIG.model_dump(by_alias=True, exclude_none=True) | {"mlflow": mlflow}
    lineage, _ = operator._lineage(OperatorConfig.model_validate(document))
    assert isinstance(lineage, MlflowLineage)
    assert lineage.run_url("3", "r") == "https://mlflow.example.com/#/experiments/3/runs/r"
    server.pages = "http://mlflow:5000"
    heard = Heard(lineage)
    lineage.record(KEY, record("a"))
    await heard.until(lambda: heard.state("a") == Recorded("run-a", "https://mlflow.example.com/#/runs/a"))
    await asyncio.to_thread(lineage.stop)


async def test_a_record_that_mlflow_refuses_does_not_hold_up_the_others(server: Mlflow, heard: Heard) -> None:
    server.errors["bad"] = [REFUSED] * 4
    heard.lineage.record(KEY, record("bad"))
    heard.lineage.record(KEY, record("good"))
    await heard.until(lambda: heard.state("good") == Recorded("run-good"))
    await heard.until(lambda: isinstance(heard.state("bad"), Recorded))
    assert server.calls.count(("bad", False)) == 5
    assert len(heard.keys) == 3, "told of the refusal once, and of the two that were written"


async def test_a_fault_of_our_own_is_told_in_its_words(server: Mlflow, heard: Heard) -> None:
    server.errors["bad"] = [ZeroDivisionError()] * 100
    heard.lineage.record(KEY, record("bad"))
    await heard.until(lambda: isinstance(heard.state("bad"), Unrecorded))
    state = heard.state("bad")
    assert isinstance(state, Unrecorded)
    assert state.error == "ZeroDivisionError"


async def test_when_mlflow_is_away_all_wait_and_all_are_told_once(server: Mlflow, heard: Heard) -> None:
    server.errors["*"] = [AWAY] * 6
    heard.lineage.record(KEY, record("a"))
    await heard.until(lambda: isinstance(heard.state("a"), Unrecorded))
    first = heard.state("a")
    heard.lineage.record(KEY, record("b"))
    assert heard.state("b") == first, "who comes later is told since when"
    await heard.until(lambda: isinstance(heard.state("a"), Recorded) and isinstance(heard.state("b"), Recorded))
    assert len(heard.keys) == 4


async def test_what_finds_no_room_is_said_to_the_caller(server: Mlflow, heard: Heard) -> None:
    server.errors["*"] = [AWAY] * 100_000
    assert all(heard.lineage.record(KEY, record(uid)) for uid in "abc")
    assert not heard.lineage.record(KEY, record("d"))
    assert heard.lineage.record(KEY, record("a")), "it is waiting already"


async def test_a_record_that_waits_for_another_is_written_without_it_in_the_end(server: Mlflow, heard: Heard) -> None:
    server.errors["a"] = [NotYet()] * thread.TRIES_FOR_OTHERS
    heard.lineage.record(KEY, record("a"))
    await heard.until(lambda: isinstance(heard.state("a"), Recorded))
    assert server.calls == [("a", False)] * thread.TRIES_FOR_OTHERS + [("a", True)]


async def test_only_so_many_objects_are_remembered(
    server: Mlflow, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread, "REMEMBERED", 2)
    for uid in "abc":
        heard.lineage.record(KEY, record(uid))
    await heard.until(lambda: heard.state("c") is not None)
    assert heard.state("a") is None


async def test_stopping_writes_what_is_waiting(server: Mlflow) -> None:
    lineage = MlflowLineage("http://mlflow")
    for uid in "abc":
        lineage.record(KEY, record(uid))
    lineage.start(lambda key: None)
    await asyncio.to_thread(lineage.stop)
    assert [uid for uid, _ in server.calls] == ["a", "b", "c"]


async def test_stopping_does_not_wait_for_an_mlflow_that_is_away(server: Mlflow) -> None:
    server.errors["*"] = [AWAY] * 100
    heard = Heard(MlflowLineage("http://mlflow", retry=60))
    heard.lineage.record(KEY, record("a"))
    await heard.until(lambda: isinstance(heard.state("a"), Unrecorded))
    async with asyncio.timeout(2):
        await asyncio.to_thread(heard.lineage.stop)


def test_news_for_a_loop_that_is_gone_is_dropped(server: Mlflow) -> None:
    lineage = MlflowLineage("http://mlflow")

    async def begin() -> None:
        lineage.start(lambda key: None)

    asyncio.run(begin())
    lineage.record(KEY, record("a"))
    lineage.stop()
    assert lineage.states("a").of("end:FAILED") == Recorded("run-a")


BY_ALIAS = RegisteredModel(name="assistant", alias="champion")
BY_VERSION = RegisteredModel(name="assistant", version="1")


async def test_a_version_by_number_is_looked_up_once_and_an_alias_again_and_again(server: Mlflow, heard: Heard) -> None:
    heard.lineage.resolve(KEY, BY_VERSION)
    await heard.until(lambda: heard.lineage.resolve(KEY, BY_VERSION) is not None)
    await asyncio.sleep(0.1)
    assert len(server.calls) == 1
    heard.lineage.resolve(KEY, BY_ALIAS)
    await heard.until(lambda: heard.lineage.resolve(KEY, BY_ALIAS) is not None)
    await asyncio.sleep(0.1)
    assert len(server.calls) > 2
    assert len(heard.keys) == 2


async def test_two_services_share_a_look_and_the_last_to_go_ends_it(server: Mlflow, heard: Heard) -> None:
    one, other = ("RagService", "default", "one"), ("RagService", "default", "other")
    for key in (one, other):
        heard.lineage.resolve(key, BY_ALIAS)
    await heard.until(lambda: set(heard.keys) == {one, other})
    heard.lineage.resolve(one, None)
    assert heard.lineage.resolve(other, BY_ALIAS) is not None
    heard.lineage.resolve(other, None)
    assert heard.lineage.resolve(other, None) is None
    await asyncio.sleep(0.05)
    asked = len(server.calls)
    await asyncio.sleep(0.1)
    assert len(server.calls) == asked


async def test_a_version_that_was_known_stays_known_while_the_registry_is_away(server: Mlflow, heard: Heard) -> None:
    heard.lineage.resolve(KEY, BY_ALIAS)
    await heard.until(lambda: heard.lineage.resolve(KEY, BY_ALIAS) is not None)
    server.registry = AWAY
    await asyncio.sleep(0.1)
    assert heard.lineage.resolve(KEY, BY_ALIAS) == RegisteredVersion("assistant", "1", adapter=True)
    other = RegisteredModel(name="other", alias="champion")
    heard.lineage.resolve(("RagService", "default", "other"), other)
    await heard.until(lambda: isinstance(heard.lineage.resolve(("RagService", "default", "other"), other), Unresolved))
    server.registry = RegisteredVersion("assistant", "2", adapter=True)
    await heard.until(lambda: heard.lineage.resolve(KEY, BY_ALIAS) == server.registry)


async def test_a_reference_that_mlflow_refuses_is_said_in_its_words(server: Mlflow, heard: Heard) -> None:
    server.registry = REFUSED
    heard.lineage.resolve(KEY, BY_ALIAS)
    await heard.until(lambda: heard.lineage.resolve(KEY, BY_ALIAS) is not None)
    assert heard.lineage.resolve(KEY, BY_ALIAS) == Unresolved(
        "RegistryRefused", f"MLflow refuses to look up assistant: {REFUSED}"
    )
