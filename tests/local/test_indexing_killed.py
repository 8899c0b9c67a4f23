"""Syncs that end in the middle, and a vector store that is not there: nothing is lost and nothing is there twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from disks import filled, small_disk
from index_program import Index, counts, payloads, prose, start
from qdrant_client import QdrantClient
from waiting import wait_until

from llmops_api.programs import Env, ExitCode, IndexingResult
from llmops_services import vectors
from llmops_services.embedding import Embedder
from llmops_services.indexing import program
from llmops_services.program import TryAgain, UserError
from llmops_services.vectorstore.process import StoreProcess

SMALL_BATCHES = {"batchSize": 4}
"""Windows are so many batches: small ones are written many times."""


class Killed(BaseException):
    """The end of the program, wherever it happens to be."""


WRITES = (
    "upsert", "delete", "create_collection", "create_payload_index", "update_collection", "update_collection_aliases",
    "delete_collection",
)  # fmt: skip


def kill_before_write(patch: pytest.MonkeyPatch, number: int) -> Callable[[], bool]:
    """Let the program end just before its write number `number`, from 1. The result tells whether it came so far."""
    lock, made = threading.Lock(), [0]

    def hook(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with lock:
                made[0] += 1
                if made[0] >= number:
                    raise Killed
            return method(*args, **kwargs)

        return call

    for name in WRITES:
        patch.setattr(QdrantClient, name, hook(getattr(QdrantClient, name)))
    return lambda: made[0] >= number


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch, tiny_embedding_model: Path) -> None:
    """Windows of four chunks, so that there are many writes, and a model that is loaded once for all syncs."""
    loaded = Embedder.load(tiny_embedding_model, device="cpu")
    monkeypatch.setattr(program, "_WINDOW_CHUNKS", (4, 4))
    monkeypatch.setattr(Embedder, "load", lambda *_args, **_options: loaded)


@pytest.mark.usefixtures("small_steps")
def test_killed_at_any_write_of_the_first_sync_the_next_one_completes_it(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.write(a=prose(1, 8), b=prose(2, 3))
    index.spec["chunking"] = {"maxTokens": 100, "overlapTokens": 0}
    wanted = None
    for number in range(1, 100):
        with monkeypatch.context() as patch:
            came_so_far = kill_before_write(patch, number)
            with suppress(Killed):
                index.sync()
        if not came_so_far():
            break
        assert vectors.alias_target(index.client.get_aliases(), index.alias) is None  # nothing half is served
        assert index.sync().counts.unchanged in (0, 1, 2)
        wanted = wanted or payloads(index.points())
        assert payloads(index.points()) == wanted
        for collection in index.collections():
            index.client.delete_collection(collection)
    assert number > 7


@pytest.mark.usefixtures("small_steps")
def test_killed_at_any_write_of_a_change_the_next_sync_ends_the_same(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = None
    for number in range(1, 100):
        index.write(a=prose(1, 8), b=prose(2), c=prose(3, 2), d="# Old")
        index.sync()
        index.write(a=prose(1, 20), b="# New\n\nremote " + prose(2)[12:], c=None, d=None, e=prose(4, 15))
        with monkeypatch.context() as patch:
            came_so_far = kill_before_write(patch, number)
            with suppress(Killed):
                index.sync()
        # whoever searches meanwhile finds the documents that stay, in one state or the other
        assert {"a.md", "b.md"} <= index.texts().keys()
        result = index.sync()
        assert result.serving is not None
        assert (result.serving.documents, result.serving.chunks) == (3, len(index.points()))
        wanted = wanted or payloads(index.points())
        assert payloads(index.points()) == wanted
        index.write(e=None)
        if not came_so_far():
            break
    assert number > 6


def test_kill_9_loses_and_doubles_nothing(index: Index, store: StoreProcess) -> None:
    index.write(**{f"d{number}": prose(number, 30) for number in range(100)})
    index.configure(chunking={"maxTokens": 32, "overlapTokens": 4}, embedding=SMALL_BATCHES | index.spec["embedding"])

    def points() -> int:
        return sum(index.client.count(name, exact=True).count for name in index.collections())

    process = start(index, store.url)
    try:
        wait_until(lambda: points() > 0, "the first points")
        assert process.poll() is None  # it was in the middle of its work
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    there = points()
    assert vectors.alias_target(index.client.get_aliases(), index.alias) is None
    result = index.sync()
    assert result.counts.embedded < len(index.points())
    assert result.counts.embedded >= len(index.points()) - there
    assert counts(index.sync()) == {"unchanged": 100}
    assert len(index.texts()) == 100


def test_a_store_that_is_gone_for_a_while_only_delays(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.write(**{f"d{number}": prose(number, 30) for number in range(40)})
    index.configure(chunking={"maxTokens": 32, "overlapTokens": 4}, embedding=SMALL_BATCHES | index.spec["embedding"])
    folder = tmp_path / "own-store"
    store = StoreProcess(folder)
    port = int(store.url.rpartition(":")[2])
    monkeypatch.setenv(Env.QDRANT_URL, store.url)
    index.client = QdrantClient(url=store.url, check_compatibility=False, timeout=30)
    results: list[IndexingResult] = []
    worker = threading.Thread(target=lambda: results.append(index.sync()))
    worker.start()
    again: subprocess.Popen[str] | None = None
    try:
        wait_until(index.collections, "the first collection")
        store.kill()
        time.sleep(1)
        assert worker.is_alive()
        (folder / "again.json").write_text(json.dumps({"port": port, "folder": str(folder / "store")}))
        again = subprocess.Popen(
            [sys.executable, "-m", "llmops_services.vectorstore", str(folder / "again.json")],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        worker.join(60)
        assert len(results) == 1
        assert results[0].serving is not None
        assert results[0].serving.chunks == len(index.points())
    finally:
        if again:
            again.terminate()
            again.wait(30)
            assert again.stdout is not None
            again.stdout.close()
        worker.join(90)
        index.client.close()


def test_a_store_that_does_not_answer_for_half_a_minute_only_delays(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes what is sent to it meanwhile, and does it all when it goes on, also what was sent a second time."""
    index.write(**{f"d{number}": prose(number, 30) for number in range(40)})
    with StoreProcess(tmp_path / "own-store") as store:
        index.client = QdrantClient(url=store.url, check_compatibility=False, timeout=60)
        index.configure(
            chunking={"maxTokens": 32, "overlapTokens": 4}, embedding=SMALL_BATCHES | index.spec["embedding"]
        )
        process = start(index, store.url)
        back = threading.Timer(32, os.kill, (store.pid, signal.SIGCONT))  # a request waits for 30 s
        try:
            wait_until(index.collections, "the first collection")
            os.kill(store.pid, signal.SIGSTOP)
            back.start()
            assert process.wait(120) == ExitCode.DONE
            assert back.finished.is_set(), "it waited for the store"
        finally:
            process.kill()
            os.kill(store.pid, signal.SIGCONT)
            back.cancel()
        monkeypatch.setenv(Env.QDRANT_URL, store.url)
        assert counts(index.sync()) == {"unchanged": 40}
        assert sum(len(texts) for texts in index.texts().values()) == len(index.points())
        index.client.close()


