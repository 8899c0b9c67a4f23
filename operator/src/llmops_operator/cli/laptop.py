"""A home on this machine, read-only, whether or not a daemon runs: objects and events from its SQLite file, logs from folders.

Not through `SqliteStore`: that one checks and writes, so it needs the API models, whose import takes longer than the answer.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops_operator.backends.local.durable import read_json
from llmops_operator.backends.local.replica_folder import ReplicaFolder
from llmops_operator.backends.recorded import Event
from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.places import Key, Object, Program

POLL_SECONDS = 0.2
"""SQLite tells other processes nothing; `PRAGMA data_version` is one look at shared memory."""
ENDING = ("trainer", "indexer")
LIVES_SECONDS = 0.5


class Laptop:
    """Implements `places.Place` for the home in a folder."""

    namespace = "default"
    repair = "start `llmops up`"

    def __init__(self, home: Path) -> None:
        self.home = home

    @contextmanager
    def reading(self) -> Iterator[SqliteReader]:
        """Open the home's objects. Raises `CommandError` when there are none, or the file cannot be read."""
        path = self.home / "objects.db"
        if not path.is_file():
            raise CommandError(
                f"{self.home} holds no objects yet: apply a manifest (llmops apply -f FILE), or name another folder "
                "with --home"
            )
        try:
            connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30, isolation_level=None
            )
            try:
                yield SqliteReader(connection)
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise CommandError(f"{path} cannot be read: {error}") from error

    def note(self) -> str | None:
        """Nothing changes without a daemon."""
        return None if daemon_runs(self.home) else "note: `llmops up` does not run; this is how things were left"

    def programs(self, key: Key) -> list[Program]:
        """The programs of an object that have a folder, the one that was started last at the end."""
        found = [
            Replica(record["workload"]["role"], folder.name, replica)
            for folder in (self.home / "workloads" / key[1]).glob("*")
            if (record := read_json(folder / "workload.json")) and _owned(record, key)
            for replica in folder.glob("*")
            if (replica / "run" / "launch.json").exists()
        ]
        return [*sorted(found, key=lambda program: _started(program.folder))]

    @contextmanager
    def reached(self, url: str) -> Iterator[str]:
        """The URL itself."""
        yield url

    @contextmanager
    def mlflow(self) -> Iterator[str]:
        """The MLflow that the environment names, else the one that the home's daemon has started."""
        name = "MLFLOW_TRACKING_URI"
        url = os.environ.get(name) or (read_json(self.home / "platform.json") or {}).get(name)
        if not url:
            raise CommandError(f"no MLflow is known: start `llmops up`, or name one by {name}")
        yield str(url)


class SqliteReader:
    """Implements `places.Reader` on the home's file."""

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


@dataclass(frozen=True)
class Replica:
    """Implements `places.Program` for a replica's folder."""

    role: str
    workload: str
    folder: Path

    @property
    def number(self) -> str:
        """Which replica."""
        return self.folder.name

    @property
    def where(self) -> str:
        """The folder of the rotated log."""
        return str(self._replica.log)

    def last(self, tail: int) -> list[str]:
        """The last lines of its log; all for -1."""
        from llmops_operator.backends.local.rotated_log import log_files

        files = log_files(self._replica.log)
        lines = [line for path in files for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        return lines if tail < 0 else lines[len(lines) - min(tail, len(lines)) :]

    def follow(self, tail: int, say: Callable[[str], None]) -> None:
        """Until the program has ended, if it is one that ends."""
        import asyncio

        asyncio.run(self._follow(tail, say))

    @property
    def _replica(self) -> ReplicaFolder:
        return ReplicaFolder(self.folder)

    async def _follow(self, tail: int, say: Callable[[str], None]) -> None:
        import asyncio

        from llmops_operator.backends.local.rotated_log import follow

        async def copy() -> None:
            rest = ""
            async for text in follow(self._replica.log, lines=None if tail < 0 else tail):
                *whole, rest = (rest + text).split("\n")
                for line in whole:
                    say(line)

        task = asyncio.create_task(copy())
        if self.role in ENDING:
            while await asyncio.to_thread(self._replica.is_locked):
                await asyncio.wait([task], timeout=LIVES_SECONDS)
            # What it wrote last is in the file by now; one more round reads it.
            await asyncio.wait([task], timeout=LIVES_SECONDS)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _owned(record: dict[str, Any], key: Key) -> bool:
    owner = record["owner"]
    return bool((owner["kind"], owner["namespace"], owner["name"]) == key)


def _started(folder: Path) -> int:
    try:
        return (folder / "run" / "launch.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0
