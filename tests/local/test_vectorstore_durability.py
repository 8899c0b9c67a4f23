"""What the vector store keeps when its process is killed, and that one process at a time holds a folder."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from waiting import wait_until

from llmops_services.vectorstore.process import StoreProcess

DIMENSIONS = 32
DENSE = {"dense": models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)}
SPARSE = {"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)}


def connect(store: StoreProcess) -> QdrantClient:
    return QdrantClient(url=store.url, timeout=30, check_compatibility=False)


def point(identity: int) -> models.PointStruct:
    vector = {
        "dense": [float(identity % 7), 1.0] + [0.5] * (DIMENSIONS - 2),
        "bm25": models.SparseVector(indices=[1, 2 + identity % 50], values=[1.0, 2.0]),
    }
    return models.PointStruct(id=identity, vector=vector, payload={"n": identity})


def ids(client: QdrantClient, name: str) -> set[int]:
    return {int(record.id) for record in client.scroll(name, limit=100_000, with_payload=False)[0]}


def until_killed(store: StoreProcess, after_s: float, *works: Callable[[QdrantClient], None]) -> None:
    """Repeat each of `works` in a thread with a client of its own; kill the store a while after each was done once."""
    once = threading.Barrier(len(works) + 1)

    def repeat(work: Callable[[QdrantClient], None]) -> None:
        client = connect(store)
        try:
            work(client)
            once.wait(60)
            while True:
                work(client)
        except ResponseHandlingException:
            pass  # killed
        finally:
            client.close()

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    once.wait(60)
    time.sleep(after_s)
    store.kill()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def alias_to(collection: str) -> list[Any]:
    return [
        models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="live")),
        models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name="live")),
    ]


def test_no_acknowledged_write_is_lost_by_a_kill(tmp_path: Path) -> None:
    rng = random.Random(3)
    acknowledged: set[int] = set()
    deleted: set[int] = set()
    sent = [0]
    aliased: list[str] = ["blue"]

    def upsert(client: QdrantClient) -> None:
        batch = range(sent[0], sent[0] + rng.randrange(2, 100))
        sent[0] = batch.stop
        client.upsert("blue", [point(i) for i in batch])
        acknowledged.update(batch)
        if rng.random() < 0.3:
            client.delete("blue", [batch.start])
            deleted.add(batch.start)
        with pytest.raises(UnexpectedResponse):  # logged by the engine before it fails, so replayed at the next start
            client.set_payload("blue", {"a": 1}, points=[10**9])

    def swap(client: QdrantClient) -> None:
        target = "green" if aliased[-1] == "blue" else "blue"
        aliased.append(target)
        client.update_collection_aliases(alias_to(target))
        del aliased[:-1]

    with StoreProcess(tmp_path) as store:
        client = connect(store)
        for name in ("blue", "green"):
            client.create_collection(name, vectors_config=DENSE, sparse_vectors_config=SPARSE)
        client.create_payload_index("blue", "n", models.PayloadSchemaType.INTEGER)
        client.update_collection_aliases(alias_to("blue"))
        until_killed(store, 0.5, upsert, swap)
    for _ in range(3):
        with StoreProcess(tmp_path) as store:
            client = connect(store)
            kept = ids(client, "blue")
            assert acknowledged - deleted <= kept
            assert not deleted & kept
            assert kept <= set(range(sent[0]))
            (alias,) = client.get_aliases().aliases
            assert alias.collection_name in aliased
            aliased[:] = [alias.collection_name]
            vector = point(min(acknowledged - deleted)).vector
            nearest = client.query_points("blue", query=vector["dense"], using="dense", limit=1).points
            assert nearest[0].score == pytest.approx(1.0, abs=1e-4)
            until_killed(store, rng.uniform(0.2, 0.7), upsert, swap)
    assert len(acknowledged) > 100


def test_a_kill_leaves_no_half_collection(tmp_path: Path) -> None:
    created: set[str] = set()
    unsure: set[str] = set()
    count = [0]

    def create_and_delete(client: QdrantClient) -> None:
        name = f"c{count[0]}"
        count[0] += 1
        unsure.add(name)
        client.create_collection(name, vectors_config=DENSE)
        created.add(name)
        unsure.discard(name)
        if count[0] % 2:
            unsure.add(name)
            created.discard(name)
            client.delete_collection(name)
            unsure.discard(name)

    for after_s in (0.4, 0.65):
        with StoreProcess(tmp_path) as store:
            until_killed(store, after_s, create_and_delete)
    with StoreProcess(tmp_path) as store:
        client = connect(store)
        names = {one.name for one in client.get_collections().collections}
        assert created <= names <= created | unsure
        for name in names:
            client.upsert(name, [models.PointStruct(id=1, vector={"dense": [1.0] * DIMENSIONS})])
            assert client.count(name).count == 1
        assert len(list((tmp_path / "store" / "collections").iterdir())) == len(names)
        assert list((tmp_path / "store" / "scratch").iterdir()) == []


def test_an_index_is_built_beside_the_collection_and_takes_over_with_all_writes(tmp_path: Path) -> None:
    low = models.OptimizersConfigDiff(indexing_threshold=100)
    stop = threading.Event()
    written = list(range(2000))

    def keep_writing() -> None:
        client = connect(store)
        while not stop.wait(0.02):
            client.upsert("docs", [point(len(written))])
            client.delete("docs", [len(written) - 2000])
            written.append(len(written))
        client.close()

    with StoreProcess(tmp_path) as store:
        client = connect(store)
        client.create_collection(
            "docs", vectors_config=DENSE, sparse_vectors_config=SPARSE, optimizers_config=low, metadata={"a": 1}
        )
        client.create_payload_index("docs", "n", models.PayloadSchemaType.INTEGER)
        for start in range(0, 2000, 250):
            client.upsert("docs", [point(i) for i in range(start, start + 250)])
        wait_until(lambda: client.get_collection("docs").status == models.CollectionStatus.YELLOW, "the optimizer")
        writer = threading.Thread(target=keep_writing)
        writer.start()
        (description,) = (tmp_path / "store" / "collections").glob("docs-*/collection.json")
        wait_until(lambda: json.loads(description.read_text())["optimized_points"] == 2000, "the index")
        stop.set()
        writer.join(30)
        assert len(written) > 2000, "there were writes while the index was built"
        expected = set(range(len(written) - 2000, len(written)))
        assert ids(client, "docs") == expected
        info = client.get_collection("docs")
        assert info.status == models.CollectionStatus.GREEN
        assert info.config.metadata == {"a": 1}
        assert info.payload_schema["n"].points == 2000
        store.kill()
    with StoreProcess(tmp_path) as store:
        client = connect(store)
        assert ids(client, "docs") == expected
        assert len(list((tmp_path / "store" / "collections").glob("docs-*/shard-*"))) == 1


def test_one_process_holds_a_folder_until_it_is_stopped(tmp_path: Path) -> None:
    with StoreProcess(tmp_path) as store:
        client = connect(store)
        client.create_collection("docs", vectors_config=DENSE, sparse_vectors_config=SPARSE)
        client.upsert("docs", [point(i) for i in range(50)])
        second = subprocess.run(
            [sys.executable, "-m", "llmops_services.vectorstore", str(tmp_path / "config.json")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 75
        assert f"is held by process {store.pid}" in second.stderr
        assert client.count("docs").count == 50
        assert store.stop() == 0
    with StoreProcess(tmp_path) as store:
        assert ids(connect(store), "docs") == set(range(50))
