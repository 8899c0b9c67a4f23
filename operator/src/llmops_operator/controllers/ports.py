"""What the controllers need from the place they run in: a store of objects, a backend of workloads, and the collections of indexes.

The first two are level-triggered: whatever changes is told by calling the listener with the owner's key, as often as it likes, and the
reconciler looks at everything anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from llmops_operator.domain.workload import Owner, Workload, WorkloadStatus


class Conflict(Exception):
    """The object has changed since it was read: read it again, decide again."""


class NotFound(Exception):
    """There is no such object."""


class NotYet(Exception):
    """It is under way and takes its time: ask again later."""


class Unavailable(Exception):
    """The place does not answer, or refuses: the sentence says what to do where somebody has to do something."""


class Refused(Unavailable):
    """The place does not want what it was asked, and will not until somebody changes something."""


Key = tuple[str, str, str]
"""(kind, namespace, name)"""

Manifest = Mapping[str, Any]
"""An object as it stands in YAML, with apiVersion, kind, metadata, spec and status."""


class Store(Protocol):
    """The custom resources. Reads are from memory, writes go through; objects are plain mappings in Kubernetes' shape."""

    def get(self, key: Key) -> Manifest | None:
        """The object as last seen, or None."""

    def keys(self) -> tuple[Key, ...]:
        """The keys of all objects as last seen."""

    async def exists(self, key: Key) -> bool:
        """Whether there is such an object, asked where it is kept: it may not have been seen yet. Raises `Unavailable`."""

    async def write_status(self, key: Key, status: Mapping[str, Any], *, resource_version: str) -> None:
        """Replace `status`. Raises `Conflict` or `NotFound`."""

    async def set_finalizer(self, key: Key, finalizer: str, *, present: bool) -> None:
        """Add or remove a finalizer; an object marked for deletion goes when its last one is removed. Raises `NotFound`."""

    async def record_event(self, key: Key, *, type_: str, reason: str, message: str) -> None:
        """Tell people about a transition (`Normal` or `Warning`); the same event again is counted, not repeated,
        and about the same version of the object it is no news.
        """

    def subscribe(self, listener: Callable[[Key], None]) -> None:
        """Call `listener` with the key of each object that is there, and of each that changes or goes, from the event loop's thread."""


class Backend(Protocol):
    """Runs workloads. Idempotent: applying what already runs as said changes nothing."""

    def observe(self, owner: Owner) -> Mapping[str, WorkloadStatus]:
        """The workloads of an object by name, as last seen."""

    def owners(self) -> frozenset[Owner]:
        """All objects that have workloads here, so that those of vanished objects can be removed."""

    async def apply(self, owner: Owner, workload: Workload) -> None:
        """Make `workload` run as said. One that completes and has ended is left as it is."""

    async def remove(self, owner: Owner, name: str) -> None:
        """Stop the workload (signal, grace, kill) and forget it. Returns when it is gone; nothing happens when it never was.

        Raises `NotYet` when it is ending and that takes longer than a worker should wait.
        """

    async def discard_volumes(self, owner: Owner) -> None:
        """Delete the folders of `Scope.OBJECT` of an object that is gone."""

    def subscribe(self, listener: Callable[[Owner], None]) -> None:
        """Call `listener` with the owner of a workload whose status changed, from the event loop's thread."""


class Collections(Protocol):
    """The collections of indexes in the vector store. What is in them is the programs' business."""

    async def drop(self, alias: str, uid: str) -> None:
        """Remove the collections that the index of this `uid` has made behind `alias`, and the alias with them; that there are none (any
        more) is no error.

        Raises `Unavailable`, and `NotYet` when others are in the way.
        """
