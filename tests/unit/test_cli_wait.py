"""`wait`, and the waiting of `delete`, beside a daemon and without one."""

from __future__ import annotations

import asyncio
import fcntl
import threading
from pathlib import Path
from typing import Any

from cli_objects import CONDITION, Llmops, rows, set_status

from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.store import SqliteStore


def write_elsewhere(tmp_path: Path, status: dict[str, Any]) -> None:
    """What another process does."""
    store = SqliteStore(Home.at(tmp_path / "home").objects)
    set_status(store, "TrainingJob", "assistant", status)
    store.close()


def finish_deletion(tmp_path: Path, key: tuple[str, str, str]) -> None:
    """What the daemon does when everything has been cleaned up."""
    store = SqliteStore(Home.at(tmp_path / "home").objects)
    asyncio.run(store.set_finalizer(key, "llmops.dev/collections", present=False))
    store.close()


def test_wait_returns_when_the_condition_is_met_for_this_generation(
    applied: Llmops, store: SqliteStore, tmp_path: Path
) -> None:
    done = {**CONDITION, "type": "Succeeded", "status": "True", "reason": "Done"}
    set_status(
        store, "TrainingJob", "assistant", {"phase": "Succeeded", "conditions": [{**done, "observedGeneration": 0}]}
    )
    code, _, err = applied("wait", "tj/assistant", "--for=condition=Succeeded", "--timeout=0s")
    assert code == 1
    assert "timed out waiting for condition=Succeeded on trainingjob.llmops.dev/assistant" in err
    timer = threading.Timer(0.3, write_elsewhere, (tmp_path, {"conditions": [done]}))
    timer.start()
    code, out, _ = applied("wait", "tj", "assistant", "--for=condition=succeeded=true", "--timeout=20s")
    timer.join()
    assert (code, out) == (0, "trainingjob.llmops.dev/assistant condition met\n")


def test_a_wait_that_was_in_vain_tells_what_the_object_says(applied: Llmops, store: SqliteStore) -> None:
    waits = {
        **CONDITION,
        "type": "Ready",
        "status": "False",
        "reason": "Waiting",
        "message": "TrainingJob x is not there",
    }
    set_status(store, "RagService", "chat", {"conditions": [waits]})
    _, _, err = applied("wait", "rag/chat", "--for=condition=Ready", "--timeout=0")
    assert "TrainingJob x is not there" in err


def test_delete_does_not_wait_for_a_daemon_that_does_not_run(applied: Llmops, store: SqliteStore) -> None:
    asyncio.run(store.set_finalizer(("EmbeddingIndex", "default", "handbook"), "llmops.dev/collections", present=True))
    code, out, err = applied("delete", "ei/handbook")
    assert (code, out) == (0, "embeddingindex.llmops.dev/handbook is being deleted\n")
    assert "start `llmops up`, which does it" in err
    (row,) = rows(applied("get", "ei")[1])
    assert row["PHASE"] == "Deleting"


def test_delete_waits_for_a_daemon_that_runs(applied: Llmops, store: SqliteStore, tmp_path: Path) -> None:
    key = ("EmbeddingIndex", "default", "handbook")
    asyncio.run(store.set_finalizer(key, "llmops.dev/collections", present=True))
    with (tmp_path / "home" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = applied("delete", "ei/handbook", "--timeout=1s")
        assert code == 1
        assert "timed out waiting for embeddingindex.llmops.dev/handbook to be gone" in err
        timer = threading.Timer(0.3, finish_deletion, (tmp_path, key))
        timer.start()
        code, out, err = applied("delete", "ei/handbook", "--timeout=20s")
        timer.join()
    assert code == 0, err
    assert out.splitlines()[-1] == "embeddingindex.llmops.dev/handbook deleted"
