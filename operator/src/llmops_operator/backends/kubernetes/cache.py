"""Objects as last seen, each compressed against an example of its kind: ten thousand of them take some megabytes.

Versions only go forward: what arrives late (an event of before our own write, an answer to a write of before a deletion) changes
nothing. That resource versions of one kind can be compared as numbers is guaranteed since Kubernetes 1.35, and was so before.
"""

from __future__ import annotations

import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from llmops_operator.controllers.ports import Key

GONE_REMEMBERED = 10_000
GROWN = 1.25
"""So much larger than the example of its kind an object is, to be the example from then on."""


@dataclass(frozen=True, slots=True)
class _Entry:
    version: int
    packed: bytes
    like: bytes
    """What it was packed against."""
    conditions: tuple[tuple[str, str], ...]


class Cache:
    """Objects by key. `conditions` counts them by (kind, type of condition, its status)."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[tuple[str, str], _Entry]] = {}
        self._like: dict[str, bytes] = {}
        self._gone: OrderedDict[Key, int] = OrderedDict()
        self.conditions: Counter[tuple[str, str, str]] = Counter()

    def put(self, manifest: Mapping[str, Any]) -> bool:
        """Keep an object. False when this version of it, or a newer one, is known already."""
        key, version = key_of(manifest), version_of(manifest)
        known = self._objects.get(key[0], {}).get(key[1:])
        if version <= max(known.version if known else -1, self._gone.get(key, -1)):
            return False
        metadata = {name: value for name, value in manifest["metadata"].items() if name != "managedFields"}
        text = orjson.dumps({**manifest, "metadata": metadata})
        like = self._like.get(key[0], b"")
        if len(text) > GROWN * len(like):
            self._like[key[0]] = text
        entry = _Entry(version, _packed(text, like), like, _conditions(manifest))
        self._objects.setdefault(key[0], {})[key[1:]] = entry
        self._count(key[0], known, -1)
        self._count(key[0], entry, +1)
        return True

    def drop(self, key: Key, version: int) -> bool:
        """Forget an object that is gone as of `version`. False when it is not known, or known to have come again since."""
        known = self._objects.get(key[0], {}).get(key[1:])
        if known is not None and known.version > version:
            return False
        self._gone[key] = max(version, self._gone.pop(key, -1))
        if len(self._gone) > GONE_REMEMBERED:
            self._gone.popitem(last=False)
        if known is None:
            return False
        del self._objects[key[0]][key[1:]]
        self._count(key[0], known, -1)
        return True

    def get(self, key: Key) -> dict[str, Any] | None:
        """The object, or None."""
        entry = self._objects.get(key[0], {}).get(key[1:])
        return None if entry is None else _unpacked(entry)

    def __contains__(self, key: Key) -> bool:
        return key[1:] in self._objects.get(key[0], {})

    def keys(self, kind: str) -> Iterator[tuple[Key, int]]:
        """The keys of a kind with the version of each."""
        for (namespace, name), entry in list(self._objects.get(kind, {}).items()):
            yield (kind, namespace, name), entry.version

    def count(self, kind: str) -> int:
        """How many objects of a kind there are."""
        return len(self._objects.get(kind, {}))

    def _count(self, kind: str, entry: _Entry | None, by: int) -> None:
        for type_, status in entry.conditions if entry else ():
            self.conditions[kind, type_, status] += by


def key_of(manifest: Mapping[str, Any]) -> Key:
    """The key of an object."""
    return (manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def version_of(manifest: Mapping[str, Any]) -> int:
    """The version of an object, or of a list."""
    return int(manifest["metadata"]["resourceVersion"])


def _packed(text: bytes, like: bytes) -> bytes:
    packer = zlib.compressobj(level=1, zdict=like)
    return packer.compress(text) + packer.flush()


def _unpacked(entry: _Entry) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(zlib.decompressobj(zdict=entry.like).decompress(entry.packed))
    return found


def _conditions(manifest: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Types and statuses, for counting; whatever else stands there is no concern of the cache."""
    status = manifest.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    if not isinstance(conditions, list):
        return ()
    return tuple(_pair(str(one.get("type")), str(one.get("status"))) for one in conditions if isinstance(one, dict))


@lru_cache
def _pair(type_: str, status: str) -> tuple[str, str]:
    """One pair for all objects that have it."""
    return type_, status
