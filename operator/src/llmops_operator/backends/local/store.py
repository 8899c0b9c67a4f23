"""The custom resources in one SQLite file: what the API server and etcd are in a cluster.

The daemon and any number of commands have the file open at the same time. Each keeps a projection in memory, brought up to date
whenever `PRAGMA data_version` says that somebody has committed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from llmops_operator.backends import finalizers
from llmops_operator.backends.local.admission import Refused, admit, refuse_changes
from llmops_operator.backends.local.database import Database, StoreError
from llmops_operator.backends.recorded import Event
from llmops_operator.controllers.ports import Conflict, Key, Manifest, NotFound
from llmops_operator.domain.admission import ApiObject
from llmops_operator.domain.sentences import Fault

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
EVENTS_PER_OBJECT = 50
EVENTS = 5000

Applied = Literal["created", "configured", "unchanged"]


class SqliteStore:
    """Implements `controllers.ports.Store`, and what the command does to objects. All in one thread but for what is awaited."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path)
        self._objects: dict[Key, Manifest] = {}
        self._seen = -1
        self._listeners: list[Callable[[Key], None]] = []
        self._refresh()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # Reading

    def get(self, key: Key) -> Manifest | None:
        """The object, or None. It is shared with other readers: do not change it."""
        self._refresh()
        return self._objects.get(key)

    def keys(self) -> tuple[Key, ...]:
        """The keys of all objects."""
        self._refresh()
        return tuple(self._objects)

    def list(
        self, kind: str, namespace: str | None = None, *, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """All objects of a kind, by namespace and name; those of one namespace, those that have all of `labels`."""
        self._refresh()
        wanted = (labels or {}).items()
        return [
            manifest
            for key, manifest in sorted(self._objects.items())
            if key[0] == kind
            and namespace in (None, key[1])
            and wanted <= manifest["metadata"].get("labels", {}).items()
        ]

    def events(self, key: Key | None = None, *, namespace: str | None = None) -> tuple[Event, ...]:
        """The events of one object, or of all (in a namespace), the latest last. Those of objects that are gone are kept for a while."""
        rows = self._database.read(
            "SELECT id, kind, namespace, name, type, reason, message, count, first_time, last_time FROM events"
            " WHERE kind = ifnull(?, kind) AND namespace = ifnull(?, namespace) AND name = ifnull(?, name) ORDER BY touched",
            key or (None, namespace, None),
        )
        return tuple(Event(row[0], (row[1], row[2], row[3]), *row[4:]) for row in rows)

    # What the command does

    def apply(self, manifest: Mapping[str, Any]) -> Applied:
        """Store what the user wishes; `status` and what is managed stay as they are. Raises `Refused`, `Conflict`, `StoreError`."""
        wish = admit(manifest)
        key = (wish.kind, wish.metadata.namespace, wish.metadata.name)
        with self._write() as change:
            stored = change.read(key)
            if stored is None:
                change.write(key, _new(wish))
                return "created"
            metadata = stored["metadata"]
            if wish.metadata.resource_version not in ("", metadata["resourceVersion"]):
                raise Conflict(f"{_named(key)} has changed since you read it: get it again and edit that")
            if metadata.get("deletionTimestamp"):
                raise Refused(_named(key), [Fault((), "is being deleted: wait until it is gone, then apply it again")])
            changed_spec = _changes(stored, wish)
            annotations = {"labels": wish.metadata.labels, "annotations": wish.metadata.annotations}
            if not changed_spec and all(metadata.get(name, {}) == value for name, value in annotations.items()):
                return "unchanged"
            metadata |= annotations | {"generation": metadata["generation"] + changed_spec}
            change.write(key, stored | {"spec": _written(wish)})
            return "configured"

    def delete(self, key: Key) -> None:
        """Delete an object, or mark it for deletion when it has finalizers. Raises `NotFound`."""
        with self._write() as change:
            stored = change.read(key)
            if stored is None:
                raise NotFound(f"{_named(key)} does not exist")
            if not stored["metadata"].get("finalizers"):
                change.delete(key)
            elif not stored["metadata"].get("deletionTimestamp"):
                stored["metadata"]["deletionTimestamp"] = _now()
                change.write(key, stored)

    # What the controllers do

    async def exists(self, key: Key) -> bool:
        """Whether there is such an object."""
        return self.get(key) is not None

    async def write_status(self, key: Key, status: Mapping[str, Any], *, resource_version: str) -> None:
        """Replace `status`. Raises `Conflict`, `NotFound` or `StoreError`."""
        await self._in_thread(self._write_status, key, status, resource_version)

    def _write_status(self, key: Key, status: Mapping[str, Any], resource_version: str) -> None:
        with self._write(refresh=False) as change:
            stored = change.must_read(key)
            if stored["metadata"]["resourceVersion"] != resource_version:
                raise Conflict(f"{_named(key)} has changed since version {resource_version}")
            if stored.get("status") != status:
                change.write(key, stored | {"status": dict(status)})

    async def set_finalizer(self, key: Key, finalizer: str, *, present: bool) -> None:
        """Add or remove a finalizer; an object marked for deletion goes with its last one. Raises `NotFound` or `StoreError`."""
        await self._in_thread(self._set_finalizer, key, finalizer, present)

    def _set_finalizer(self, key: Key, finalizer: str, present: bool) -> None:
        with self._write(refresh=False) as change:
            stored = change.must_read(key)
            metadata = stored["metadata"]
            before = metadata.get("finalizers", [])
            after = finalizers.changed(before, finalizer, present=present)
            if metadata.get("deletionTimestamp") and not after:
                change.delete(key)
            elif after != before:
                metadata["finalizers"] = after
                change.write(key, stored)

    async def record_event(self, key: Key, *, type_: str, reason: str, message: str) -> None:
        """Tell people about a transition; the same again is counted. Raises `StoreError`."""
        await self._in_thread(self._record_event, key, type_, reason, message)

    def _record_event(self, key: Key, type_: str, reason: str, message: str) -> None:
        now = _now()
        with self._database.transaction() as sql:
            sql.execute(
                "INSERT INTO events (kind, namespace, name, type, reason, message, count, first_time, last_time, touched)"
                " VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?, ?) ON CONFLICT DO UPDATE"
                " SET count = count + 1, last_time = excluded.last_time, touched = excluded.touched",
                (*key, type_, reason, message, now, now, self._database.next_version()),
            )
            sql.execute(
                "DELETE FROM events WHERE kind=? AND namespace=? AND name=? AND id NOT IN"
                " (SELECT id FROM events WHERE kind=? AND namespace=? AND name=? ORDER BY touched DESC LIMIT ?)",
                (*key, *key, EVENTS_PER_OBJECT),
            )
            sql.execute(
                "DELETE FROM events WHERE id NOT IN (SELECT id FROM events ORDER BY touched DESC LIMIT ?)", (EVENTS,)
            )

    # Changes

    def subscribe(self, listener: Callable[[Key], None]) -> None:
        """Call `listener` with the key of each object that is there, and of each that changes or goes."""
        self._refresh()
        self._listeners.append(listener)
        for key in list(self._objects):
            listener(key)

    async def watch(self) -> None:
        """Notice what other processes write, until cancelled.

        By polling: SQLite has no notification across processes, and `data_version` is one look at shared memory, cheaper than
        any socket that a command would have to find, write to, and survive the absence of.
        """
        while True:
            try:
                self._refresh()
            except StoreError as error:
                log.warning("%s", error)
            await asyncio.sleep(POLL_SECONDS)

    def _refresh(self) -> None:
        version = self._database.data_version()
        if version == self._seen:
            return
        there = {
            (kind, namespace, name): str(resource_version)
            for kind, namespace, name, resource_version in self._database.read(
                "SELECT kind, namespace, name, resource_version FROM objects"
            )
        }
        gone = self._objects.keys() - there.keys()
        changed = [
            key
            for key, resource_version in there.items()
            if key not in self._objects or self._objects[key]["metadata"]["resourceVersion"] != resource_version
        ]
        for key in gone:
            del self._objects[key]
        for key in changed:
            rows = self._database.read("SELECT manifest FROM objects WHERE kind=? AND namespace=? AND name=?", key)
            if rows:
                self._objects[key] = json.loads(str(rows[0][0]))
        self._seen = version
        for key in (*gone, *changed):
            for listener in self._listeners:
                listener(key)

    async def _in_thread(self, write: Callable[..., None], *arguments: object) -> None:
        """Wait for the disk and for other writers in a thread; the write is finished even when the caller is cancelled."""
        await asyncio.shield(asyncio.to_thread(write, *arguments))
        self._refresh()

    @contextmanager
    def _write(self, *, refresh: bool = True) -> Iterator[_Change]:
        with self._database.transaction() as sql:
            yield _Change(self._database, sql)
        if refresh:
            self._refresh()


class _Change:
    """Reads and writes of objects within a transaction."""

    def __init__(self, database: Database, sql: sqlite3.Connection) -> None:
        self._database, self._sql = database, sql

    def read(self, key: Key) -> dict[str, Any] | None:
        row = self._sql.execute("SELECT manifest FROM objects WHERE kind=? AND namespace=? AND name=?", key).fetchone()
        return None if row is None else json.loads(row[0])

    def must_read(self, key: Key) -> dict[str, Any]:
        stored = self.read(key)
        if stored is None:
            raise NotFound(f"{_named(key)} does not exist")
        return stored

    def write(self, key: Key, manifest: dict[str, Any]) -> None:
        version = self._database.next_version()
        manifest["metadata"]["resourceVersion"] = str(version)
        self._sql.execute(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)",
            (*key, version, json.dumps(manifest, ensure_ascii=False)),
        )

    def delete(self, key: Key) -> None:
        # The version grows, so that one that is given again later is never one that somebody still holds.
        self._database.next_version()
        self._sql.execute("DELETE FROM objects WHERE kind=? AND namespace=? AND name=?", key)


def _new(wish: ApiObject) -> dict[str, Any]:
    metadata = {
        "name": wish.metadata.name,
        "namespace": wish.metadata.namespace,
        "uid": str(uuid.uuid4()),
        "generation": 1,
        "creationTimestamp": _now(),
        "labels": wish.metadata.labels,
        "annotations": wish.metadata.annotations,
    }
    return {"apiVersion": wish.api_version, "kind": wish.kind, "metadata": metadata, "spec": _written(wish)}


def _written(wish: ApiObject) -> dict[str, Any]:
    """The spec as the user wrote it, without the defaults: a later version may have others, and lineage keeps the manifest."""
    return wish.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _changes(stored: Mapping[str, Any], wish: ApiObject) -> bool:
    """Whether the spec is another one. Raises `Refused` when it may not be."""
    try:
        before = admit(stored)
    except Refused:  # written by another version; whatever is valid now replaces it
        return True
    refuse_changes(before, wish)
    return before.spec != wish.spec


def _named(key: Key) -> str:
    kind, namespace, name = key
    return f"{kind} {namespace}/{name}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
