"""A store, a backend and collections in memory, for tests: what runs is said by the test, everything else is as in the real ones.

`writes` and `starts` keep what was done, so that a test can say that nothing was.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from llmops_api.names import is_version_of
from llmops_api.v1alpha1.meta import Progress
from llmops_operator.backends import finalizers
from llmops_operator.controllers.ports import Conflict, Key, Manifest, NotFound, Unavailable
from llmops_operator.domain.timing import timestamp
from llmops_operator.domain.workload import Lifecycle, Owner, Scope, State, Workload, WorkloadStatus


def _now() -> datetime:
    return datetime.now(UTC)


class MemoryStore:
    """Implements `controllers.ports.Store`; `apply` and `delete` are what a user does."""

    def __init__(self, clock: Callable[[], datetime] = _now) -> None:
        self._clock = clock
        self._objects: dict[Key, dict[str, Any]] = {}
        self._listeners: list[Callable[[Key], None]] = []
        self._version = 0
        self.writes: list[tuple[str, Key]] = []
        """What the controllers wrote: ("status" | "finalizer" | "event", key)."""
        self.events: list[tuple[Key, str, str, str]] = []
        """(key, type, reason, message)"""

    def apply(self, manifest: Mapping[str, Any]) -> Key:
        """Create or change an object; its status stays. Nothing is validated, as if it had got past the schema."""
        wish = copy.deepcopy(dict(manifest))
        wish["metadata"] = {"namespace": "default", **wish["metadata"]}
        key: Key = (wish["kind"], wish["metadata"]["namespace"], wish["metadata"]["name"])
        stored = self._objects.get(key)
        if stored is None:
            managed = {"uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": timestamp(self._clock())}
            self._put(key, wish | {"metadata": wish["metadata"] | managed, "status": {}})
            return key
        given = {name: wish["metadata"].get(name, {}) for name in ("labels", "annotations")}
        generation = stored["metadata"]["generation"] + (stored["spec"] != wish["spec"])
        metadata = stored["metadata"] | given | {"generation": generation}
        self._put(key, stored | {"metadata": metadata, "spec": wish["spec"]})
        return key

    def delete(self, key: Key) -> None:
        """Delete an object, or mark it for deletion when it has finalizers."""
        metadata = self._read(key)["metadata"]
        if not metadata.get("finalizers"):
            self._drop(key)
        elif not metadata.get("deletionTimestamp"):
            self._put(key, self._read(key) | {"metadata": metadata | {"deletionTimestamp": timestamp(self._clock())}})

    def get(self, key: Key) -> Manifest | None:
        """The object."""
        return copy.deepcopy(self._objects.get(key))

    def keys(self) -> tuple[Key, ...]:
        """The keys of all objects."""
        return tuple(self._objects)

    def list(self, kind: str, namespace: str | None = None) -> list[Manifest]:
        """All objects of a kind."""
        return [
            copy.deepcopy(one) for key, one in self._objects.items() if key[0] == kind and namespace in (None, key[1])
        ]

    async def exists(self, key: Key) -> bool:
        """Whether there is such an object."""
        return key in self._objects

    async def write_status(self, key: Key, status: Mapping[str, Any], *, resource_version: str) -> None:
        """Replace `status`."""
        stored = self._read(key)
        if stored["metadata"]["resourceVersion"] != resource_version:
            raise Conflict(f"{key} has changed since version {resource_version}")
        self.writes.append(("status", key))
        self._put(key, stored | {"status": copy.deepcopy(dict(status))})

    async def set_finalizer(self, key: Key, finalizer: str, *, present: bool) -> None:
        """Add or remove a finalizer."""
        metadata = self._read(key)["metadata"]
        self.writes.append(("finalizer", key))
        before = metadata.get("finalizers", [])
        after = finalizers.changed(before, finalizer, present=present)
        if metadata.get("deletionTimestamp") and not after:
            self._drop(key)
        elif after != before:
            self._put(key, self._read(key) | {"metadata": metadata | {"finalizers": after}})

    async def record_event(self, key: Key, *, type_: str, reason: str, message: str) -> None:
        """Keep an event."""
        self.writes.append(("event", key))
        self.events.append((key, type_, reason, message))

    def subscribe(self, listener: Callable[[Key], None]) -> None:
        """Tell of all objects, and of each change."""
        self._listeners.append(listener)
        for key in self._objects:
            listener(key)

    def unsubscribe_all(self) -> None:
        """Forget the listeners, as when the control plane dies."""
        self._listeners.clear()

    def _read(self, key: Key) -> dict[str, Any]:
        if key not in self._objects:
            raise NotFound(f"{key} does not exist")
        return self._objects[key]

    def _put(self, key: Key, stored: dict[str, Any]) -> None:
        self._version += 1
        self._objects[key] = stored | {"metadata": stored["metadata"] | {"resourceVersion": str(self._version)}}
        self._tell(key)

    def _drop(self, key: Key) -> None:
        del self._objects[key]
        self._tell(key)

    def _tell(self, key: Key) -> None:
        for listener in self._listeners:
            listener(key)


@dataclass
class Running:
    """A workload that was applied, and how it is doing."""

    workload: Workload
    status: WorkloadStatus = field(default_factory=lambda: WorkloadStatus(State.PENDING))


class MemoryBackend:
    """Implements `controllers.ports.Backend`. Nothing happens to a workload until a test says so."""

    def __init__(self, clock: Callable[[], datetime] = _now) -> None:
        self._clock = clock
        self._running: dict[Owner, dict[str, Running]] = {}
        self._holders: dict[tuple[str, str], Owner] = {}
        self._listeners: list[Callable[[Owner], None]] = []
        self.volumes: set[Owner] = set()
        """The objects that have folders of their own."""
        self.starts: list[str] = []
        """The name of each workload that was started, again for each time it was started anew."""
        self.changes: list[tuple[str, str]] = []
        """("start" | "live" | "remove" | "discard", name)"""

    def observe(self, owner: Owner) -> Mapping[str, WorkloadStatus]:
        """The workloads of an object."""
        return {name: one.status for name, one in self._running.get(owner, {}).items()}

    def owners(self) -> frozenset[Owner]:
        """All objects that have workloads or folders here."""
        return frozenset(owner for owner, workloads in self._running.items() if workloads) | self.volumes

    async def apply(self, owner: Owner, workload: Workload) -> None:
        """Start it, start it anew, or replace its live files."""
        holder = self._holders.setdefault((owner.namespace, workload.name), owner)
        if holder != owner:
            raise ValueError(f"{holder.kind} {holder.name} has a workload {workload.name} already")
        mine = self._running.setdefault(owner, {})
        known = mine.get(workload.name)
        if known and (known.workload == workload or known.status.state in (State.SUCCEEDED, State.FAILED)):
            return
        if known and replace(known.workload, live_files=workload.live_files) == workload:
            known.workload = workload
            self.changes.append(("live", workload.name))
            return
        mine[workload.name] = Running(workload)
        if any(volume.scope is Scope.OBJECT for volume in workload.volumes):
            self.volumes.add(owner)
        self.starts.append(workload.name)
        self.changes.append(("start", workload.name))
        self._tell(owner)

    async def remove(self, owner: Owner, name: str) -> None:
        """Forget it."""
        if self._running.get(owner, {}).pop(name, None):
            del self._holders[owner.namespace, name]
            self.changes.append(("remove", name))
            self._tell(owner)

    async def discard_volumes(self, owner: Owner) -> None:
        """Forget the folders."""
        if owner in self.volumes:
            self.volumes.discard(owner)
            self.changes.append(("discard", owner.name))

    def subscribe(self, listener: Callable[[Owner], None]) -> None:
        """Tell of each change of a status."""
        self._listeners.append(listener)

    def unsubscribe_all(self) -> None:
        """Forget the listeners, as when the control plane dies."""
        self._listeners.clear()

    # What a test says

    @property
    def names(self) -> list[str]:
        """All workloads, by name."""
        return sorted(one.name for owner in self._running for one in self._workloads(owner))

    def workload(self, name: str) -> Workload:
        """The workload as it was applied last. Raises `KeyError`."""
        return self._find(name)[1].workload

    def run(self, name: str, *, progress: Progress | None = None, reason: str = "", message: str = "") -> None:
        """It runs; with a reason it runs and is not well."""
        self._set(name, state=State.RUNNING, progress=progress, reason=reason, message=message)

    def ready(self, name: str, *, report: Mapping[str, Any] | None = None, endpoint: str = "") -> None:
        """All its replicas answer that they are ready."""
        replicas = self.workload(name).replicas
        endpoints = (endpoint or f"http://{name}",)
        self._set(
            name,
            state=State.RUNNING,
            ready_replicas=replicas,
            endpoints=endpoints,
            report=report,
            reason="",
            message="",
        )

    def unready(
        self, name: str, *, reason: str = "", message: str = "", report: Mapping[str, Any] | None = None
    ) -> None:
        """None of its replicas is ready."""
        self._set(
            name, state=State.RUNNING, ready_replicas=0, endpoints=(), report=report, reason=reason, message=message
        )

    def finish(self, name: str, result: Mapping[str, Any] | None = None) -> None:
        """It has ended with exit code 0."""
        self._end(name, State.SUCCEEDED, exit_code=0, result=result)

    def fail(self, name: str, *, exit_code: int | None = 1, reason: str = "", message: str = "") -> None:
        """It has ended badly."""
        self._end(name, State.FAILED, exit_code=exit_code, reason=reason, message=message)

    def _end(self, name: str, state: State, **facts: Any) -> None:
        assert self.workload(name).lifecycle is Lifecycle.COMPLETES, f"{name} runs until it is removed"
        self._set(name, state=state, ended_at=timestamp(self._clock()), progress=None, **facts)

    def _set(self, name: str, **facts: Any) -> None:
        owner, running = self._find(name)
        started = running.status.started_at or timestamp(self._clock())
        running.status = replace(running.status, started_at=started, **facts)
        self._tell(owner)

    def _workloads(self, owner: Owner) -> list[Workload]:
        return [one.workload for one in self._running[owner].values()]

    def _find(self, name: str) -> tuple[Owner, Running]:
        for owner, workloads in self._running.items():
            if name in workloads:
                return owner, workloads[name]
        raise KeyError(f"no workload {name}: there are {', '.join(self.names) or 'none'}")

    def _tell(self, owner: Owner) -> None:
        for listener in self._listeners:
            listener(owner)


class MemoryCollections:
    """Implements `controllers.ports.Collections`."""

    def __init__(self) -> None:
        self.uids: dict[str, str] = {}
        """The collections, each with the uid of the index that made it."""
        self.aliases: dict[str, str] = {}
        self.away = ""
        """Why nothing can be dropped."""
        self.tries = 0
        """How often it was asked to drop something."""

    async def drop(self, alias: str, uid: str) -> None:
        """Forget what an index has made."""
        self.tries += 1
        if self.away:
            raise Unavailable(self.away)
        dropped = {name for name, owner in self.uids.items() if is_version_of(alias, name) and owner == uid}
        self.uids = {name: owner for name, owner in self.uids.items() if name not in dropped}
        self.aliases = {name: target for name, target in self.aliases.items() if target not in dropped}
