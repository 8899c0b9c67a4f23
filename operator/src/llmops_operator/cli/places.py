"""Where a command looks: a home on this machine (`laptop`) or a cluster (`cluster`). The commands know only what is said here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from llmops_operator.backends.recorded import Event

Key = tuple[str, str, str]
"""(kind, namespace, name)"""
Object = dict[str, Any]

__all__ = ["Event", "Key", "Object", "Place", "Program", "Reader"]


class Reader(Protocol):
    """The objects of a place as they are at the moment of each call. Each call raises `CommandError` when the place is gone."""

    def get(self, key: Key) -> Object | None:
        """The object, or None."""

    def all_of(self, kind: str, namespace: str | None = None) -> list[Object]:
        """All objects of a kind, by namespace and name; of one namespace unless that is None."""

    def events(self, key: Key | None = None, namespace: str | None = None) -> list[Event]:
        """The events of one object, or of all in a namespace; the latest last."""

    def changes(self, until: float | None = None, alive: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Now, and again when something may have changed, until the moment `until` (of `time.monotonic`) or until `alive` says
        no more.
        """


class Program(Protocol):
    """A program that was started for an object: a replica's folder, or a pod."""

    @property
    def role(self) -> str:
        """trainer, indexer, engine or gateway."""

    @property
    def workload(self) -> str:
        """What it is a replica of."""

    @property
    def number(self) -> str:
        """Which replica."""

    @property
    def where(self) -> str:
        """Where its log is, for people."""

    def last(self, tail: int) -> list[str]:
        """The last lines of its log; all for -1."""

    def follow(self, tail: int, say: Callable[[str], None]) -> None:
        """Say the last lines and each that comes, until the program has ended."""


class Place(Protocol):
    """Somewhere objects are, and what is needed of it."""

    namespace: str
    """The namespace that is meant when none is named."""
    repair: str
    """What a person does when nothing happens to an object, in an imperative sentence."""

    def reading(self) -> AbstractContextManager[Reader]:
        """Look at the objects. Raises `CommandError` when it cannot be done."""

    def note(self) -> str | None:
        """Why what is shown may be old."""

    def programs(self, key: Key) -> list[Program]:
        """The programs of an object, the one that was started last at the end."""

    def reached(self, url: str) -> AbstractContextManager[str]:
        """A URL of a status as it is reached from this machine."""

    def mlflow(self) -> AbstractContextManager[str]:
        """The address of MLflow. Raises `CommandError` when none is known."""
