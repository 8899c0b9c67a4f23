"""The control plane: whatever changes ends in the queue; workers look at one object at a time, decide, and act on the difference."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from llmops_api.names import index_alias
from llmops_api.reasons import Reason
from llmops_api.v1alpha1 import EmbeddingIndex, RagService, TrainingJob
from llmops_api.v1alpha1.embedding_index import EmbeddingIndexCondition
from llmops_api.v1alpha1.rag_service import RagServiceCondition
from llmops_api.v1alpha1.training_job import TrainingJobCondition
from llmops_operator.controllers import rag_services
from llmops_operator.controllers.gathering import Look, Sources
from llmops_operator.controllers.lineage.port import Lineage
from llmops_operator.controllers.meter import Meter, NoMeter, Result
from llmops_operator.controllers.ports import (
    Backend,
    Collections,
    Conflict,
    Key,
    Manifest,
    NotFound,
    NotYet,
    Refused,
    Store,
    Unavailable,
)
from llmops_operator.controllers.queue import WorkQueue
from llmops_operator.controllers.references import References
from llmops_operator.controllers.refusal import refused_status
from llmops_operator.domain import embedding_index, training_job
from llmops_operator.domain.admission import ApiObject, Invalid, parse
from llmops_operator.domain.decision import Decision, Event, owner_of, warning
from llmops_operator.domain.embedding_index import FINALIZER, IndexInput
from llmops_operator.domain.lineage import EndRecord, RunEnd
from llmops_operator.domain.timing import Timing, soonest
from llmops_operator.domain.training_job import TrainingInput
from llmops_operator.domain.workload import Owner

log = logging.getLogger(__name__)

SOON = 0.05
"""Seconds until an object is looked at again whose finalizer was just set: the store tells of that too, this is the net below it."""


@dataclass(frozen=True)
class Options:
    """`workers` objects are looked at at the same time; all of them every `resync_seconds`, should a change have gone untold.
    A look that takes longer than `timeout_seconds` is given up and tried again.
    """

    workers: int = 16
    resync_seconds: float = 600.0
    timeout_seconds: float = 120.0
    lineage_retry_seconds: float = 10.0
    timing: Timing = field(default_factory=Timing)


class ControlPlane:
    """Brings about what the objects of `store` ask for, by workloads of `backend`. `run` does it until it is cancelled."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        lineage: Lineage,
        collections: Collections,
        options: Options | None = None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        queue: WorkQueue[Key] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.options = options or Options()
        self._meter = meter or NoMeter()
        self._looking = 0
        self._finishing = False
        self._finished = asyncio.Event()
        self.queue = queue or WorkQueue()
        self._store, self._backend, self._lineage, self._clock = store, backend, lineage, clock
        self._collections = collections
        self._references = References()
        self._sources = Sources(store, backend, lineage, self._references, self.options.timing)
        self._owners: dict[Key, set[Owner]] = {}
        self._progress_written: dict[Key, float] = {}

    async def run(self) -> None:
        """Work until cancelled. Workloads go on running afterwards."""
        self._lineage.start(self.queue.add)
        self._backend.subscribe(self._workload_changed)
        self._store.subscribe(self._object_changed)
        for owner in self._backend.owners():
            self._workload_changed(owner)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._resync())
                for _ in range(self.options.workers):
                    tasks.create_task(self._work())
        finally:
            self.queue.close()
            await asyncio.to_thread(self._lineage.stop)

    async def _resync(self) -> None:
        """Add all objects once in `resync_seconds`, evenly, so that changes do not wait behind them."""
        while True:
            keys = self._store.keys()
            pause = self.options.resync_seconds / max(1, len(keys))
            for key in keys:
                await asyncio.sleep(pause)
                self.queue.add(key)
            if not keys:
                await asyncio.sleep(pause)

    def _object_changed(self, key: Key) -> None:
        self.queue.add(key)
        for dependent in self._references.dependents(key):
            self.queue.add(dependent)

    def _workload_changed(self, owner: Owner) -> None:
        key = (owner.kind, owner.namespace, owner.name)
        self._owners.setdefault(key, set()).add(owner)
        self.queue.add(key)

    async def finish(self, seconds: float) -> None:
        """Take no more work, and wait for what is being looked at, `seconds` at most. `run` is still to be cancelled."""
        self._finishing = True
        if self._looking:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._finished.wait()

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            if self._finishing:
                self.queue.done(key)
                return
            self._looking += 1
            try:
                await self._look(key)
            finally:
                self._looking -= 1
                if not self._looking:
                    self._finished.set()

    async def _look(self, key: Key) -> None:
        began = time.perf_counter()
        after, result = None, Result.ERROR
        try:
            async with asyncio.timeout(self.options.timeout_seconds):
                after = await self.reconcile(key)
            result = Result.DONE
        except (Conflict, NotYet) as reason:
            log.debug("%s %s/%s: %s", *key, reason)
            result = Result.AGAIN
        except NotFound:
            result = Result.DONE
        except Unavailable as reason:
            log.warning("%s %s/%s: %s", *key, reason)
            result = Result.UNAVAILABLE
        except TimeoutError:
            log.warning("%s %s/%s: not done within %s s", *key, self.options.timeout_seconds)
            result = Result.TIMEOUT
        except Exception:
            log.exception("%s %s/%s: looking at it failed; it is tried again", *key)
        finally:
            self.queue.done(key, failed=result is not Result.DONE, after=after)
            self._meter.looked(key[0], result, time.perf_counter() - began)

    async def reconcile(self, key: Key, *, not_dropped: str = "") -> float | None:
        """Look at one object and do what is to be done. Returns after how many seconds to look again. Raises `Conflict`, `NotYet`.

        `not_dropped` is why the collections of an index could not be dropped at the look before this one.
        """
        manifest = self._store.get(key)
        await self._remove_orphans(key, manifest["metadata"].get("uid") if manifest else None)
        if manifest is None:
            self._forget(key)
            return None
        found = parse(manifest)
        if isinstance(found, Invalid):
            await self._refuse(key, manifest, found)
            return None
        self._owners.setdefault(key, set()).add(owner_of(key[0], found.metadata))
        return await self._act(key, found, self._decide(manifest, found, not_dropped))

    def _decide(self, manifest: Manifest, found: ApiObject, not_dropped: str) -> Decision[Any]:
        at = Look(self._sources, manifest, self._clock())
        match found:
            case TrainingJob():
                run_url = self._lineage.run_url
                return training_job.decide(TrainingInput(job=found, run_url=run_url, **at.about(found)))
            case EmbeddingIndex():
                return embedding_index.decide(IndexInput(index=found, not_dropped=not_dropped, **at.about(found)))
            case RagService():
                return rag_services.look(found, at)

    async def _act(self, key: Key, found: ApiObject, decision: Decision[Any]) -> float | None:
        """The status comes before the workloads: what is begun is known to be begun, whatever happens in between."""
        owner, metadata = owner_of(key[0], found.metadata), found.metadata
        has = FINALIZER in metadata.finalizers
        if decision.finalizer and not has:
            await self._store.set_finalizer(key, FINALIZER, present=True)
            return SOON
        after = [decision.requeue_after]
        after.append(await self._write_status(key, found, decision.status.dump()))
        for event in decision.events:
            await self._tell(key, event)
        try:
            for name in decision.remove:
                await self._backend.remove(owner, name)
            if decision.drop:
                await self._collections.drop(decision.drop, metadata.uid)
        except (NotYet, Unavailable) as reason:
            if not decision.drop:
                raise
            log.warning("%s %s/%s: its collections are not dropped: %s", *key, reason)
            return await self.reconcile(key, not_dropped=str(reason))
        for workload in decision.workloads:
            await self._backend.apply(owner, workload)
        if decision.discard_volumes:
            await self._backend.discard_volumes(owner)
        if decision.record and not self._lineage.record(key, decision.record):
            after.append(self.options.lineage_retry_seconds)
        if decision.finalizer is False and has:
            for event in decision.events:  # the object is gone when somebody looks, and perhaps its namespace
                log.warning("%s %s/%s: %s", *key, event.message)
            await self._store.set_finalizer(key, FINALIZER, present=False)
        return soonest(*after)

    async def _write_status(self, key: Key, found: ApiObject, status: dict[str, Any]) -> float | None:
        """Write a status that differs. Progress alone waits for its interval: returns how long."""
        old = found.status.dump()
        if status == old:
            return None
        now = asyncio.get_running_loop().time()
        if _without_progress(status) == _without_progress(old):
            left = self._progress_written.get(key, float("-inf")) + self.options.timing.progress_interval - now
            if left > 0:
                return left
        await self._store.write_status(key, status, resource_version=found.metadata.resource_version)
        self._progress_written[key] = now
        return None

    async def _tell(self, key: Key, event: Event) -> None:
        await self._store.record_event(key, type_=event.type_, reason=event.reason, message=event.message)

    async def _refuse(self, key: Key, manifest: Manifest, invalid: Invalid) -> None:
        """Say what is wrong with an object that is none. What runs for it goes on as it was, and nothing keeps it from being deleted."""
        metadata = manifest["metadata"]
        if metadata.get("deletionTimestamp") and FINALIZER in (metadata.get("finalizers") or ()):
            alias = index_alias(metadata["namespace"], metadata["name"])
            by_hand = f"drop the alias {alias} and the collections {alias}.* by hand, if they are to go"
            left = f"deleted, but what is to become of its collections cannot be read ({invalid.message}): {by_hand}"
            log.warning("%s %s/%s: %s", *key, left)
            await self._tell(key, warning(Reason.COLLECTIONS_LEFT_BEHIND, left))
            await self._store.set_finalizer(key, FINALIZER, present=False)
            return
        status = refused_status(manifest, SUMMARIES[key[0]], invalid.message, self._clock())
        if status == (manifest.get("status") or {}):
            return
        version = manifest["metadata"].get("resourceVersion", "")
        # An API server takes no status of an object that breaks the schema badly enough: then the event alone tells.
        with suppress(Refused):
            await self._store.write_status(key, status, resource_version=version)
        await self._store.record_event(key, type_="Warning", reason=Reason.INVALID, message=invalid.message)

    async def _remove_orphans(self, key: Key, uid: str | None) -> None:
        """Remove what runs for objects of this name that are gone. Raises `NotYet` for one that was not seen yet."""
        gone = [owner for owner in self._owners.get(key, ()) if owner.uid != uid]
        if gone and uid is None and await self._store.exists(key):
            raise NotYet("it has children, and was not seen yet itself")
        for owner in gone:
            for name in self._backend.observe(owner):
                await self._backend.remove(owner, name)
            await self._backend.discard_volumes(owner)
            if owner.kind == "TrainingJob":
                self._lineage.record(key, EndRecord(owner, RunEnd.KILLED))
            self._owners[key].discard(owner)

    def _forget(self, key: Key) -> None:
        self._owners.pop(key, None)
        self._progress_written.pop(key, None)
        self._references.put(key, ())
        self._lineage.resolve(key, None)


SUMMARIES: Mapping[str, tuple[str, ...]] = {
    "TrainingJob": (TrainingJobCondition.ACCEPTED, TrainingJobCondition.SUCCEEDED),
    "EmbeddingIndex": (EmbeddingIndexCondition.ACCEPTED, EmbeddingIndexCondition.READY),
    "RagService": (RagServiceCondition.ACCEPTED, RagServiceCondition.READY),
}
"""The conditions that say that an object is none."""


def _without_progress(status: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in status.items() if name != "progress"}
