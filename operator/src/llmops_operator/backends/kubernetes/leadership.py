"""One replica acts at a time: a Lease says which, and a replica that could not renew it in time writes no more (fencing).

A replica may write until two thirds of the lease are over since it *sent* its last successful renewal, and no write waits longer
than until then for its answer; another one takes over when it has *seen* the lease unchanged for the whole time. Both measure
spans on their own monotonic clock, so no two clocks are compared.

The election of `kubernetes.aio` measures with the wall clock, renews without a timeout for its requests, gives nothing to check
before a write, and does not release the lease at the end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from llmops_operator.backends.kubernetes.client import Client
from llmops_operator.backends.kubernetes.config import LeaderElection
from llmops_operator.controllers.ports import Conflict, NotFound, Unavailable

log = logging.getLogger(__name__)

WRITING_SHARE = 2 / 3
"""Of the lease: how long its holder writes without having renewed it."""


class LeadershipLost(BaseException):
    """This process may not write any more. Not an `Exception`: nobody may take it for a failed look at one object."""


class Lease:
    """The Lease as one replica, `identity`, sees it. `client` has no guard: this is what the guard asks."""

    def __init__(
        self, client: Client, election: LeaderElection, identity: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client, self._election, self._identity, self._clock = client, election, identity, clock
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{election.namespace}/leases"
        self._writing_until = float("-inf")
        self._observed: tuple[str, float] = ("", float("-inf"))
        self._said = ""

    @property
    def held(self) -> bool:
        """Whether this replica may write now."""
        return self._clock() < self._writing_until

    def guard(self) -> float:
        """How many seconds are left for a write. Raises `LeadershipLost` when there are none."""
        left = self._writing_until - self._clock()
        if left <= 0:
            raise LeadershipLost(f"{self._identity} does not hold the lease {self._election.lease_name} any more")
        return left

    async def acquire(self) -> None:
        """Wait until this replica holds the lease."""
        while True:
            if await self._attempt():
                break
            await asyncio.sleep(self._election.renew_seconds)
        log.info("%s leads", self._identity)

    async def keep(self) -> None:
        """Renew the lease until cancelled. Raises `LeadershipLost`."""
        while True:
            await asyncio.sleep(self._election.renew_seconds)
            await self._attempt()
            self.guard()

    async def release(self) -> None:
        """Let another replica take over at once."""
        if not self.held:
            return
        self._writing_until = float("-inf")
        try:
            lease = await self._client.ask("GET", f"{self._path}/{self._election.lease_name}", seconds=2)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"]["holderIdentity"] = ""
                await self._client.ask("PUT", f"{self._path}/{self._election.lease_name}", body=lease, seconds=2)
        except (Conflict, NotFound, Unavailable) as reason:
            log.warning("the lease could not be released, it runs out by itself: %s", reason)

    async def _attempt(self) -> bool:
        """Take the lease, or renew it. False when it is another's, or the API server does not answer."""
        seconds = max(1.0, self._election.renew_seconds)
        sent = self._clock()
        try:
            async with asyncio.timeout(seconds * 2):
                lease = await self._read(seconds)
                if lease is not None and not self._may_take(lease):
                    return False
                sent = self._clock()
                await self._write(lease, seconds)
        except Conflict:
            return False
        except (Unavailable, TimeoutError) as reason:
            said = str(reason) or "the API server does not answer"
            (log.debug if said == self._said else log.warning)("the lease cannot be renewed: %s", said)
            self._said = said
            return False
        self._said = ""
        self._writing_until = sent + self._election.lease_seconds * WRITING_SHARE
        return True

    async def _read(self, seconds: float) -> Any:
        try:
            return await self._client.ask("GET", f"{self._path}/{self._election.lease_name}", seconds=seconds)
        except NotFound:
            return None

    def _may_take(self, lease: Any) -> bool:
        holder = lease["spec"].get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        version, since = self._observed
        if lease["metadata"]["resourceVersion"] != version:
            if not version:
                log.info("%s leads, %s stands by", holder, self._identity)
            self._observed = (lease["metadata"]["resourceVersion"], self._clock())
            return False
        length = max(self._election.lease_seconds, float(lease["spec"].get("leaseDurationSeconds") or 0))
        return self._clock() - since > length

    async def _write(self, lease: Any, seconds: float) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = lease["spec"] if lease else {}
        mine = before.get("holderIdentity") == self._identity
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._election.lease_seconds)),
            "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if mine else now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (0 if mine or not lease else 1),
        }
        metadata = {"name": self._election.lease_name, "namespace": self._election.namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        if lease is None:
            await self._client.ask("POST", self._path, body=body, seconds=seconds)
        else:
            body["metadata"] = lease["metadata"]
            await self._client.ask("PUT", f"{self._path}/{self._election.lease_name}", body=body, seconds=seconds)
