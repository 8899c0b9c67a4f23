"""Events in events.k8s.io/v1, written in the background: the same one again within a while is a series that counts, not another object.

They are asked for when a decision finds a transition, which is compared with the status that was written. An object whose status cannot be
written is found so at each look: so the same event about the same version of an object is told once, and has a name of its own. None comes
again because the operator was restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from llmops_operator.backends.kubernetes.client import FIELD_MANAGER, MERGE_PATCH, Client
from llmops_operator.controllers.ports import Conflict, NotFound, Refused, Unavailable
from llmops_operator.domain.fingerprint import fingerprint

log = logging.getLogger(__name__)

WRITERS = 4
"""Events are written at the same time by so many; those of an object by one, so that they can be counted."""
WAITING = 1000
"""So many events wait for each of them at most; what comes then is dropped."""
SERIES = 2000
"""So many events are remembered, to be counted instead of repeated,"""
SERIES_SECONDS = 600.0
"""for so long after each was told last."""
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between tries to write an event while the API server is away. The others wait behind it."""
NOTE_LENGTH = 1024
"""The API server takes no longer note."""


@dataclass(frozen=True)
class _Told:
    uid: str
    type_: str
    reason: str
    note: str


@dataclass
class _Series:
    path: str
    count: int
    last: float
    version: str
    """Of the object, when it was told last."""


class EventRecorder:
    """Writes events until cancelled. `instance` names this replica."""

    def __init__(self, client: Client, instance: str) -> None:
        self._client, self._instance = client, instance
        self._queues = [asyncio.Queue[tuple[str, _Told, dict[str, Any]]](WAITING) for _ in range(WRITERS)]
        self._series: OrderedDict[_Told, _Series] = OrderedDict()
        self._failing = False
        self._dropping = False

    def record(self, regarding: Mapping[str, Any], *, type_: str, reason: str, message: str) -> None:
        """Have an event about an object written."""
        metadata = regarding["metadata"]
        note = message if len(message.encode()) <= NOTE_LENGTH else _cut(message)
        reference = {
            "apiVersion": regarding["apiVersion"],
            "kind": regarding["kind"],
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        }
        told = _Told(metadata["uid"], type_, reason, note)
        name = f"{metadata['name']}.{fingerprint({**asdict(told), 'version': metadata['resourceVersion']})[:16]}"
        queue = self._queues[hash(metadata["uid"]) % WRITERS]
        try:
            queue.put_nowait((name, told, reference))
            self._dropping = False
        except asyncio.QueueFull:
            if not self._dropping:
                log.warning("too many events are waiting; dropped: %s %s: %s", metadata["name"], reason, message)
            self._dropping = True

    async def run(self) -> None:
        """Write what is recorded."""
        async with asyncio.TaskGroup() as tasks:
            for queue in self._queues:
                tasks.create_task(self._write_all(queue))

    async def _write_all(self, queue: asyncio.Queue[tuple[str, _Told, dict[str, Any]]]) -> None:
        while True:
            waiting = await queue.get()
            try:
                await self._try(*waiting)
                self._failing = False
            except Exception as error:
                if not self._failing:
                    log.warning("events cannot be written: %s", error)
                self._failing = True
            finally:
                queue.task_done()

    async def flush(self, seconds: float) -> None:
        """Wait until all is written, `seconds` at most."""
        try:
            async with asyncio.timeout(seconds):
                for queue in self._queues:
                    await queue.join()
        except TimeoutError:
            log.warning("%d events are left unwritten", sum(queue.qsize() for queue in self._queues))

    async def _try(self, name: str, told: _Told, regarding: dict[str, Any]) -> None:
        for pause in PAUSES:
            try:
                return await self._write(name, told, regarding)
            except Refused:
                raise
            except Unavailable:
                await asyncio.sleep(pause)
        return await self._write(name, told, regarding)

    async def _write(self, name: str, told: _Told, regarding: dict[str, Any]) -> None:
        now, version = time.monotonic(), regarding["resourceVersion"]
        known = self._series.get(told)
        if known is not None and known.version == version:
            return
        if known is not None and now - known.last < SERIES_SECONDS:
            body = {"series": {"count": known.count + 1, "lastObservedTime": _now()}}
            try:
                await self._client.ask("PATCH", known.path, body=body, content_type=MERGE_PATCH)
            except NotFound:  # events are kept for an hour only, and anybody may delete them
                pass
            else:
                known.count, known.last, known.version = known.count + 1, now, version
                self._series.move_to_end(told)
                return
        path = f"/apis/events.k8s.io/v1/namespaces/{regarding['namespace']}/events"
        body = self._event(name, told, regarding)
        # Of the same name is only the same event, written by a try whose answer was lost, or before a restart.
        with contextlib.suppress(Conflict):
            await self._client.ask("POST", path, query={"fieldManager": FIELD_MANAGER}, body=body)
        self._series[told] = _Series(f"{path}/{name}", 1, now, version)
        while len(self._series) > SERIES:
            self._series.popitem(last=False)

    def _event(self, name: str, told: _Told, regarding: dict[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": regarding["namespace"]},
            "eventTime": _now(),
            "reportingController": f"llmops.dev/{FIELD_MANAGER}",
            "reportingInstance": self._instance[:128],
            "action": "Reconcile",
            "type": told.type_,
            "reason": told.reason,
            "note": told.note,
            "regarding": regarding,
        }


def _cut(message: str) -> str:
    return message.encode()[: NOTE_LENGTH - 3].decode(errors="ignore") + "…"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
