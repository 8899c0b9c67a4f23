"""The store in a cluster behaves as the one in memory that the stories are told on; what is pushed back is tried again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import operators
import pytest
from proxies import Answer, Proxy
from waiting import eventually

from harness.api_server import ApiServer
from llmops_operator.backends.kubernetes import client as client_module
from llmops_operator.backends.kubernetes import watching as watching_module
from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.cache import Cache
from llmops_operator.backends.kubernetes.children import CONFIG_MAP
from llmops_operator.backends.kubernetes.client import Client, configuration
from llmops_operator.backends.kubernetes.events import EventRecorder
from llmops_operator.backends.kubernetes.informer import Informer
from llmops_operator.backends.kubernetes.metrics import Metrics
from llmops_operator.backends.kubernetes.store import KubernetesStore, path_of
from llmops_operator.backends.kubernetes.watching import Watching
from llmops_operator.backends.memory import MemoryStore
from llmops_operator.controllers.ports import Conflict, Key, NotFound, Unavailable

NAMES = ("a", "b")
STATUSES = ({"phase": "Pending"}, {"phase": "Ready"}, {"phase": "Failed", "documents": 3})


class Cluster:
    """The store with its watch, and a user's client beside it."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client, self.namespace, self.cache = client, namespace, Cache()
        self.events = EventRecorder(client, "test")
        self.store = KubernetesStore(client, self.cache, self.events)
        self.watching = Watching(client, self.cache, self.store, [namespace])

    def key(self, name: str) -> Key:
        return ("EmbeddingIndex", self.namespace, name)

    async def apply(self, wish: dict[str, Any]) -> None:
        path = path_of("EmbeddingIndex", self.namespace, wish["metadata"]["name"])
        query = {"fieldManager": "user", "force": "true"}
        answer = await self.client.ask(
            "PATCH", path, query=query, body=wish, content_type="application/apply-patch+yaml"
        )
        await self.told(wish["metadata"]["name"], answer)

    async def delete(self, name: str) -> None:
        answer = await self.client.ask("DELETE", path_of("EmbeddingIndex", self.namespace, name))
        await self.told(name, answer if "deletionTimestamp" in answer["metadata"] else None)

    async def told(self, name: str, answer: dict[str, Any] | None) -> None:
        """Wait for the watch."""

        def known() -> bool:
            cached = self.store.get(self.key(name))
            if answer is None or cached is None:
                return answer is None and cached is None
            return int(cached["metadata"]["resourceVersion"]) >= int(answer["metadata"]["resourceVersion"])

        await eventually(known)


