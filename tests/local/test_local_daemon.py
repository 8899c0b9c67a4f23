import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE

import httpx
import pytest
from local_programs import alive
from waiting import eventually

from llmops_api.names import COLLECTION_METADATA
from llmops_operator.backends.local import lock, platform
from llmops_operator.backends.local.daemon import down, serve
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.lock import HomeInUse
from llmops_operator.backends.local.platform import Platform, PlatformError
from llmops_operator.backends.local.store import SqliteStore
from llmops_operator.domain.workload import Lifecycle, Readiness, Role, Workload
from llmops_services.vectorstore.process import StoreProcess

DAEMON = """
import asyncio, sys
from llmops_operator.backends.local import daemon
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.store import SqliteStore
from llmops_operator.domain.workload import Lifecycle, Owner, Role, Workload

SLEEP = Workload("sleep", Role.TRAINER, Lifecycle.COMPLETES, ("python", "-c", "import time; time.sleep(600)"))

class Idle:
    async def run(self):
        await asyncio.Event().wait()

# The real one would remove the workload of an object that there is not.
daemon._load_control_plane = lambda: lambda *_: Idle()

async def main():
    loop = asyncio.get_running_loop()
    def ready(serving):
        task = loop.create_task(serving.backend.apply(Owner("Test", "default", "test", "uid"), SLEEP))
        task.add_done_callback(lambda _: print("ready", flush=True))
    await daemon.serve(Home.at(sys.argv[1]), on_ready=ready)
    print("ended", flush=True)

asyncio.run(main())
"""

SERVER = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass

