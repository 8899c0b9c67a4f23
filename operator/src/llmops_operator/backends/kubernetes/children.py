"""All children of all objects, as the API server has them, and the writes that make them what they should be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from llmops_operator.backends.kubernetes.api import Api, Manifest, Resource
from llmops_operator.backends.kubernetes.cache import Cache, key_of
from llmops_operator.backends.kubernetes.drift import holds
from llmops_operator.backends.kubernetes.informer import Informer
from llmops_operator.backends.kubernetes.rendering.names import APPLIED, CACHE_CLAIM, SELECTOR, WORKLOAD, owner_of
from llmops_operator.controllers.ports import Conflict, Key, NotFound, NotYet, Unavailable
from llmops_operator.domain.workload import Owner

JOB = Resource("batch/v1", "Job", "jobs")
DEPLOYMENT = Resource("apps/v1", "Deployment", "deployments")
SERVICE = Resource("v1", "Service", "services")
CONFIG_MAP = Resource("v1", "ConfigMap", "configmaps")
CLAIM = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
NETWORK_POLICY = Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
POD = Resource("v1", "Pod", "pods")
RAYJOB = Resource("ray.io/v1", "RayJob", "rayjobs")
KINDS = {
    resource.kind: resource for resource in (JOB, DEPLOYMENT, SERVICE, CONFIG_MAP, CLAIM, NETWORK_POLICY, POD, RAYJOB)
}

MADE_ONCE = frozenset({"Job", "RayJob", "PersistentVolumeClaim"})
"""What is never changed once it is there: an attempt runs as it was begun, and a claim keeps what it has."""
OWNING = frozenset({"Job", "RayJob", "Deployment"})
"""What has pods: it is gone when they are."""
GOING_SECONDS = 2.0


class Taken(Unavailable):
    """Somebody else has an object of that name."""


@dataclass(frozen=True, slots=True)
class Family:
    """An object and its children; one `owner` for all of them, because there are many."""

    owner: Owner
    keys: dict[Key, None] = field(default_factory=dict)


class Children:
    """Reads are from memory. `changed` is called with the owner of a child that is new, has changed or has gone."""

    def __init__(self, api: Api, namespaces: Iterable[str], changed: Callable[[Owner], None]) -> None:
        self._api, self._tell = api, changed
        self._cache = Cache()
        self._families: dict[Owner, Family] = {}
        self._family_of: dict[Key, Family] = {}
        self._going: dict[Owner, asyncio.Event] = {}
        places: list[str | None] = [*namespaces] or [None]
        self._informers = [
            Informer(
                api,
                resource,
                self._cache,
                selector=SELECTOR,
                namespace=namespace,
                changed=self._changed,
                gone=self._gone,
            )
            for resource in KINDS.values()
            for namespace in places
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to watch; returns when everything that is there is known."""
        self._tasks = [asyncio.create_task(informer.run()) for informer in self._informers]
        for informer in self._informers:
            await informer.synced.wait()

    async def stop(self) -> None:
        """Watch no longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def absent(self, kind: str) -> bool:
        """Whether the cluster does not have this kind."""
        return any(informer.absent for informer in self._informers if informer.kind == kind)

    def owners(self) -> frozenset[Owner]:
        """All objects that have children."""
        return frozenset(self._families)

    def of(self, owner: Owner, *kinds: str) -> list[dict[str, Any]]:
        """The children of an object, and the pods of its children; those of some kinds, or of all."""
        family = self._families.get(owner)
        keys = list(family.keys) if family else ()
        found = (self._cache.get(key) for key in keys if not kinds or key[0] in kinds)
        return [one for one in found if one is not None]

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """One child as last seen."""
        return self._cache.get((kind, namespace, name))

    def has(self, kind: str, namespace: str, name: str) -> bool:
        """Whether there is such a child, as far as seen."""
        return (kind, namespace, name) in self._cache

    async def apply(self, manifest: Manifest) -> bool:
        """Make a child what was rendered; whether anything was written. Raises `NotYet` while an older one of its name goes,
        and `Taken` when it is somebody else's.
        """
        metadata = manifest["metadata"]
        kind, namespace, name = manifest["kind"], metadata["namespace"], metadata["name"]
        live: Manifest | None = self.get(kind, namespace, name)
        if live is None:
            # Without asking first, which would be a request for each new child. Unless it is new, it would become ours, whosever it is.
            with suppress(Conflict):
                self._keep(await self._api.apply(KINDS[kind], manifest, anew=True))
                return True
            live = await self._unseen(kind, namespace, name)
        if live is not None:
            if name != CACHE_CLAIM:
                _same_owner(manifest, live)
            if live["metadata"].get("deletionTimestamp"):
                raise NotYet(f"an older {kind} {name} is still there")
            same = (live["metadata"].get("annotations") or {}).get(APPLIED) == metadata["annotations"][APPLIED]
            if kind in MADE_ONCE or (same and holds(manifest, live)):
                return False
        self._keep(await self._api.apply(KINDS[kind], manifest))
        return True

    async def _unseen(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """An object that is not among those watched."""
        try:
            found = await self._api.read(KINDS[kind], namespace, name)
        except NotFound:
            return None
        return {**found, "kind": kind}

    async def annotate(self, live: Manifest, annotations: Mapping[str, str]) -> None:
        """Set annotations of a child or of a pod. One that has gone is nothing to worry about."""
        metadata = live["metadata"]
        patch = {"metadata": {"annotations": dict(annotations)}}
        try:
            found = await self._api.merge(KINDS[live["kind"]], metadata["namespace"], metadata["name"], patch)
        except NotFound:
            return
        self._keep(found)

    async def remove(self, owner: Owner, name: str) -> None:
        """Delete the children of a workload, and wait a moment until they and their pods are gone. Raises `NotYet`."""
        await self.prune(owner, name, ())
        await self._until_gone(owner, name)

    async def prune(self, owner: Owner, name: str, rendered: Iterable[Manifest]) -> None:
        """Delete the children of a workload that are not among those rendered for it."""
        kept = {key_of(manifest) for manifest in rendered}
        for child in self._of_workload(owner, name):
            metadata, kind = child["metadata"], child["kind"]
            if kind != "Pod" and key_of(child) not in kept and not metadata.get("deletionTimestamp"):
                await self._api.delete(
                    KINDS[kind], metadata["namespace"], metadata["name"], uid=metadata["uid"], owning=kind in OWNING
                )

    async def remove_claims(self, owner: Owner) -> None:
        """Delete the claims of an object. They go when no pod uses them any more: nobody waits for that."""
        for child in self.of(owner, "PersistentVolumeClaim"):
            if not child["metadata"].get("deletionTimestamp"):
                await self._api.delete(CLAIM, owner.namespace, child["metadata"]["name"], uid=child["metadata"]["uid"])

    def _of_workload(self, owner: Owner, name: str) -> list[dict[str, Any]]:
        return [one for one in self.of(owner) if one["metadata"]["labels"].get(WORKLOAD) == name]

    async def _until_gone(self, owner: Owner, name: str) -> None:
        deadline = asyncio.get_running_loop().time() + GOING_SECONDS
        while self._of_workload(owner, name):
            went = self._going.setdefault(owner, asyncio.Event())
            went.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await went.wait()
            except TimeoutError:
                raise NotYet(f"{name} is still ending{_on_nodes(self._of_workload(owner, name))}") from None
        self._going.pop(owner, None)

    def _keep(self, manifest: Manifest) -> None:
        if self._cache.put(manifest):
            self._changed(manifest)

    def _changed(self, manifest: Manifest) -> None:
        owner = owner_of(manifest)
        if owner is not None:
            key = key_of(manifest)
            family = self._family_of[key] = self._families.setdefault(owner, Family(owner))
            family.keys[key] = None
            self._tell(owner)

    def _gone(self, key: Key) -> None:
        family = self._family_of.pop(key, None)
        if family is None:
            return
        family.keys.pop(key, None)
        if not family.keys:
            del self._families[family.owner]
        if family.owner in self._going:
            self._going[family.owner].set()
        self._tell(family.owner)


def _on_nodes(children: Iterable[Manifest]) -> str:
    """Which pods are left, and where: those of a node that is lost end when it is back, or is deleted."""
    left = [
        f"pod {one['metadata']['name']}" + (f" on node {node}" if (node := one["spec"].get("nodeName")) else "")
        for one in children
        if one["kind"] == "Pod"
    ]
    return f": {', '.join(left)}" if left else ""


def _same_owner(manifest: Manifest, live: Manifest) -> None:
    ours, theirs = owner_of(manifest), owner_of(live)
    metadata = live["metadata"]
    if ours is None or ours == theirs:
        return
    if theirs is not None and (theirs.kind, theirs.name) == (ours.kind, ours.name):
        raise NotYet(f"an older {live['kind']} {metadata['name']} is still there")
    who = f"{theirs.kind} {theirs.name}" if theirs else "somebody else"
    raise Taken(
        f"{who} has a {live['kind']} {metadata['name']} in namespace {metadata['namespace']} already: give this object another "
        "name, or remove that one; it goes on by itself"
    )