def test_a_store_whose_disk_is_full_for_a_while_only_delays(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.write(**{f"d{number}": prose(number, 30) for number in range(100)})
    index.configure(chunking={"maxTokens": 32, "overlapTokens": 4}, embedding=SMALL_BATCHES | index.spec["embedding"])
    with small_disk(tmp_path / "disk", 128), StoreProcess(tmp_path / "disk" / "store") as store:
        index.client = QdrantClient(url=store.url, check_compatibility=False, timeout=30)
        process = start(index, store.url)
        try:
            wait_until(index.collections, "the first collection")
            with filled(tmp_path / "disk"), pytest.raises(subprocess.TimeoutExpired):
                process.wait(15)
            assert process.wait(120) == ExitCode.DONE
        finally:
            process.kill()
            process.wait(10)
        monkeypatch.setenv(Env.QDRANT_URL, store.url)
        assert counts(index.sync()) == {"unchanged": 100}
        assert sum(len(texts) for texts in index.texts().values()) == len(index.points())
        index.client.close()


def test_a_store_that_stays_away_is_named(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.write(a=prose(1))
    monkeypatch.setenv(Env.QDRANT_URL, "http://127.0.0.1:9")
    monkeypatch.setattr(vectors.patiently, "__kwdefaults__", {"seconds": 0.5})
    with pytest.raises(TryAgain, match=r"http://127\.0\.0\.1:9 has not answered as it should for 0\.5 s"):
        index.sync()
    monkeypatch.setenv(Env.QDRANT_URL, "")
    with pytest.raises(UserError, match="QDRANT_URL"):
        index.sync()
