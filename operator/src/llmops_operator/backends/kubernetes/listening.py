"""What programs say themselves, asked of them again and again: results, progress, and what gateways answer with.

Only of objects that may have something new to say: those whose children changed, that run something which completes, or whose service is
not ready; gateways are asked as long as they serve.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

from llmops_api.programs import Said
from llmops_api.v1alpha1.meta import Progress
from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.children import POD, Children
from llmops_operator.backends.kubernetes.rendering.names import GATEWAY_PORT, RESULT, ROLE, UID, WORKLOAD
from llmops_operator.backends.kubernetes.results import (
    PATIENCE_SECONDS,
    PROGRESS_SECONDS,
    Logs,
    progress_of,
    seconds_since,
)
from llmops_operator.backends.kubernetes.status import MAINS, Heard, ended_at, is_main, pods_of, speaker
from llmops_operator.controllers.ports import Conflict, NotFound, Unavailable
from llmops_operator.domain.workload import Owner, Role

log = logging.getLogger(__name__)

COLLECT_SECONDS = 0.5
OWED_SECONDS = 5.0
"""How often it is looked for the result that an ended program still owes."""
REPORT_SECONDS = 2.0
"""How often gateways are asked what they answer with."""
REPORT_TIMEOUT = 5.0
STUCK_SECONDS = 10.0
"""So long something may take to begin before it is asked why it does not."""
MOST_REPORTS = 16
"""Gateways that are asked at the same time."""
FOLLOWED, ASKED_WHY, REPORTING = 500, 50, 300
"""At most so many objects each time; the others are next."""

Key = tuple[Owner, str]
Manifest = Mapping[str, Any]


class Listening:
    """`changed` is called with the owner of a workload that said something new."""

    def __init__(
        self, api: Api, children: Children, changed: Callable[[Owner], None], acting: Callable[[], bool]
    ) -> None:
        self._api, self._children, self._changed, self._acting = api, children, changed, acting
        self._logs = Logs(api)
        self._progress: dict[Key, Progress] = {}
        self._reports: dict[Key, Mapping[str, Any]] = {}
        self._asked: set[Key] = set()
        self._warnings: dict[Key, str] = {}
        self._overdue: set[Key] = set()
        self._owing: dict[Key, float] = {}
        self._look_at: set[Owner] = set()
        self._running = Turns(FOLLOWED)
        self._beginning = Turns(ASKED_WHY)
        self._gateways = Turns(REPORTING)

    def look_at(self, owner: Owner) -> None:
        """Its children have changed."""
        self._look_at.add(owner)

    def heard(self, owner: Owner, name: str) -> Heard:
        """What was heard of a workload last."""
        key = (owner, name)
        return Heard(
            self._progress.get(key),
            self._reports.get(key),
            unasked=key not in self._asked,
            overdue=key in self._overdue,
            warning=self._warnings.get(key, ""),
        )

    def forget(self, owner: Owner, name: str) -> None:
        """The workload is gone."""
        key = (owner, name)
        self._progress.pop(key, None)
        self._reports.pop(key, None)
        self._asked.discard(key)
        self._warnings.pop(key, None)
        self._overdue.discard(key)
        self._owing.pop(key, None)

    async def run(self) -> None:
        """Listen until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._again(self._collect, COLLECT_SECONDS))
            tasks.create_task(self._again(self._follow, PROGRESS_SECONDS))
            tasks.create_task(self._again(self._ask, REPORT_SECONDS))
            tasks.create_task(self._again(self._ask_why, STUCK_SECONDS))

    async def _again(self, look: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            try:
                if self._acting():
                    await look()
            except (Conflict, NotFound, Unavailable) as reason:
                log.info("what workloads say cannot be read or kept: %s", reason)
            except Exception:
                log.exception("listening to workloads failed; it is tried again")
            await asyncio.sleep(seconds)

    async def _collect(self) -> None:
        """Take the results of what has ended, and find out who is to be listened to."""
        owners, self._look_at = self._look_at, set()
        try:
            await asyncio.gather(*(self._collect_of(owner) for owner in owners))
        except BaseException:
            self._look_at |= owners
            raise

    async def _collect_of(self, owner: Owner) -> None:
        children = self._children.of(owner, *MAINS, "Pod")
        mains = [one for one in children if is_main(one)]
        gateways = [one for one in mains if _is_gateway(one)]
        self._gateways.put(owner, bool(gateways))
        running = any(_runs(one) or (owner, one["metadata"]["name"]) in self._progress for one in mains)
        self._running.put(owner, running)
        self._beginning.put(owner, running)
        for main in mains:
            if not _runs(main):
                self._warnings.pop((owner, main["metadata"]["name"]), None)
            if ended_at(main) and RESULT not in (main["metadata"].get("annotations") or {}):
                await self._take_result(owner, main, pods_of(children, main))

    async def _take_result(self, owner: Owner, main: Manifest, pods: Sequence[Manifest]) -> None:
        key = (owner, main["metadata"]["name"])
        if key in self._overdue:
            return
        said_by = speaker(main, pods)
        said = await self._logs.last(Said.RESULT, said_by) if said_by else None
        if said is not None:
            await self._children.annotate(main, {RESULT: json.dumps(said, ensure_ascii=False)})
            self._owing.pop(key, None)
        elif await self._is_owed(key, main):
            asyncio.get_running_loop().call_later(OWED_SECONDS, self.look_at, owner)
        else:
            self._overdue.add(key)
            self._changed(owner)

    async def _is_owed(self, key: Key, main: Manifest) -> bool:
        """Whether a result may still come. The API server is asked for the pod, which may be there and not heard of yet: after an outage
        the watches of Jobs and of pods go on at different times. An outage takes nothing from the patience.
        """
        owner, name = key
        try:
            there = await self._api.any(POD, namespace=owner.namespace, selector=f"{UID}={owner.uid},{WORKLOAD}={name}")
        except Unavailable:
            self._owing.pop(key, None)
            raise
        now = asyncio.get_running_loop().time()
        return there and now - self._owing.setdefault(key, now) < PATIENCE_SECONDS

    async def _follow(self) -> None:
        """How far programs are that complete, and services that are not ready yet."""
        await asyncio.gather(*(self._follow_one(owner) for owner in self._running.next()))

    async def _follow_one(self, owner: Owner) -> None:
        children = self._children.of(owner, *MAINS, "Pod")
        news = False
        for main in (one for one in children if is_main(one)):
            key = (owner, main["metadata"]["name"])
            said_by = speaker(main, pods_of(children, main))
            speaks = said_by is not None and (said_by.get("status") or {}).get("phase") == "Running"
            if ended_at(main) or (main["kind"] == "Deployment" and _is_ready(main)) or not speaks or said_by is None:
                news |= self._progress.pop(key, None) is not None
                continue
            said = progress_of(await self._logs.last(Said.PROGRESS, said_by))
            if said is not None and said != self._progress.get(key):
                self._progress[key] = said
                news = True
        if news:
            self._changed(owner)

    async def _ask_why(self) -> None:
        """Why pods cannot be made or cannot begin: where no status says it, events do."""
        for owner in self._beginning.next():
            children = self._children.of(owner, *MAINS, "Pod", "PersistentVolumeClaim")
            for main in (one for one in children if is_main(one) and not ended_at(one)):
                pods = pods_of(children, main)
                key = (owner, main["metadata"]["name"])
                if any((pod.get("status") or {}).get("phase") != "Pending" for pod in pods):
                    said = ""
                else:
                    # Of a pod that waits for a volume an event says no more than that; the claim's own says why.
                    claims = [one for one in children if _is_unbound(one)]
                    said = await self._warning([*claims, *(pods[:1] or [main])])
                if said != self._warnings.get(key, ""):
                    self._warnings[key] = said
                    self._changed(owner)

    async def _warning(self, stuck: Sequence[Manifest]) -> str:
        """What an event says of the first of them that one warns of."""
        for one in stuck:
            metadata = one["metadata"]
            if seconds_since(metadata.get("creationTimestamp")) < STUCK_SECONDS:
                continue
            try:
                said = await self._api.warnings(metadata["namespace"], metadata["uid"])
            except (ApiException, NotFound, Unavailable) as error:
                log.info("events of %s cannot be read: %s", metadata["name"], error)
                continue
            if said:
                about = (
                    f'persistentvolumeclaim "{metadata["name"]}": ' if one["kind"] == "PersistentVolumeClaim" else ""
                )
                return f"{about}{said[-1]}"[:1000]
        return ""

    async def _ask(self) -> None:
        """What gateways answer with."""
        owners = self._gateways.next()
        if not owners:
            return
        places = asyncio.Semaphore(MOST_REPORTS)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REPORT_TIMEOUT)) as http:
            await asyncio.gather(*(self._ask_of(owner, http, places) for owner in owners))

    async def _ask_of(self, owner: Owner, http: aiohttp.ClientSession, places: asyncio.Semaphore) -> None:
        children = self._children.of(owner, *MAINS, "Pod")
        for main in (one for one in children if is_main(one) and _is_gateway(one)):
            key = (owner, main["metadata"]["name"])
            found = [said for pod in pods_of(children, main) if (said := await _report(pod, http, places)) is not None]
            before = self._reports.get(key)
            # While some replicas have taken a change over and some have not, what was said before still counts.
            report = before if before in found else found[0] if found else None
            if report == before and key in self._asked:
                continue
            self._asked.add(key)
            if report is None:
                self._reports.pop(key, None)
            else:
                self._reports[key] = report
            self._changed(owner)