HTTPServer((os.environ["LLMOPS_HOST"], int(os.environ["LLMOPS_PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def home(tmp_path):
    return Home.at(tmp_path / "home")


@pytest.fixture
def elsewhere(monkeypatch):
    """MLflow and the vector store run elsewhere; nobody answers, which hinders nothing here."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:9")


async def start_daemon(home):
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", DAEMON, str(home.root), stdout=PIPE)
    assert await asyncio.wait_for(daemon.stdout.readline(), 60) == b"ready\n"
    return daemon


@pytest.mark.usefixtures("elsewhere")
async def test_a_daemon_that_is_asked_to_stop_leaves_nothing_running(home):
    daemon = await start_daemon(home)
    await eventually(lambda: len(alive(home)) == 2)  # the program and its supervisor
    daemon.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(daemon.stdout.readline(), 30) == b"ended\n"
    assert await daemon.wait() == 0
    assert alive(home) == []
    assert lock.holder(home) is None


@pytest.mark.usefixtures("elsewhere")
async def test_a_second_daemon_is_told_who_holds_the_home(home):
    daemon = await start_daemon(home)
    with pytest.raises(HomeInUse, match=rf"in use by process {daemon.pid} since 20.*llmops down"):
        await serve(home)
    daemon.kill()
    await daemon.wait()
    with lock.hold(home):  # the kernel has freed it
        assert lock.holder(home).pid == os.getpid()
    assert await down(home)


@pytest.mark.usefixtures("elsewhere")
async def test_down_ends_a_daemon_and_what_a_killed_one_has_left(home):
    assert not await down(home)
    daemon = await start_daemon(home)
    assert await down(home)
    assert await asyncio.wait_for(daemon.wait(), 10) == 0
    assert alive(home) == []

    daemon = await start_daemon(home)
    await eventually(lambda: len(alive(home)) == 2)
    daemon.kill()
    await daemon.wait()
    assert len(alive(home)) == 2
    assert await down(home)
    assert alive(home) == []
    assert not await down(home)


async def test_a_daemon_can_be_stopped_while_the_platform_starts(home, monkeypatch):
    monkeypatch.setattr(platform, "PARTS", {platform.Env.QDRANT_URL: lambda _: part(SERVER.replace("200", "503"))})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(home, stop=stop, handle_signals=False))
    await eventually(lambda: alive(home))
    stop.set()
    await asyncio.wait_for(serving, 20)
    assert alive(home) == []


@pytest.mark.usefixtures("elsewhere")
async def test_objects_that_a_command_applies_are_looked_at(home):
    stop, ready = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(serve(home, on_ready=lambda _: ready.set(), stop=stop, handle_signals=False))
    await asyncio.wait_for(ready.wait(), 60)
    command = SqliteStore(home.objects)
    command.apply(
        {
            "apiVersion": "llmops.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "assistant"},
            "spec": {
                "baseModel": {"uri": "file:///model"},
                "data": {"train": {"uri": "file:///train.jsonl"}},
                "hyperparameters": {"maxSteps": 10},
                "output": {"model": "assistant"},
                "suspend": True,
            },
        }
    )
    key = ("TrainingJob", "default", "assistant")
    await eventually(lambda: command.get(key).get("status", {}).get("phase") == "Suspended")
    command.close()
    stop.set()
    await asyncio.wait_for(serving, 30)


async def test_an_index_that_is_deleted_takes_its_collections_with_it(home, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("QDRANT_API_KEY", "a key")
    with StoreProcess(tmp_path / "vectors") as vectors, httpx.Client(headers={"api-key": "a key"}) as qdrant:
        monkeypatch.setenv("QDRANT_URL", vectors.url)
        stop, ready = asyncio.Event(), asyncio.Event()
        serving = asyncio.create_task(serve(home, on_ready=lambda _: ready.set(), stop=stop, handle_signals=False))
        await asyncio.wait_for(ready.wait(), 60)
        command = SqliteStore(home.objects)
        index = {
            "apiVersion": "llmops.dev/v1alpha1",
            "kind": "EmbeddingIndex",
            "metadata": {"name": "docs"},
            "spec": {
                "sources": [{"name": "docs", "uri": "file:///docs"}],
                "embedding": {"model": {"uri": "file:///model"}},
                "suspend": True,
            },
        }
        command.apply(index)
        key = ("EmbeddingIndex", "default", "docs")
        await eventually(lambda: command.get(key).get("status", {}).get("phase") == "Suspended")
        found = command.get(key)
        uid, version = found["metadata"]["uid"], found["metadata"]["resourceVersion"]
        begun = {"number": 1, "startTime": "2026-11-23T12:00:00Z", "endTime": "2026-11-23T12:01:00Z"}
        await command.write_status(key, {**found["status"], "attempts": [begun]}, resource_version=version)
        schema = {"vectors": {"size": 4, "distance": "Cosine"}, "metadata": {COLLECTION_METADATA: {"uid": uid}}}
        await asyncio.to_thread(qdrant.put, f"{vectors.url}/collections/default.docs.0123456789", json=schema)
        command.delete(key)
        await eventually(lambda: command.get(key) is None)
        left = await asyncio.to_thread(qdrant.get, f"{vectors.url}/collections")
        assert left.json()["result"]["collections"] == []
        command.close()
        stop.set()
        await asyncio.wait_for(serving, 30)


def part(code):
    return Workload(
        "part",
        Role.ENGINE,
        Lifecycle.RUNS,
        ("python", "-c", code),
        port=True,
        readiness=Readiness("/", period_seconds=0.05),
        grace_seconds=1,
    )


async def test_the_platform_keeps_its_addresses_and_those_that_are_given_are_used(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    monkeypatch.setattr(
        platform,
        "PARTS",
        dict(platform.PARTS) | {platform.Env.QDRANT_URL: lambda _: part(SERVER)},
    )
    home.create()
    seen = []
    for _ in range(2):
        started = Platform(home)
        await started.start()
        assert json.loads(home.platform_file.read_text()) == started.env
        seen.append(started.env)
        await started.stop()
    assert seen[0] == seen[1]
    assert seen[0]["MLFLOW_TRACKING_URI"] == "http://mlflow.example"
    assert not (home.platform / "_platform" / "mlflow").exists()


async def test_a_platform_that_does_not_come_up_says_which_part_and_why(home, monkeypatch):
    broken = "print('no such column: digest'); raise SystemExit(1)"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    monkeypatch.setattr(platform, "PARTS", {platform.Env.QDRANT_URL: lambda _: part(broken)})
    monkeypatch.setattr(platform, "READY_SECONDS", 4.0)
    home.create()
    started = Platform(home)
    with pytest.raises(PlatformError, match=r"part is not ready .*no such column: digest.*out\.log"):
        await started.start()
    await started.stop()


async def test_the_real_mlflow_server_and_vector_store_come_up(home, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("QDRANT_URL", raising=False)
    home.create()
    started = Platform(home)
    try:
        await started.start()
        async with httpx.AsyncClient(timeout=20) as client:
            experiments = await client.post(
                f"{started.env['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search", json={"max_results": 1}
            )
            collections = await client.get(f"{started.env['QDRANT_URL']}/collections")
        assert experiments.json()["experiments"][0]["name"] == "Default"
        assert collections.json()["result"] == {"collections": []}
    finally:
        await started.stop()
    assert alive(home) == []
