"""The operator while the API server is in trouble, while people interfere, and what it lets nobody read."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import operators
import pytest
from operators import (
    CHILDREN,
    KINDS,
    Operator,
    Start,
    all_settled,
    chain,
    children,
    configuration,
    manifest,
    not_settled,
    objects,
)
from proxies import Answer, Proxy, Write
from stand_in import standing_in
from waiting import wait_until

from harness import addons
from harness.api_server import ApiServer, running_api_server
from harness.state import free_ports
from llmops_api.names import COLLECTION_METADATA
from llmops_operator.backends.kubernetes.events import PAUSES
from llmops_services.vectorstore.process import StoreProcess


@pytest.fixture
def namespace(api_server: ApiServer) -> Iterator[str]:
    operators.install_crds(api_server)
    with operators.namespace(api_server) as name:
        yield name


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with operators.starting(tmp_path) as begin:

        def start_one(kubeconfig: Path, config: dict[str, Any], **options: Any) -> Operator:
            operator = begin(kubeconfig, config, **options)
            operator.says(" leads")
            return operator

        yield start_one


# The API server in trouble

PUSHED_BACK: list[Answer] = [(409, {}), (429, {"Retry-After": "1"}), (429, {}), (500, {}), (503, {})]


async def test_nothing_is_lost_or_written_twice_while_the_api_server_restarts_pushes_back_and_cuts_watches(
    api_server: ApiServer, namespace: str, start: Start, tmp_path: Path
) -> None:
    dice, rounds, each = random.Random(1), 2, 3
    with Proxy(api_server).running(tmp_path) as proxy:
        operator = start(proxy.kubeconfig, configuration(namespace, lease=60, resyncSeconds=10))
        proxy.instead = lambda method, path: dice.choice(PUSHED_BACK) if dice.random() < 0.2 else None
        proxy.loses = lambda method, path: dice.random() < 0.1
        async with standing_in(api_server, namespace=namespace, pause=0.5):
            for number in range(rounds):
                for i in range(each):
                    api_server.kubectl.apply(*chain(namespace, f"o-{number}-{i}"))
                    await asyncio.sleep(0.5)
                    proxy.cut()
                await asyncio.to_thread(api_server.restart)
            proxy.instead = lambda method, path: None
            proxy.loses = lambda method, path: False
            everything = 3 * rounds * each
            unsettled = partial(not_settled, api_server, namespace)
            await asyncio.to_thread(
                wait_until, lambda: all_settled(api_server, namespace, everything), unsettled, seconds=200
            )
            made = children(api_server, namespace)
            await quiet(proxy)
            before = len(writes(proxy))
            await asyncio.sleep(15)  # a resync is in it
            assert [f"{one.method} {one.path}" for one in writes(proxy)[before:]] == []
    assert operator.process.poll() is None
    assert "Traceback" not in operator.log.read_text()
    assert made == children(api_server, namespace)
    names = [f"o-{number}-{i}" for number in range(rounds) for i in range(each)]
    assert {name for name in made if name.startswith(("Job", "Deployment"))} == {
        f"{kind}/{name}-{part}"
        for name in names
        for kind, part in (
            ("Job", "train-1"),
            ("Job", "sync-1"),
            ("Deployment", "engine"),
            ("Deployment", "gateway"),
        )
    }
    for one in objects(api_server, namespace):
        assert [attempt["number"] for attempt in one["status"].get("attempts", [])] in ([], [1])
    assert twice(proxy.writes) == []
    events = api_server.kubectl.get("events.events.k8s.io", "-n", namespace)["items"]
    told = Counter((one["regarding"]["uid"], one["reason"], one["note"]) for one in events)
    assert not [one for one, count in told.items() if count > 1]


def writes(proxy: Proxy) -> list[Write]:
    return [one for one in proxy.writes if "/leases/" not in one.path]


async def quiet(proxy: Proxy) -> None:
    """Wait until nothing is written for longer than an event waits that could not be written."""
    async with asyncio.timeout(180):
        before = -1
        while before != len(writes(proxy)):
            before = len(writes(proxy))
            await asyncio.sleep(PAUSES[-1] + 4)


def twice(made: list[Write]) -> list[str]:
    """What was written although it stood there already: of a status the words count, not the version it was written on. That the same
    is asked for again when an answer was lost changes nothing, and does not count.
    """
    last: dict[str, Any] = {}
    versions: dict[str, str] = {}
    found = []
    for one in made:
        if not 200 <= one.code < 300 or "/leases/" in one.path:
            continue
        said = json.loads(one.body)
        if one.path.endswith("/status"):
            said = next(part["value"] for part in said if part["path"] == "/status")
        where = one.path.removesuffix("/status")
        if last.get(one.path) == said and one.version != versions[where]:
            found.append(f"{one.method} {one.path} {said}")
        last[one.path] = said
        versions[where] = one.version
    return found


# People who interfere


@pytest.fixture(scope="module")
def with_controllers() -> Iterator[ApiServer]:
    with running_api_server(controllers=True) as server:
        operators.install_crds(server)
        yield server


async def test_children_that_are_edited_or_deleted_are_as_they_were_again_and_nothing_else_changes(
    with_controllers: ApiServer, start: Start
) -> None:
    server = with_controllers
    with operators.namespace(server) as namespace:
        server.kubectl.apply(*chain(namespace, "a"))
        operator = start(server.kubeconfig, configuration(namespace))
        running = {"Deployment/a-engine", "Job/a-sync-1", "Job/a-train-1"}
        wait_until(lambda: running <= children(server, namespace).keys(), f"{running}", seconds=60)
        await asyncio.sleep(2)
        before = children(server, namespace)
        edit = {"spec": {"template": {"spec": {"containers": [{"name": "engine", "image": "other"}]}}}}
        server.kubectl("patch", "deployment", "a-engine", "-n", namespace, "-p", json.dumps(edit))
        server.kubectl("patch", "configmap", "a-engine", "-n", namespace, "-p", '{"data": {"engine.json": "{}"}}')

        def repaired() -> bool:
            deployment = server.kubectl.get("deployment", "a-engine", "-n", namespace)
            files = server.kubectl.get("configmap", "a-engine", "-n", namespace)["data"]
            image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
            return image == "engine:1" and files["engine.json"] != "{}"

        wait_until(repaired, "the children as they were", seconds=60)
        assert children(server, namespace) == before
        for name in before:
            if not name.startswith("PersistentVolumeClaim"):  # the Jobs' pods use them: they go when those have gone
                server.kubectl("delete", name, "-n", namespace, "--cascade=foreground", "--wait=false")

        def all_there_again() -> bool:
            now = children(server, namespace)
            return now.keys() == before.keys() and all(
                now[name] != uid for name, uid in before.items() if not name.startswith("PersistentVolumeClaim")
            )

        wait_until(all_there_again, "the children again", seconds=60)
        for one in objects(server, namespace):
            assert [attempt["number"] for attempt in one["status"].get("attempts", [])] in ([], [1])
        assert operator.end() == 0
        assert "Traceback" not in operator.log.read_text()


def reasons(server: ApiServer, namespace: str) -> set[str]:
    """Of all conditions of all objects."""
    return {
        one["reason"] for each in objects(server, namespace) for one in each.get("status", {}).get("conditions", ())
    }


def test_a_training_that_waits_for_kuberay_says_so_and_starts_by_itself_when_that_is_there(
    with_controllers: ApiServer, start: Start
) -> None:
    server = with_controllers
    with operators.namespace(server) as namespace:
        training = manifest("TrainingJob", namespace, "a")
        training["spec"]["compute"] = {"workers": 2}
        server.kubectl.apply(training)
        operator = start(server.kubeconfig, configuration(namespace))
        wait_until(lambda: "KubeRayMissing" in reasons(server, namespace), "a word about KubeRay", seconds=60)
        addons.install_kuberay_crds(server.kubectl)
        server.kubectl.await_crds("rayjobs.ray.io")
        made = ("get", "rayjob", "a-train-1", "-n", namespace)
        wait_until(lambda: server.kubectl.run(*made).returncode == 0, "the RayJob", seconds=60)
        wait_until(lambda: "KubeRayMissing" not in reasons(server, namespace), "no such word any more", seconds=60)
        assert operator.end() == 0
        assert "Traceback" not in operator.log.read_text()


def test_a_job_that_kueue_holds_back_is_left_so_says_so_and_goes_on_when_kueue_lets_it(
    with_controllers: ApiServer, start: Start
) -> None:
    server, queue = with_controllers, {"kueue.x-k8s.io/queue-name": "gpus"}
    with operators.namespace(server) as namespace:
        server.kubectl.apply(manifest("TrainingJob", namespace, "a", labels=queue))
        operator = start(server.kubeconfig, configuration(namespace))
        wait_until(lambda: "Job/a-train-1" in children(server, namespace), "the Job", seconds=60)
        place = ("a-train-1", "-n", namespace)

        def suspend(value: bool) -> None:
            patch = json.dumps({"spec": {"suspend": value}})
            server.kubectl("patch", "job", *place, "--field-manager=kueue", "--type=merge", "-p", patch)

        def operator_has_applied_it_again() -> None:
            """It brings a file back that was deleted."""
            server.kubectl("delete", "configmap", *place)
            wait_until(lambda: "ConfigMap/a-train-1" in children(server, namespace), "the file again", seconds=60)

        def job() -> dict[str, Any]:
            found: dict[str, Any] = server.kubectl.get("job", *place, "--show-managed-fields")
            return found

        begun = job()
        assert queue.items() <= begun["metadata"]["labels"].items()
        for held in (True, False):
            suspend(held)
            wait_until(lambda: ("Queued" in reasons(server, namespace)) is held, f"Queued: {held}", seconds=60)  # noqa: B023
            operator_has_applied_it_again()
            now = job()
            assert now["spec"]["suspend"] is held
            setters = [
                one for one in now["metadata"]["managedFields"] if "f:suspend" in one["fieldsV1"].get("f:spec", {})
            ]
            assert [one["manager"] for one in setters] == ["kueue"]
        assert now["metadata"]["uid"] == begun["metadata"]["uid"]
        [one] = objects(server, namespace)
        assert [attempt["number"] for attempt in one["status"]["attempts"]] == [1]
        assert operator.end() == 0


def test_a_deleted_namespace_goes_with_all_that_is_in_it_and_the_others_are_served_on(
    with_controllers: ApiServer, start: Start, tmp_path: Path
) -> None:
    server, literal = with_controllers, f"--from-literal=QDRANT_API_KEY={QDRANT_KEY}"
    server.kubectl("create", "secret", "generic", "connection", "-n", "default", literal)

    def there(name: str, namespace: str) -> bool:
        wanted = {f"Deployment/{name}-engine", f"Job/{name}-sync-1", f"Job/{name}-train-1"}
        return wanted <= children(server, namespace).keys()

    with (
        operators.namespace(server) as going,
        operators.namespace(server) as staying,
        StoreProcess(tmp_path / "store", {"QDRANT_API_KEY": QDRANT_KEY}) as store,
        httpx.Client(base_url=store.url, headers={"api-key": QDRANT_KEY}, trust_env=False) as qdrant,
    ):
        wish = chain(going, "a")
        server.kubectl.apply(*wish)
        config = configuration("default", qdrant={"url": store.url}, connectionSecret={"name": "connection"})
        operator = start(server.kubeconfig, {**config, "watchNamespaces": []}, level="debug")
        wait_until(lambda: there("a", going), "the children of a", seconds=60)
        own, others = f"{going}.a.0123456789", f"{going}.a.abcdef0123"
        uid = server.kubectl.get("embeddingindex", "a", "-n", going)["metadata"]["uid"]
        make_collection(qdrant, own, uid)
        make_collection(qdrant, others, "another")
        server.kubectl("delete", "namespace", going, "--timeout=60s")
        assert qdrant.get("/collections").json()["result"]["collections"] == [{"name": others}]
        server.kubectl.apply(*chain(staying, "b"))
        wait_until(lambda: there("b", staying), "the children of b", seconds=60)
        server.kubectl("create", "namespace", going)
        server.kubectl.apply(*wish)
        wait_until(lambda: there("a", going), "the children of a", seconds=60)
        assert operator.end() == 0
        said = operator.log.read_text()
        assert "Traceback" not in said
        assert "the operator may not" not in said
        assert f"dropped {own}" in said
        assert QDRANT_KEY not in said


def test_an_index_whose_collections_cannot_be_dropped_says_why_and_goes_when_that_is_mended(
    with_controllers: ApiServer, start: Start, tmp_path: Path
) -> None:
    server = with_controllers
    with (
        operators.namespace(server) as namespace,
        StoreProcess(tmp_path / "store", {"QDRANT_API_KEY": QDRANT_KEY}) as store,
        httpx.Client(base_url=store.url, headers={"api-key": QDRANT_KEY}, trust_env=False) as qdrant,
    ):
        secret = ("secret", "generic", "connection", "-n", namespace)
        server.kubectl("create", *secret, "--from-literal=QDRANT_API_KEY=another")
        server.kubectl.apply(manifest("EmbeddingIndex", namespace, "a"))
        config = configuration(namespace, qdrant={"url": store.url}, connectionSecret={"name": "connection"})
        operator = start(server.kubeconfig, config)
        wait_until(lambda: "Job/a-sync-1" in children(server, namespace), "the first sync", seconds=60)
        uid = server.kubectl.get("embeddingindex", "a", "-n", namespace)["metadata"]["uid"]
        make_collection(qdrant, f"{namespace}.a.0123456789", uid)
        server.kubectl("delete", "embeddingindex", "a", "-n", namespace, "--wait=false")

        def described() -> str:
            return server.kubectl("describe", "embeddingindex", "a", "-n", namespace)

        # In the condition, and in the event.
        sentence = f"the vector store at {store.url} refuses the key: correct QDRANT_API_KEY"
        wait_until(lambda: described().count(sentence) == 2, described, seconds=60)
        assert "CollectionsNotDropped" in described()
        patch = json.dumps({"stringData": {"QDRANT_API_KEY": QDRANT_KEY}})
        server.kubectl("patch", "secret", "connection", "-n", namespace, "-p", patch)
        wait_until(lambda: objects(server, namespace) == [], described, seconds=110)
        assert qdrant.get("/collections").json()["result"]["collections"] == []
        assert operator.end() == 0
        assert "Traceback" not in operator.log.read_text()


def make_collection(qdrant: httpx.Client, name: str, uid: str) -> None:
    """As the sync of the index with this uid would have made it."""
    schema = {"vectors": {"size": 4, "distance": "Cosine"}, "metadata": {COLLECTION_METADATA: {"uid": uid}}}
    qdrant.put(f"/collections/{name}", json=schema).raise_for_status()


# Secrets

QDRANT_KEY, ENGINE_KEY, TOKEN = "qdrant-5ecret-a81f", "engine-5ecret-c02d", "token-5ecret-77be"


def metrics_at(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        said: str = answer.read().decode()
    return said


async def test_values_of_secrets_stand_in_no_status_event_log_metric_or_child(
    api_server: ApiServer, namespace: str, start: Start
) -> None:
    for name, key, value in (
        ("connection", "QDRANT_API_KEY", QDRANT_KEY),
        ("engine", "key", ENGINE_KEY),
        ("hub", "token", TOKEN),
    ):
        api_server.kubectl("create", "secret", "generic", name, "-n", namespace, f"--from-literal={key}={value}")
    service, index, job = chain(namespace, "a")
    job["spec"]["baseModel"] = {"uri": "hf://org/model@main", "secretRef": {"name": "hub", "key": "token"}}
    elsewhere = manifest("RagService", namespace, "elsewhere")
    endpoint = {
        "urls": ["http://engine.example:8000/v1"],
        "name": "m",
        "secretRef": {"name": "engine", "key": "key"},
    }
    elsewhere["spec"] |= {"model": {"endpoint": endpoint}, "indexes": [{"indexRef": {"name": "a"}}]}
    (port,) = free_ports(1)
    config = configuration(namespace, port=port, connectionSecret={"name": "connection"})
    with operators.namespace(api_server) as poor:
        # There the connection cannot be copied to.
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": poor}}
        hard = {"count/secrets": "0"}
        api_server.kubectl.apply({**quota, "spec": {"hard": hard}})
        counted = json.dumps({"status": {"hard": hard, "used": hard}})  # as a controller would
        api_server.kubectl(
            "patch", "resourcequota", "none", "-n", poor, "--subresource=status", "--type=merge", "-p", counted
        )
        operator = start(api_server.kubeconfig, {**config, "watchNamespaces": [namespace, poor]}, level="debug")
        async with standing_in(api_server, namespace=namespace):
            api_server.kubectl.apply(service, index, job, elsewhere, *chain(poor, "b"))
            await asyncio.to_thread(
                wait_until, lambda: all_settled(api_server, namespace, 4), "all to be settled", seconds=60
            )
        wait_until(
            lambda: "exceeded quota" in json.dumps(objects(api_server, poor)), "a word about the quota", seconds=60
        )
        metrics = await asyncio.to_thread(metrics_at, port)
        assert operator.end() == 0
        kinds = f"{','.join(KINDS.values())},{CHILDREN},pods,events.events.k8s.io"
        places = {
            "objects": json.dumps([api_server.kubectl.get(kinds, "-n", one) for one in (namespace, poor)]),
            "the log": operator.log.read_text(),
            "the metrics": metrics,
        }
        # What is scanned is what was meant to be scanned.
        assert '"name": "engine"' in places["objects"]
        assert " DEBUG " in places["the log"]
        assert api_server.kubectl.run("get", "secret", "llmops-connection", "-n", namespace).returncode == 0
        for where, text in places.items():
            for value in (QDRANT_KEY, ENGINE_KEY, TOKEN):
                assert value not in text, where
                assert base64.b64encode(value.encode()).decode() not in text, where
