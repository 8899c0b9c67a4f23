"""The custom resources of a cluster: reads are from the cache, writes go to the API server and from its answer into the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmops_api.v1alpha1 import KINDS
from llmops_api.v1alpha1.meta import API_VERSION
from llmops_operator.backends import finalizers
from llmops_operator.backends.kubernetes.cache import Cache, key_of, version_of
from llmops_operator.backends.kubernetes.client import FIELD_MANAGER, JSON_PATCH, MERGE_PATCH, Client
from llmops_operator.backends.kubernetes.events import EventRecorder
from llmops_operator.controllers.ports import Key, Manifest, NotFound

PLURALS = {kind: "embeddingindexes" if kind == "EmbeddingIndex" else f"{kind.lower()}s" for kind in KINDS}


def path_of(kind: str, namespace: str | None = None, name: str | None = None) -> str:
    """Where the objects of a kind are, or one of them."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{API_VERSION}{within}/{PLURALS[kind]}" + (f"/{name}" if name else "")


class KubernetesStore:
    """Implements `controllers.ports.Store`. `seen` and `vanished` are what the watch tells, from the event loop's thread."""

    def __init__(self, client: Client, cache: Cache, events: EventRecorder) -> None:
        self._client, self._cache, self._events = client, cache, events
        self._listeners: list[Callable[[Key], None]] = []

    def get(self, key: Key) -> Manifest | None:
        """The object as last seen, or None."""
        return self._cache.get(key)

    def keys(self) -> tuple[Key, ...]:
        """The keys of all objects as last seen."""
        return tuple(key for kind in KINDS for key, _ in self._cache.keys(kind))

    async def exists(self, key: Key) -> bool:
        """Whether the API server has it. Raises `Unavailable`."""
        try:
            await self._client.ask("GET", path_of(*key))
        except NotFound:
            return False
        return True

    async def write_status(self, key: Key, status: Mapping[str, Any], *, resource_version: str) -> None:
        """Replace `status` by one PATCH, if the object is still as it was. Raises `Conflict`, `NotFound`, `Unavailable`."""
        patch = [
            {"op": "add", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]
        await self._patch(key, patch, JSON_PATCH, "/status")

    async def set_finalizer(self, key: Key, finalizer: str, *, present: bool) -> None:
        """Add or remove a finalizer. Raises `Conflict`, `NotFound`, `Unavailable`."""
        known = self._cache.get(key)
        if known is None:
            raise NotFound(f"{key[0]} {key[1]}/{key[2]} does not exist")
        before = known["metadata"].get("finalizers", [])
        after = finalizers.changed(before, finalizer, present=present)
        if after == before:
            return
        version = known["metadata"]["resourceVersion"]
        await self._patch(key, {"metadata": {"resourceVersion": version, "finalizers": after}}, MERGE_PATCH)

    async def record_event(self, key: Key, *, type_: str, reason: str, message: str) -> None:
        """Have people told about a transition. It is written later, and never fails the one who tells."""
        known = self._cache.get(key)
        if known is not None:
            self._events.record(known, type_=type_, reason=reason, message=message)

    def subscribe(self, listener: Callable[[Key], None]) -> None:
        """Call `listener` with the key of each object that is there, and of each that changes or goes."""
        self._listeners.append(listener)
        for key in self.keys():
            listener(key)

    def seen(self, manifest: Mapping[str, Any]) -> None:
        """An object is so now, or was so a while ago."""
        if self._cache.put(manifest):
            self._tell(key_of(manifest))

    def vanished(self, key: Key, version: int) -> None:
        """An object is gone as of a version."""
        if self._cache.drop(key, version):
            self._tell(key)

    async def _patch(self, key: Key, patch: Any, content_type: str, subresource: str = "") -> None:
        kind, namespace, name = key
        answer = await self._client.ask(
            "PATCH",
            path_of(kind, namespace, name) + subresource,
            query={"fieldManager": FIELD_MANAGER},
            body=patch,
            content_type=content_type,
        )
        metadata = answer["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            self.vanished(key, version_of(answer))
        else:
            self.seen(answer)

    def _tell(self, key: Key) -> None:
        for listener in self._listeners:
            listener(key)
