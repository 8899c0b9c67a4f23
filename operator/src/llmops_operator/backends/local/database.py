"""The SQLite file that holds objects and events: opening it with care, and transactions that several processes share.

WAL with `synchronous=FULL`: a reader never waits for a writer, and what a command has said is stored survives a power cut.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmops_operator.backends.local.disk import is_full
from llmops_operator.controllers.ports import Unavailable

APPLICATION_ID = 0x6C6C6D6F
"""Written into the file's header ("llmo"), so that a file of another program is recognised."""

SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0
"""How long a writer waits for another one. Transactions here take milliseconds; a longer wait means a stuck process."""

SCHEMA = """
CREATE TABLE counter (value INTEGER NOT NULL);
INSERT INTO counter VALUES (0);
CREATE TABLE objects (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    resource_version INTEGER NOT NULL,
    manifest TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    type TEXT NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,
    count INTEGER NOT NULL, first_time TEXT NOT NULL, last_time TEXT NOT NULL, touched INTEGER NOT NULL,
    UNIQUE (kind, namespace, name, type, reason, message)
);
"""


class StoreError(Unavailable):
    """The file cannot be used. The message says why and what to do."""


class Database:
    """Two connections to the file: one that reads, in the caller's thread, and one that writes, in one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._writer = self._connect()
        except OSError as error:
            raise StoreError(f"{path}: cannot be made ({error.strerror}); choose another folder with --home") from error
        self._writing = threading.Lock()
        try:
            with self._explained():
                self._prepare()
            self.reader = self._connect()
        except BaseException:
            self._writer.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        with self._explained():
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA synchronous=FULL")
            return connection

    def _prepare(self) -> None:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            tables = self._writer.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            application = self._writer.execute("PRAGMA application_id").fetchone()[0]
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if tables == 0 and application == 0:
                for statement in SCHEMA.split(";\n"):
                    self._writer.execute(statement)
                self._writer.execute(f"PRAGMA application_id={APPLICATION_ID}")
                self._writer.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            elif application != APPLICATION_ID:
                raise StoreError(
                    f"{self.path}: is a database of another program; choose another folder with --home, or move the file away"
                )
            elif version > SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path}: was written by a newer llmops (format {version}, this one knows {SCHEMA_VERSION}); "
                    "install that version, or choose another folder with --home"
                )
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise
        self._writer.execute("PRAGMA journal_mode=WAL")
        damage = self._writer.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise StoreError(self._damaged(damage))

    def _damaged(self, detail: object) -> str:
        return (
            f"{self.path}: is damaged ({detail}); restore it from a backup, or move it (and the files {self.path.name}-wal and "
            f"{self.path.name}-shm beside it) away and apply your manifests again: models and runs are in MLflow"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            # with no room for its shared memory SQLite knows of an I/O error only
            if "full" in str(error) or is_full(self.path.parent):
                raise StoreError(
                    f"{self.path}: no space left on the disk, nothing was stored; free some and try again"
                ) from error
            if "locked" in str(error) or "busy" in str(error):
                raise StoreError(
                    f"{self.path}: another process has kept it locked for {BUSY_SECONDS:.0f} s; end that process and try again"
                ) from error
            raise StoreError(
                f"{self.path}: cannot be used ({error}); check that it and its folder may be written, or choose another with --home"
            ) from error
        except sqlite3.DatabaseError as error:
            raise StoreError(self._damaged(error)) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write, alone among all processes; all of it is stored at the end of the block, or none. Raises `StoreError`."""
        with self._writing, self._explained():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def next_version(self) -> int:
        """The next resource version, within a transaction. It grows over the whole file and is never given twice."""
        row = self._writer.execute("UPDATE counter SET value = value + 1 RETURNING value").fetchone()
        return int(row[0])

    def read(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query, as of the last commit. Raises `StoreError`."""
        with self._explained():
            return self.reader.execute(sql, parameters).fetchall()

    def data_version(self) -> int:
        """A number that changes when any other connection, of this process or another one, has committed. Costs microseconds."""
        with self._explained():
            return int(self.reader.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close both connections."""
        with self._writing:
            self._writer.close()
        self.reader.close()