class Turns:
    """Objects that take turns, `most` at a time. One that is put anew, because it has changed, is next."""

    def __init__(self, most: int) -> None:
        self._most, self._owners = most, OrderedDict[Owner, None]()

    def put(self, owner: Owner, there: bool) -> None:
        """Have it take turns, or not."""
        self._owners.pop(owner, None)
        if there:
            self._owners[owner] = None
            self._owners.move_to_end(owner, last=False)

    def next(self) -> list[Owner]:
        """Those whose turn it is."""
        found = list(islice(self._owners, self._most))
        for owner in found:
            self._owners.move_to_end(owner)
        return found


async def _report(pod: Manifest, http: aiohttp.ClientSession, places: asyncio.Semaphore) -> Mapping[str, Any] | None:
    address = (pod.get("status") or {}).get("podIP")
    if not address or pod["metadata"].get("deletionTimestamp"):
        return None
    try:
        async with places, http.get(f"http://{address}:{GATEWAY_PORT}/readyz") as answer:
            said = await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def _is_unbound(child: Manifest) -> bool:
    return child["kind"] == "PersistentVolumeClaim" and (child.get("status") or {}).get("phase") != "Bound"


def _is_gateway(main: Manifest) -> bool:
    return bool(main["metadata"]["labels"].get(ROLE) == Role.GATEWAY)


def _runs(main: Manifest) -> bool:
    """Whether it is to be followed: it completes and has not, or is not ready yet."""
    return not ended_at(main) and not (main["kind"] == "Deployment" and _is_ready(main))


def _is_ready(main: Manifest) -> bool:
    return ((main.get("status") or {}).get("readyReplicas") or 0) > 0
