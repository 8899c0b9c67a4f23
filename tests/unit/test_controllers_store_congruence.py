"""The store in memory that the stories are told on behaves as the SQLite store that people use: the same calls, the same answers."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmops_operator.backends.local.store import SqliteStore
from llmops_operator.backends.memory import MemoryStore
from llmops_operator.controllers.ports import Conflict, Key, NotFound

NAMES = ("a", "b")
STATUSES = ({}, {"phase": "Ready"}, {"phase": "Failed", "documents": 3})


def manifest(name: str, every: int, annotation: str) -> dict[str, Any]:
    spec = {
        "sources": [{"name": "docs", "uri": "file:///docs"}],
        "embedding": {"model": {"uri": "pkg://minilm/model"}},
        "refresh": {"everySeconds": every},
    }
    metadata = {"name": name, "annotations": {"note": annotation}}
    return {"apiVersion": "llmops.dev/v1alpha1", "kind": "EmbeddingIndex", "metadata": metadata, "spec": spec}


def key(name: str) -> Key:
    return ("EmbeddingIndex", "default", name)


def view(store: Any, name: str) -> Any:
    """An object but for what each store makes up by itself."""
    stored = store.get(key(name))
    if stored is None:
        return None
    metadata = stored["metadata"]
    return {
        "generation": metadata["generation"],
        "annotations": metadata.get("annotations", {}),
        "finalizers": metadata.get("finalizers", []),
        "deleting": bool(metadata.get("deletionTimestamp")),
        "spec": stored["spec"],
        "status": stored.get("status") or {},
    }


class Told:
    """Who was told about what since it was last asked."""

    def __init__(self, store: Any) -> None:
        self.keys: set[Key] = set()
        store.subscribe(self.keys.add)

    def take(self) -> set[Key]:
        told = set(self.keys)
        self.keys.clear()
        return told


names = st.sampled_from(NAMES)
calls = st.one_of(
    st.tuples(st.just("apply"), names, st.sampled_from([5, 60]), st.sampled_from(["x", "y"])),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("status"), names, st.sampled_from(STATUSES), st.booleans()),
    st.tuples(st.just("finalizer"), names, st.sampled_from(["llmops.dev/collections", "example.org/f"]), st.booleans()),
)


async def make(store: Any, call: tuple[Any, ...]) -> str:
    """Make a call; what came of it."""
    what, name, *rest = call
    stored = store.get(key(name))
    try:
        match what:
            case "apply":
                if stored is not None and stored["metadata"].get("deletionTimestamp"):
                    return "refused"  # what people do to an object that is going is no business of the controllers
                store.apply(manifest(name, *rest))
            case "delete":
                store.delete(key(name))
            case "status":
                version = stored["metadata"]["resourceVersion"] if stored and rest[1] else "0"
                await store.write_status(key(name), rest[0], resource_version=version)
            case "finalizer":
                await store.set_finalizer(key(name), rest[0], present=rest[1])
    except (Conflict, NotFound) as error:
        return type(error).__name__
    return "done"


@given(st.lists(calls, max_size=25))
@example(
    [
        ("apply", "a", 5, "x"),
        *(
            ("finalizer", "a", each, True)
            for each in ("llmops.dev/collections", "example.org/f", "llmops.dev/collections")
        ),
    ]
)
@settings(max_examples=40, deadline=None)
def test_the_same_calls_have_the_same_answers_and_leave_the_same_objects(sequence: list[tuple[Any, ...]]) -> None:
    async def compare(folder: Path) -> None:
        memory, sqlite = MemoryStore(), SqliteStore(folder / "objects.db")
        told = Told(memory), Told(sqlite)
        for call in sequence:
            before = {name: view(memory, name) for name in NAMES}
            assert await make(memory, call) == await make(sqlite, call), call
            for name in NAMES:
                assert view(memory, name) == view(sqlite, name), call
            assert sorted(one["metadata"]["name"] for one in memory.list("EmbeddingIndex")) == [
                one["metadata"]["name"] for one in sqlite.list("EmbeddingIndex")
            ]
            heard = [one.take() for one in told]
            changed = {key(name) for name in NAMES if view(memory, name) != before[name]}
            assert changed <= heard[0], call
            assert changed <= heard[1], call
        sqlite.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(Path(folder)))
