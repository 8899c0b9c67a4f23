"""Which objects look at which: a change of an object is a reason to look at those that refer to it."""

from __future__ import annotations

from collections.abc import Iterable

from llmops_operator.controllers.ports import Key


class References:
    """Who refers to what, both ways; the objects referred to need not exist."""

    def __init__(self) -> None:
        self._to: dict[Key, frozenset[Key]] = {}
        self._from: dict[Key, set[Key]] = {}

    def put(self, key: Key, to: Iterable[Key]) -> None:
        """`key` refers to `to` and to nothing else from now on."""
        new = frozenset(to)
        old = self._to.get(key, frozenset())
        for gone in old - new:
            self._from[gone].discard(key)
            if not self._from[gone]:
                del self._from[gone]
        for added in new - old:
            self._from.setdefault(added, set()).add(key)
        if new:
            self._to[key] = new
        else:
            self._to.pop(key, None)

    def dependents(self, key: Key) -> tuple[Key, ...]:
        """The objects that refer to `key`."""
        return tuple(self._from.get(key, ()))
