"""Reads objects and events from a home's SQLite file, read-only, whether or not a daemon runs.

Not through `SqliteStore`: that one checks and writes, so it needs the API models, whose import takes longer than the answer.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops_operator.cli.faults import CommandError

POLL_SECONDS = 0.2
"""SQLite tells other processes nothing; `PRAGMA data_version` is one look at shared memory."""

Key = tuple[str, str, str]
Object = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """Something that happened to an object, `count` times between two moments (RFC 3339)."""

    id: int
    key: Key
    type: str
    reason: str
    message: str
    count: int
    first_time: str
    last_time: str


class Reader:
    """The objects of a home as they are at the moment of each call."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, key: Key) -> Object | None:
        """The object, or None."""
        rows = self._connection.execute(
            "SELECT manifest FROM objects WHERE kind = ? AND namespace = ? AND name = ?", key
        ).fetchall()
        return json.loads(rows[0][0]) if rows else None

    def all_of(self, kind: str, namespace: str | None = None) -> list[Object]:
        """All objects of a kind, by namespace and name; of one namespace unless that is None."""
        rows = self._connection.execute(
            "SELECT manifest FROM objects WHERE kind = ? AND namespace = ifnull(?, namespace) ORDER BY namespace, name",
            (kind, namespace),
        )
        return [json.loads(row[0]) for row in rows.fetchall()]

    def events(self, key: Key | None = None, namespace: str | None = None) -> list[Event]:
        """The events of one object, or of all in a namespace; the latest last."""
        rows = self._connection.execute(
            "SELECT id, kind, namespace, name, type, reason, message, count, first_time, last_time FROM events"
            " WHERE kind = ifnull(?, kind) AND namespace = ifnull(?, namespace) AND name = ifnull(?, name) ORDER BY touched",
            key or (None, namespace, None),
        )
        return [Event(row[0], (row[1], row[2], row[3]), *row[4:]) for row in rows.fetchall()]

    def changes(self, until: float | None = None, alive: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Now, and again after each change, until the moment `until` (of `time.monotonic`) or until `alive` says no more."""
        seen = self._version()
        yield
        while alive() and (until is None or time.monotonic() < until):
            time.sleep(POLL_SECONDS)
            if (version := self._version()) != seen:
                seen = version
                yield

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])


def daemon_runs(home: Path) -> bool:
    """Whether a daemon works on this home: it holds the lock on `lock` for as long as it lives."""
    try:
        with (home / "lock").open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def reading(home: Path) -> Iterator[Reader]:
    """Open the home's objects. Raises `CommandError` when there are none, or the file cannot be read."""
    path = home / "objects.db"
    if not path.is_file():
        raise CommandError(
            f"{home} holds no objects yet: apply a manifest (llmops apply -f FILE), or name another folder with --home"
        )
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30, isolation_level=None)
        try:
            yield Reader(connection)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise CommandError(f"{path} cannot be read: {error}") from error
