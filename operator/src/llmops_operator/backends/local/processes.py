"""The backend that runs workloads as processes of this machine. Which there are, and for whom, stands in their folders."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import TypeAdapter, ValidationError

from llmops_operator.backends.local import volumes
from llmops_operator.backends.local.disk import FREE_SOME, says_full
from llmops_operator.backends.local.durable import write_text
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.launching import Launching, Surroundings
from llmops_operator.backends.local.log_writing import FILES, LIMIT
from llmops_operator.backends.local.replica import Replica
from llmops_operator.backends.local.replica_folder import ReplicaFolder
from llmops_operator.backends.local.replica_status import combine
from llmops_operator.backends.local.supervision import Supervision, sweep
from llmops_operator.controllers.ports import Unavailable
from llmops_operator.domain.workload import Owner, State, Workload, WorkloadStatus

RECORD = "workload.json"
REMOVED = "removed.json"
"""What a record is renamed to before its workload is stopped: a daemon that is killed then does not start it again."""


@dataclass(frozen=True)
class _Record:
    owner: Owner
    workload: Workload


_RECORDS = TypeAdapter(_Record)

Place = tuple[str, str]
"""(namespace, name) of a workload"""


class _Running:
    """A workload, and its replicas with the tasks that keep them."""

    def __init__(self, folder: Path, record: _Record, surroundings: Surroundings, changed: Callable[[], None]) -> None:
        self.folder, self.record = folder, record
        self._launching = Launching(record.owner, surroundings)
        self._changed = changed
        self._replicas: dict[int, tuple[Replica, asyncio.Task[None]]] = {}
        self._serving: frozenset[int] = frozenset()

    @property
    def status(self) -> WorkloadStatus:
        return combine([replica.status for _, (replica, _) in sorted(self._replicas.items())])

    async def keep(self, workload: Workload) -> None:
        """Have as many replicas as `workload` asks for, all of them as it says."""
        self.record = _Record(self.record.owner, workload)
        surplus = {int(path.name) for path in self.folder.iterdir() if path.name.isdigit()}
        surplus = {number for number in surplus | self._replicas.keys() if number >= workload.replicas}
        await asyncio.gather(*(self._drop(number) for number in surplus))
        for number in range(workload.replicas):
            if number in self._replicas:
                self._replicas[number][0].update(workload)
            else:
                folder = ReplicaFolder(self.folder / str(number))
                others_serve = functools.partial(self._others_serve, number)
                replica = Replica(folder, workload, self._launching, self._replica_changed, others_serve)
                self._replicas[number] = (replica, asyncio.create_task(replica.run(), name=str(folder.root)))

    def wake(self) -> None:
        for replica, _ in self._replicas.values():
            replica.wake()

    def _others_serve(self, number: int) -> bool:
        return all(replica.status.ready for other, (replica, _) in self._replicas.items() if other != number)

    def _replica_changed(self) -> None:
        before = self._serving
        self._serving = frozenset(number for number, (replica, _) in self._replicas.items() if replica.status.ready)
        if self._serving - before:  # it may be another one's turn to be started anew
            self.wake()
        self._changed()

    async def stop(self) -> None:
        """End all replicas, together. Whoever is cancelled while waiting for that does not hinder it."""
        for replica, _ in self._replicas.values():
            replica.stop()
        if self._replicas:
            await asyncio.wait([task for _, task in self._replicas.values()])

    async def _drop(self, number: int) -> None:
        if number in self._replicas:
            replica, task = self._replicas[number]
            replica.stop()
            await asyncio.wait([task])
            del self._replicas[number]
        await discard(ReplicaFolder(self.folder / str(number)))


class ProcessBackend:
    """Implements `controllers.ports.Backend` in `folder`, between `start` and `stop`, for one daemon at a time."""

    def __init__(
        self,
        home: Home,
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        log_bytes: int = LIMIT,
        log_files: int = FILES,
    ) -> None:
        self._home, self._folder = home, folder
        self._running: dict[Place, _Running] = {}
        self._locks: dict[Place, asyncio.Lock] = {}
        self._listeners: list[Callable[[Owner], None]] = []
        # Proxies are for the world outside; programs listen on this machine.
        http = httpx.AsyncClient(trust_env=False)
        self._surroundings = Surroundings(home, http, dict(env or {}), log_bytes=log_bytes, log_files=log_files)

    async def start(self) -> None:
        """Adopt what an earlier daemon has left running, go on with what it was doing, and clean up what it was removing."""
        self._surroundings.with_volumes |= await asyncio.to_thread(volumes.owners, self._home)
        folders = await asyncio.to_thread(lambda: sorted(self._folder.glob("*/*/")))
        for folder in folders:
            record = _read_record(folder)
            if record is None:
                await _discard_workload(folder)
            else:
                await self._keep((folder.parent.name, folder.name), record)

    async def stop(self) -> None:
        """End every program; what it was doing is gone on with after the next `start`. Returns when all are gone."""
        await asyncio.gather(*(running.stop() for running in self._running.values()))
        self._running.clear()
        await self._surroundings.http.aclose()

    def set_env(self, env: Mapping[str, str]) -> None:
        """Replace the variables that all programs get. Long-running programs are started anew when they differ."""
        self._surroundings.env = dict(env)
        for running in self._running.values():
            running.wake()

    def observe(self, owner: Owner) -> Mapping[str, WorkloadStatus]:
        """The workloads of an object by name, as last seen."""
        return {name: running.status for (_, name), running in self._running.items() if running.record.owner == owner}

    def owners(self) -> frozenset[Owner]:
        """All objects that have workloads or folders here."""
        return frozenset(running.record.owner for running in self._running.values()) | self._surroundings.with_volumes

    def subscribe(self, listener: Callable[[Owner], None]) -> None:
        """Call `listener` with the owner of a workload whose status changed."""
        self._listeners.append(listener)

    async def apply(self, owner: Owner, workload: Workload) -> None:
        """Make `workload` run as said; it may start later than this returns, and the status says when not. Raises `Unavailable` where
        it cannot be written down, and `ValueError` when another object has a workload of this name.
        """
        place = (owner.namespace, workload.name)
        async with self._lock(place):
            running = self._running.get(place)
            if running and running.record.owner != owner:
                raise ValueError(f"{running.record.owner} has a workload {workload.name} already")
            if running and running.status.state in (State.SUCCEEDED, State.FAILED):
                return
            record = _Record(owner, workload)
            if running is None or running.record != record:
                try:
                    await asyncio.to_thread(_write_record, self._path(place), record)
                except OSError as error:
                    why = FREE_SOME if says_full(error) else f"cannot be written ({error.strerror}); it is tried again"
                    raise Unavailable(f"{self._path(place)}: {why}") from error
                await self._keep(place, record)

    async def remove(self, owner: Owner, name: str) -> None:
        """Stop the workload and forget it, its folder and its log included."""
        place = (owner.namespace, name)
        async with self._lock(place):
            running = self._running.get(place)
            if running and running.record.owner == owner:
                await self._remove(place)

    async def discard_volumes(self, owner: Owner) -> None:
        """Delete the folders of an object that is gone."""
        await asyncio.to_thread(volumes.discard, self._home, owner)
        self._surroundings.with_volumes -= {owner}

    def _path(self, place: Place) -> Path:
        return self._folder / place[0] / place[1]

    def _lock(self, place: Place) -> asyncio.Lock:
        return self._locks.setdefault(place, asyncio.Lock())

    async def _keep(self, place: Place, record: _Record) -> None:
        running = self._running.get(place)
        if running is None:

            def changed() -> None:
                for listener in self._listeners:
                    listener(record.owner)

            running = self._running[place] = _Running(self._path(place), record, self._surroundings, changed)
        await running.keep(record.workload)

    async def _remove(self, place: Place) -> None:
        folder = self._path(place)
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread((folder / RECORD).replace, folder / REMOVED)
        await self._running[place].stop()
        owner = self._running.pop(place).record.owner
        await _discard_workload(folder)
        for listener in self._listeners:
            listener(owner)


async def _discard_workload(folder: Path) -> None:
    """End what runs in a workload's folder, and delete it."""
    replicas = await asyncio.to_thread(lambda: [path for path in folder.iterdir() if path.name.isdigit()])
    await asyncio.gather(*(discard(ReplicaFolder(path)) for path in replicas))
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def end(folder: ReplicaFolder) -> bool:
    """End what runs in a replica's folder, whoever started it. True when anything did."""
    supervision = await Supervision.find(folder)
    if supervision is not None:
        await supervision.stop()
    swept = await asyncio.to_thread(sweep, folder)
    return supervision is not None or bool(swept)


async def discard(folder: ReplicaFolder) -> None:
    """End what runs in a replica's folder, and delete it."""
    await end(folder)
    await asyncio.to_thread(shutil.rmtree, folder.root, ignore_errors=True)


def _read_record(folder: Path) -> _Record | None:
    try:
        return _RECORDS.validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def _write_record(folder: Path, record: _Record) -> None:
    with contextlib.suppress(FileNotFoundError):
        (folder / REMOVED).unlink()
    write_text(folder / RECORD, _RECORDS.dump_json(record).decode())
