"""The live configuration: which revision serves, and the next one on its way to serving.

The config file is looked at twice a second. A new configuration is checked; one that is wrong is logged and the last good one
stays. A good one is prepared beside the one that serves: it takes over, in one assignment, when an engine lists its model and all
its indexes can be searched. Requests under way keep the revision that they began with, as long as its model is there.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from qdrant_client import AsyncQdrantClient

from llmops_api.programs import GatewayConfig, GatewayReport
from llmops_api.reasons import FailureReason
from llmops_services.gateway.engines import Engine, Engines
from llmops_services.gateway.errors import unavailable
from llmops_services.gateway.limits import LIMITS, Limits
from llmops_services.gateway.lookup import Encoders, Lookup, SearchableIndex
from llmops_services.program import UserError, load_config
from llmops_services.vectors import connect_async

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Revision:
    """A configuration that can serve: its engines known, its indexes searchable."""

    config: GatewayConfig
    engines: tuple[Engine, ...]
    lookup: Lookup

    @property
    def name(self) -> str:
        """The name that users ask for."""
        return self.config.object.name

    def servable(self) -> bool:
        """Whether an engine lives and lists the model."""
        return any(engine.serves(self.config.model) for engine in self.engines)


class Live:
    """Follows the config file at `path`."""

    def __init__(self, path: Path, *, api_key: str | None = None, limits: Limits = LIMITS) -> None:
        self._path, self._limits = path, limits
        self._engines = Engines(api_key=api_key, limits=limits)
        self._encoders = Encoders()
        self._store: AsyncQdrantClient | None = None
        self._current: Revision | None = None
        self._candidate: Revision | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._mark: tuple[int, int, int] | None = None
        self._fault = ""
        self.draining = False

    @property
    def engines(self) -> Engines:
        """All engines in use."""
        return self._engines

    @property
    def revision(self) -> Revision:
        """The revision that serves. Raises `ApiError` 503 while there is none."""
        if self._current is None:
            raise unavailable("This service is starting; /readyz says what it waits for.", "not_ready", retry_after=2)
        return self._current

    def start(self) -> None:
        """Read the file and follow it. Raises `UserError` when the first configuration is wrong."""
        self._mark = self._look()
        self._take(load_config(GatewayConfig, self._path))
        self._watching = asyncio.create_task(self._watch(), name="config")

    async def stop(self) -> None:
        """Follow nothing any more."""
        for task in (self._watching, self._preparing):
            if task is not None:
                task.cancel()
        for revision in (self._current, self._candidate):
            if revision is not None:
                revision.lookup.stop()
        self._engines.close()
        if self._store is not None:
            await self._store.close()

    def report(self) -> GatewayReport:
        """What `/readyz` says."""
        current, messages = self._current, []
        if self._candidate is not None:
            messages.append(self._waits(self._candidate))
        if current is not None and not current.servable():
            messages.append(f"no engine serves {current.config.model}")
        if current is not None and (problem := current.lookup.problem()):
            messages.append(problem)
        ready = current is not None and current.servable() and not current.lookup.problem() and not self.draining
        if self._fault:
            messages.append(self._fault)
        if self.draining:
            messages.append("shutting down")
        return GatewayReport(
            ready=ready,
            message="; ".join(messages),
            revision=current.config.revision if current else "",
            model=current.config.model if current else "",
            indexes=current.lookup.collections() if current else {},
        )

    def _waits(self, revision: Revision) -> str:
        reasons = [revision.lookup.problem()] if revision.lookup.problem() else []
        missing = [name for name in revision.lookup.names if name not in revision.lookup.indexes]
        if missing and not reasons:
            reasons.append(f"loading the embedding models of {', '.join(missing)}")
        if not revision.engines:
            reasons.append("there is no engine yet")
        elif not revision.servable():
            first = next((engine for engine in revision.engines if not engine.up), revision.engines[0])
            why = first.failure or "it answers without that model; its log says how far it is"
            reasons.append(f"no engine serves {revision.config.model} yet ({first.url}: {why})")
        return f"revision {revision.config.revision} waits: {'; '.join(reasons) or 'about to serve'}"

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._encoders.keep(index.encoder for index in self._in_use())
            mark = self._look()
            if mark is None or mark == self._mark:
                continue
            self._mark = mark
            try:
                config = load_config(GatewayConfig, self._path)
                if config.object.name != self._name():
                    raise UserError(
                        FailureReason.CONFIG_INVALID, f"{self._path}: object.name may not change; start another gateway"
                    )
                self._take(config)
            except (UserError, ValueError) as error:
                self._fault = f"the new configuration is not used: {error}"
                log.error("%s", self._fault)

    def _name(self) -> str:
        known = self._current or self._candidate
        assert known is not None
        return known.name

    def _in_use(self) -> list[SearchableIndex]:
        revisions = (self._current, self._candidate)
        return [index for r in revisions if r is not None for index in r.lookup.indexes.values()]

    def _take(self, config: GatewayConfig) -> None:
        """Make it the candidate, in place of an earlier one."""
        store = self._connect() if config.indexes else None
        self._fault = ""
        if self._preparing is not None:
            self._preparing.cancel()
        self._drop_candidate()
        if self._current is not None and self._current.config == config:
            self._use()
            return
        self._use(config)
        self._candidate = Revision(config, self._engines.of(config.engines), self._lookup(config, store))
        self._preparing = asyncio.create_task(self._prepare(self._candidate), name=f"prepare {config.revision}")

    def _drop_candidate(self) -> None:
        if self._candidate is not None and (
            self._current is None or self._candidate.lookup is not self._current.lookup
        ):
            self._candidate.lookup.stop()
        self._candidate = None

    def _lookup(self, config: GatewayConfig, store: AsyncQdrantClient | None) -> Lookup:
        current = self._current
        if current is not None and _aliases(current.config) == _aliases(config):
            return current.lookup
        return Lookup(config.indexes, store, self._encoders, self._limits)

    def _connect(self) -> AsyncQdrantClient:
        if self._store is None:
            self._store = connect_async()
        return self._store

    def _use(self, *more: GatewayConfig) -> None:
        wanted: dict[str, set[str]] = {}
        for config in (*([self._current.config] if self._current else []), *more):
            for url in config.engines:
                wanted.setdefault(url, set()).add(config.model)
        self._engines.use(wanted)

    async def _prepare(self, revision: Revision) -> None:
        old = self._current
        if old is None or revision.lookup is not old.lookup:
            await revision.lookup.start()
        while not revision.servable():
            await self._engines.changed.wait()
            self._engines.changed.clear()
        self._current, self._candidate = revision, None
        if old is not None and old.lookup is not revision.lookup:
            old.lookup.stop()
        self._use()
        log.info("revision %s serves %s as %s", revision.config.revision, revision.config.model, revision.name)


def _aliases(config: GatewayConfig) -> tuple[tuple[str, str], ...]:
    return tuple((index.name, index.alias) for index in config.indexes)