@pytest.fixture
def namespace(api_server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    operators.install_crds(api_server)
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    with operators.namespace(api_server) as name:
        yield name


@asynccontextmanager
async def cluster(namespace: str) -> AsyncIterator[Cluster]:
    client = Client(await configuration())
    found = Cluster(client, namespace)
    await found.watching.defined()
    tasks = [asyncio.create_task(found.watching.run()), asyncio.create_task(found.events.run())]
    await found.watching.filled()
    try:
        yield found
    finally:
        ended = [task.exception() for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()
        assert not ended


def view(stored: Any) -> Any:
    """An object but for what each store makes up by itself, and for the API server's defaults."""
    if stored is None:
        return None
    metadata = stored["metadata"]
    deleting = bool(metadata.get("deletionTimestamp"))
    return {
        "generation": None if deleting else metadata["generation"],  # the API server counts the mark as a change
        "note": metadata["annotations"]["note"],
        "finalizers": metadata.get("finalizers", []),
        "deleting": deleting,
        "every": stored["spec"]["refresh"]["everySeconds"],
        "status": {"phase": "Pending", "documents": 0}
        | {name: value for name, value in (stored.get("status") or {}).items() if name in ("phase", "documents")},
    }


async def make(call: tuple[Any, ...], store: Any, key: Key, user: Any) -> str:
    what, *rest = call
    stored = store.get(key)
    try:
        match what:
            case "apply":
                if stored is not None and stored["metadata"].get("deletionTimestamp"):
                    return "refused"
                wish = operators.manifest(*key, annotations={"note": rest[1]})
                wish["spec"]["refresh"] = {"everySeconds": rest[0]}
                await user.apply(wish)
            case "delete":
                await user.delete(key[2])
            case "status":
                version = stored["metadata"]["resourceVersion"] if stored and rest[1] else "1"
                await store.write_status(key, rest[0], resource_version=version)
            case "finalizer":
                if stored is not None and stored["metadata"].get("deletionTimestamp") and rest[1]:
                    return "refused"  # the API server takes no new ones then, and no decision asks for one
                await store.set_finalizer(key, rest[0], present=rest[1])
    except (Conflict, NotFound) as error:
        return type(error).__name__
    return "done"


class MemoryUser:
    def __init__(self, store: MemoryStore, namespace: str) -> None:
        self._store, self._namespace = store, namespace

    async def apply(self, wish: dict[str, Any]) -> None:
        self._store.apply(wish)

    async def delete(self, name: str) -> None:
        self._store.delete(("EmbeddingIndex", self._namespace, name))


def some_call(dice: random.Random) -> tuple[Any, ...]:
    finalizer = dice.choice(["llmops.dev/collections", "example.org/f"])
    return dice.choice(
        [
            ("apply", dice.choice([5, 60]), dice.choice("xy")),
            ("delete",),
            ("status", dice.choice(STATUSES), dice.random() < 0.7),
            ("finalizer", finalizer, dice.random() < 0.6),
        ]
    )


@pytest.mark.parametrize("seed", range(4))
async def test_the_same_calls_have_the_same_answers_and_leave_the_same_objects(namespace: str, seed: int) -> None:
    dice, memory = random.Random(seed), MemoryStore()
    for _ in range(7):  # so that "1" is nobody's version
        memory.apply(operators.manifest("EmbeddingIndex", namespace, "z"))
    async with cluster(namespace) as real:
        told: set[Key] = set()
        real.store.subscribe(told.add)
        for _ in range(40):
            name, call = dice.choice(NAMES), some_call(dice)
            key = real.key(name)
            before = view(real.store.get(key))
            told.clear()
            answers = (
                await make(call, memory, key, MemoryUser(memory, namespace)),
                await make(call, real.store, key, real),
            )
            assert answers[0] == answers[1], call
            assert view(memory.get(key)) == view(real.store.get(key)), call
            assert view(real.store.get(key)) == before or key in told, call
            assert {*real.store.keys()} == {*memory.keys()} - {real.key("z")}


async def test_what_vanished_untold_is_found(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching_module, "COMPARE_SECONDS", 0.3)
    async with cluster(namespace) as real:
        await real.apply(operators.manifest("EmbeddingIndex", namespace, "a"))
        await eventually(lambda: not real.watching._listed_anew.is_set())
        ghost = {**operators.manifest("EmbeddingIndex", namespace, "ghost")}
        ghost["metadata"] |= {"resourceVersion": "2", "uid": "u"}
        told: list[Key] = []
        real.store.subscribe(told.append)
        real.store.seen(ghost)
        await eventually(lambda: real.store.get(real.key("ghost")) is None)
        assert real.store.get(real.key("a")) is not None
        assert told.count(real.key("ghost")) == 2


async def test_a_long_list_is_taken_in_parts_and_watched_from_there(
    namespace: str, api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE", 2)
    asked: list[str] = []

    class Counting(Client):
        async def call_api(self, method: str, url: str, *arguments: Any, **options: Any) -> Any:
            asked.append(url)
            return await super().call_api(method, url, *arguments, **options)

    def make(name: str) -> None:
        api_server.kubectl("create", "configmap", name, "-n", namespace)
        api_server.kubectl("label", "configmap", name, "parts=yes", "-n", namespace)

    for number in range(5):
        make(f"c-{number}")
    client, cache = Counting(await configuration()), Cache()
    heard: list[Any] = []
    listening = Informer(
        Api(client), CONFIG_MAP, cache, selector="parts=yes", namespace=namespace, changed=heard.append, gone=heard.append
    )  # fmt: skip
    watch = asyncio.create_task(listening.run())
    try:
        await eventually(listening.synced.is_set)
        assert cache.count("ConfigMap") == 5
        assert len([url for url in asked if "limit=2" in url]) == 3
        await asyncio.to_thread(make, "c-5")
        await eventually(lambda: cache.count("ConfigMap") == 6)
        assert len(heard) == 6
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await client.close()


async def test_it_is_filled_when_all_that_is_there_is_known(
    namespace: str, api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        api_server.kubectl.apply(operators.manifest("EmbeddingIndex", namespace, name))
    async with cluster(namespace) as real:
        assert set(real.store.keys()) == {real.key("a"), real.key("b")}
    client = Client(await configuration())
    blind = Cluster(client, namespace)
    filled = asyncio.create_task(blind.watching.filled())
    await asyncio.sleep(1)
    assert not filled.done(), "nothing is known yet"
    assert await blind.store.exists(blind.key("a"))
    await asyncio.to_thread(api_server.kubectl, "delete", "embeddingindexes", "--all", "-n", namespace)
    await filled  # what has gone before it was seen is not waited for
    assert not await blind.store.exists(blind.key("a"))
    await asyncio.to_thread(api_server.kubectl.apply, operators.manifest("EmbeddingIndex", namespace, "c"))
    monkeypatch.setattr(watching_module, "STALLED_SECONDS", 0.6)
    began = asyncio.get_running_loop().time()
    await blind.watching.filled()  # for ever it does not wait
    assert asyncio.get_running_loop().time() - began > 0.6
    await client.close()


async def test_the_watch_goes_on_after_the_api_server_was_away(namespace: str, api_server: ApiServer) -> None:
    async with cluster(namespace) as real:
        await real.apply(operators.manifest("EmbeddingIndex", namespace, "a"))
        await asyncio.to_thread(api_server.restart)
        await real.apply(operators.manifest("EmbeddingIndex", namespace, "b"))
        await real.delete("a")
        assert real.watching.alive


async def test_the_same_event_is_counted_and_a_long_one_cut(namespace: str, api_server: ApiServer) -> None:
    async with cluster(namespace) as real:
        for number, message in enumerate(["no such file", "no such file", "no such file", "ä" * 2000]):
            note = {"example.com/note": str(number)}
            await real.apply(operators.manifest("EmbeddingIndex", namespace, "a", annotations=note))
            await real.store.record_event(real.key("a"), type_="Warning", reason="Missing", message=message)
        await real.events.flush(10)
        found = api_server.kubectl.get("events.events.k8s.io", "-n", namespace)["items"]
        assert sorted(one.get("series", {}).get("count", 1) for one in found) == [1, 3]
        assert all(len(one["note"].encode()) <= 1024 for one in found)
        assert {one["regarding"]["name"] for one in found} == {"a"}
        assert "no such file" in api_server.kubectl("describe", "embeddingindex", "a", "-n", namespace)


async def test_an_event_about_the_same_version_of_an_object_is_told_once_and_not_again_after_a_restart(
    namespace: str, api_server: ApiServer
) -> None:
    api_server.kubectl.apply(operators.manifest("EmbeddingIndex", namespace, "a"))
    for _ in range(2):
        async with cluster(namespace) as real:
            for _ in range(2):
                await real.store.record_event(real.key("a"), type_="Warning", reason="Invalid", message="no")
            await real.events.flush(10)
        [event] = api_server.kubectl.get("events.events.k8s.io", "-n", namespace)["items"]
        assert event.get("series") is None


async def test_a_write_that_is_pushed_back_is_made_once_after_the_pause_asked_for(
    namespace: str, api_server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api_server.kubectl.apply(operators.manifest("EmbeddingIndex", namespace, "a"))
    answers: list[Answer] = []
    asked: list[str] = []

    def instead(method: str, path: str) -> Answer | None:
        asked.append(path)
        return answers.pop(0) if answers else None

    with Proxy(api_server).running(tmp_path) as proxy:
        proxy.instead = instead
        monkeypatch.setenv("KUBECONFIG", str(proxy.kubeconfig))
        metrics = Metrics()
        client = Client(await configuration(), meter=metrics)
        found = Cluster(client, namespace)
        key = found.key("a")
        found.store.seen(await client.ask("GET", path_of(*key)))
        version = found.store.get(key)["metadata"]["resourceVersion"]  # type: ignore[index]
        answers[:] = [(429, {"Retry-After": "1"}), (503, {})]
        began = asyncio.get_running_loop().time()
        await found.store.write_status(key, {"phase": "Ready"}, resource_version=version)
        assert asyncio.get_running_loop().time() - began >= 1
        assert len(asked) == 3
        assert found.store.get(key)["status"]["phase"] == "Ready"  # type: ignore[index]
        counted = {
            sample.labels["code"]: sample.value
            for sample in next(iter(metrics._writes.collect())).samples
            if sample.name.endswith("_total")
        }
        assert counted == {"429": 1, "503": 1, "200": 1}
        answers[:] = [(409, {})]
        with pytest.raises(Conflict):
            await found.store.write_status(key, {}, resource_version=version)
        answers[:] = [(500, {})] * 5
        with pytest.raises(Unavailable, match="overloaded or failing"):
            await found.store.write_status(key, {}, resource_version=version)
        assert len(asked) == 9
        answers[:] = [(403, {})]
        with pytest.raises(Unavailable, match="the operator may not"):
            await found.store.write_status(key, {}, resource_version=version)
        await client.close()
        await asyncio.sleep(0.1)  # a moment later the connections are closed
