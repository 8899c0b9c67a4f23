"""How the store comes to know of every change: kopf watches the custom resources, and what a watch cannot tell is looked for.

kopf goes on with a watch that was cut from where it was, and lists anew when that is too long ago (410 Gone). It does not tell
what vanished in between. So whenever it is seen to list anew, and once a minute when the numbers differ, the names are listed
and compared with the cache.

kopf runs in a thread with an event loop of its own: when it ends it cancels every task of its loop, and it takes over the
signals of the main thread. It keeps nothing in the objects: both of its storages are nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import kopf

from llmops_api.v1alpha1 import KINDS
from llmops_api.v1alpha1.meta import GROUP, VERSION
from llmops_operator.backends.kubernetes.cache import Cache, key_of, version_of
from llmops_operator.backends.kubernetes.client import CLOSING_SECONDS, PAGE, Client
from llmops_operator.backends.kubernetes.store import PLURALS, KubernetesStore, path_of
from llmops_operator.controllers.ports import Key, NotFound, Unavailable

log = logging.getLogger(__name__)

COMPARE_SECONDS = 60.0
SETTLE_SECONDS = 1.0
FILLED_SECONDS = 0.5
STALLED_SECONDS = 60.0
END_SECONDS = 5.0
NAMES_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class Watching:
    """Keeps `store` up to date with the cluster, in the namespaces named, or in all."""

    def __init__(self, client: Client, cache: Cache, store: KubernetesStore, namespaces: Sequence[str] = ()) -> None:
        self._client, self._cache, self._store = client, cache, store
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._full = asyncio.Event()
        self._listed_anew = asyncio.Event()
        self.alive = False
        """Whether kopf is watching."""

    async def defined(self) -> None:
        """Wait for the definitions of the resources: kopf looks for them once."""
        for kind in KINDS:
            await self._patiently(kind)

    async def filled(self) -> None:
        """Wait until as many objects are known as there are, which `run` brings about. The API server promises no exact number: it is
        enough when no more come.
        """
        for kind in KINDS:
            known, since = -1, 0.0
            while (count := self._cache.count(kind)) < (there := await self._patiently(kind)):
                now = asyncio.get_running_loop().time()
                if count > known:
                    known, since = count, now
                elif now - since > STALLED_SECONDS:
                    log.warning("the API server counts %d %s, and told of %d: going on", there, PLURALS[kind], count)
                    break
                await asyncio.sleep(FILLED_SECONDS)
        self._full.set()

    async def _patiently(self, kind: str) -> int:
        """How many objects there are, once the API server answers and has the kind."""
        said = ""
        while True:
            try:
                return await self._count(kind)
            except NotFound:
                reason = (
                    f"there is no {PLURALS[kind]}.{GROUP}: install the chart with crds.install=true, or apply crds/"
                )
            except Unavailable as error:
                reason = str(error)
            if reason != said:
                log.warning("%s; waiting", reason)
                said = reason
            await asyncio.sleep(2)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            await self._full.wait()
            self._listed_anew.clear()  # nothing can have vanished from what was empty
            tasks.create_task(self._compare())

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            stop, ended = threading.Event(), asyncio.Event()

            def watch(stop: threading.Event = stop, ended: asyncio.Event = ended) -> None:
                try:
                    asyncio.run(self._kopf(loop, stop))
                except BaseException as error:
                    log.warning("watching ended (%s: %s); it begins anew", type(error).__name__, error)
                finally:
                    if not loop.is_closed():
                        loop.call_soon_threadsafe(ended.set)

            thread = threading.Thread(target=watch, name="kopf", daemon=True)
            thread.start()
            self.alive = True
            try:
                await ended.wait()
            finally:
                self.alive = False
                stop.set()
                await asyncio.to_thread(thread.join, END_SECONDS)  # it closes its connections
            await asyncio.sleep(1)

    async def _kopf(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        """Be kopf. `_seen` is called in `loop`."""
        registry = kopf.OperatorRegistry()

        async def changed(event: Mapping[str, Any], **_: Any) -> None:
            loop.call_soon_threadsafe(self._seen, event["type"], event["object"])

        async def login(**options: Any) -> Any:
            return kopf.login_with_service_account(**options) or kopf.login_with_kubeconfig(**options)

        for plural in PLURALS.values():
            kopf.on.event(GROUP, VERSION, plural, id="changed", registry=registry)(changed)
        kopf.on.login(id="login", registry=registry)(login)
        namespaces = [namespace for namespace in self._namespaces if namespace]
        try:
            await kopf.operator(
                registry=registry,
                settings=settings(),
                standalone=True,
                clusterwide=not namespaces,
                namespaces=namespaces,
                stop_flag=stop,
            )
        finally:
            await asyncio.sleep(CLOSING_SECONDS)

    def _seen(self, type_: str | None, manifest: Mapping[str, Any]) -> None:
        if type_ == "DELETED":
            self._store.vanished(key_of(manifest), version_of(manifest))
            return
        if type_ is None:
            self._listed_anew.set()
        self._store.seen(manifest)

    async def _compare(self) -> None:
        """Find what vanished untold."""
        while True:
            try:
                async with asyncio.timeout(COMPARE_SECONDS):
                    await self._listed_anew.wait()
                await asyncio.sleep(SETTLE_SECONDS)
                self._listed_anew.clear()
                kinds = list(KINDS)
            except TimeoutError:
                kinds = []
            try:
                for kind in kinds or [kind for kind in KINDS if await self._count(kind) != self._cache.count(kind)]:
                    for namespace in self._namespaces:
                        await self._drop_vanished(kind, namespace)
            except (NotFound, Unavailable) as reason:
                log.debug("the objects cannot be compared: %s", reason)

    async def _count(self, kind: str) -> int:
        count = 0
        for namespace in self._namespaces:
            page = await self._client.ask("GET", path_of(kind, namespace), query={"limit": "1"}, accept=NAMES_ONLY)
            count += len(page.get("items") or ()) + page["metadata"].get("remainingItemCount", 0)
        return count

    async def _drop_vanished(self, kind: str, namespace: str | None) -> None:
        there: set[Key] = set()
        version = 0
        async for page in self._client.pages(path_of(kind, namespace), accept=NAMES_ONLY):
            version = version_of(page)
            there.update(
                (kind, item["metadata"]["namespace"], item["metadata"]["name"]) for item in page.get("items") or ()
            )
        for key, known in self._cache.keys(kind):
            if key not in there and known <= version and namespace in (None, key[1]):
                log.info("%s %s/%s has vanished while the watch was cut", *key)
                self._store.vanished(key, version)


class Backoffs:
    """Endless pauses between tries, so that kopf never gives up a request."""

    def __iter__(self) -> Iterator[float]:
        """Seconds."""
        yield from (0.5, 1, 2, 4)
        while True:
            yield 5


class NoDiffBase(kopf.DiffBaseStorage):
    """Nothing is compared with what was handled before, and so nothing is kept."""

    def build(self, **_: Any) -> Any:
        """Nothing."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Nothing."""
        return None

    def store(self, **_: Any) -> None:
        """Not stored."""


class NoProgress(kopf.ProgressStorage):
    """No handler has a progress: there are none that could."""

    def fetch(self, **_: Any) -> Any:
        """Nothing."""
        return None

    def store(self, **_: Any) -> None:
        """Not stored."""

    def purge(self, **_: Any) -> None:
        """There is nothing."""

    def touch(self, **_: Any) -> None:
        """Nothing is touched."""

    def clear(self, *, essence: Any) -> Any:
        """There is nothing in it."""
        return essence


def settings() -> kopf.OperatorSettings:
    """kopf as a watcher only."""
    found = kopf.OperatorSettings()
    found.scanning.disabled = True
    found.posting.enabled = False
    found.queueing.worker_limit = None
    found.queueing.idle_timeout = 0.1  # else it keeps a task and the object for each for five seconds
    found.watching.chunk_size = PAGE
    found.networking.error_backoffs = Backoffs()
    found.networking.enforce_retry_after = True
    found.networking.request_timeout = 60
    found.networking.connect_timeout = 10
    found.persistence.diffbase_storage = NoDiffBase()
    found.persistence.progress_storage = NoProgress()
    found.process.ultimate_exiting_timeout = None
    return found
