"""One kind of objects, kept as the API server has it: listed once, watched from there, listed anew when the history is lost."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable

from llmops_operator.backends.kubernetes.api import Api, Gone, Manifest, Resource
from llmops_operator.backends.kubernetes.cache import Cache, key_of, version_of
from llmops_operator.controllers.ports import Key, NotFound, Unavailable

log = logging.getLogger(__name__)

ABSENT_SECONDS = 10.0
"""How often it is looked whether a kind that the cluster does not have has come."""
FIRST_SECONDS, CAP_SECONDS = 0.2, 30.0
HELD_SECONDS = 5.0
"""A watch that ends after this long was none that is refused again and again: it begins anew at once."""


class Informer:
    """Objects of one kind with a label, in `cache`. `changed` is called with each that is new or has changed, `gone` with the key of
    each that is no more.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        cache: Cache,
        *,
        selector: str,
        namespace: str | None,
        changed: Callable[[Manifest], None],
        gone: Callable[[Key], None],
    ) -> None:
        self.kind = resource.kind
        self.absent = False
        """Whether the cluster does not have this kind."""
        self.synced = asyncio.Event()
        """Set once everything that is there is known, or the kind is known to be absent."""
        self._api, self._resource, self._cache = api, resource, cache
        self._selector, self._namespace, self._changed, self._gone = selector, namespace, changed, gone

    async def run(self) -> None:
        """Keep the cache until cancelled. Whatever fails is logged and tried again, ever more slowly: who died here would leave his kind
        unseen, and nobody would know.
        """
        now = asyncio.get_running_loop().time
        failures, watched_from = 0, math.inf
        while True:
            try:
                version = await self._list()
                watched_from = now()
                await self._watch(version)
            except Gone:
                log.info("the history of %s is gone: listing them anew", self._resource.plural)
            except NotFound:
                self.absent = True
                self.synced.set()
                await asyncio.sleep(ABSENT_SECONDS)
            except Exception as error:
                failures = 1 if now() - watched_from > HELD_SECONDS else failures + 1
                watched_from = math.inf
                self._log(error, failures)
                pause = min(CAP_SECONDS, FIRST_SECONDS * 2.0 ** min(failures, 20))
                await asyncio.sleep(pause * (1 + 0.2 * random.random()))  # noqa: S311

    def _log(self, error: Exception, failures: int) -> None:
        if isinstance(error, Unavailable):
            level = logging.WARNING if failures > 1 else logging.INFO
            log.log(level, "%s: %s", self._resource.plural, error)
        else:
            log.error("watching %s failed; it begins anew", self._resource.plural, exc_info=error)

    async def _list(self) -> str:
        # A list says apiVersion and kind once, for all of its items.
        kind = {"apiVersion": self._resource.api_version, "kind": self._resource.kind}
        there, version = set(), 0
        async for page in self._api.pages(self._resource, namespace=self._namespace, selector=self._selector):
            self.absent, version = False, version_of(page)
            for item in ({**kind, **one} for one in page.get("items") or ()):
                there.add(key_of(item))
                self.keep(item)
        for key, known in self._cache.keys(self._resource.kind):
            if key not in there and known <= version and self._namespace in (None, key[1]):
                self._drop(key, version)
        self.synced.set()
        return str(version)

    async def _watch(self, version: str) -> None:
        while True:
            changes = self._api.watch(self._resource, version, namespace=self._namespace, selector=self._selector)
            async for type_, item in changes:
                version = item["metadata"]["resourceVersion"]
                if type_ == "DELETED":
                    self._drop(key_of(item), version_of(item))
                elif type_ != "BOOKMARK":
                    self.keep(item)

    def keep(self, item: Manifest) -> None:
        """Take an object over: from a list, a watch, or as the answer to a write of our own."""
        if self._cache.put(item):
            self._changed(item)

    def _drop(self, key: Key, version: int) -> None:
        if self._cache.drop(key, version):
            self._gone(key)
