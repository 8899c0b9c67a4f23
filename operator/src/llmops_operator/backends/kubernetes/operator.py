"""The operator process: caches, one leader, the control plane; begun in this order and ended in the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from llmops_api.programs import Env
from llmops_operator.backends.ending import signals_set
from llmops_operator.backends.kubernetes import metrics as metrics_server
from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.cache import Cache
from llmops_operator.backends.kubernetes.client import Client, Guard, configuration
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.connection import Connection
from llmops_operator.backends.kubernetes.events import EventRecorder
from llmops_operator.backends.kubernetes.leadership import LeadershipLost, Lease
from llmops_operator.backends.kubernetes.metrics import Metrics
from llmops_operator.backends.kubernetes.store import KubernetesStore
from llmops_operator.backends.kubernetes.watching import Watching
from llmops_operator.controllers.control_plane import ControlPlane, Options
from llmops_operator.controllers.lineage.port import Lineage, NoLineage
from llmops_operator.controllers.ports import Backend
from llmops_operator.controllers.vector_store import QdrantCollections

log = logging.getLogger(__name__)

FINISH_SECONDS = 10.0
"""How long, at the end, what is being looked at may take."""
FLUSH_SECONDS = 3.0


class ClusterBackend(Backend, Protocol):
    """A backend with informers."""

    async def start(self) -> None:
        """Fill its caches and keep them so. Raises `Unavailable`."""

    async def stop(self) -> None:
        """Watch no more. Workloads go on running."""


MakeBackend = Callable[[Client, OperatorConfig, Guard], ClusterBackend]


@dataclass(frozen=True)
class Ready:
    """An operator that leads."""

    plane: ControlPlane
    port: int


async def run(
    config: OperatorConfig,
    make_backend: MakeBackend,
    *,
    options: Options | None = None,
    on_leading: Callable[[Ready], None] = lambda ready: None,
    stop: asyncio.Event | None = None,
) -> None:
    """Be the operator until SIGTERM, SIGINT or `stop`. Raises `LeadershipLost` when another replica may have taken over."""
    stop = stop or asyncio.Event()
    identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    found = await configuration()
    metrics, synced = Metrics(), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(signals_set(stop))
        lease_client = Client(found)  # connections of its own: no load of others delays a renewal
        stack.push_async_callback(lease_client.close)
        lease = Lease(lease_client, config.leader_election, identity)
        client = Client(found, guard=lease.guard, meter=metrics)
        stack.push_async_callback(client.close)
        cache, events = Cache(), EventRecorder(client, identity)
        store = KubernetesStore(client, cache, events)
        watching = Watching(client, cache, store, config.watch_namespaces)
        backend = make_backend(client, config, lease.guard)
        lineage, mlflow_errors = _lineage(config)
        connection = Connection(Api(client), config)

        async def vector_store() -> tuple[str, str | None]:
            lease.guard()  # what is dropped there is a write like any other
            return config.qdrant.url, await connection.value(Env.QDRANT_API_KEY)

        plane = ControlPlane(
            store,
            backend,
            lineage,
            QdrantCollections(vector_store),
            options or Options(workers=config.workers, resync_seconds=config.resync_seconds),
            meter=metrics,
        )
        metrics.watch(plane.queue, cache, mlflow_errors)
        runner, port = await metrics_server.serve(
            config.port,
            metrics,
            healthy=lambda: "" if watching.alive or not synced.is_set() else "the watch has ended",
            ready=lambda: "" if synced.is_set() else "the caches are not filled yet",
        )
        stack.push_async_callback(runner.cleanup)

        async def work() -> None:
            await watching.defined()
            tasks.append(asyncio.create_task(watching.run()))
            stack.push_async_callback(backend.stop)
            await asyncio.gather(watching.filled(), backend.start())
            synced.set()
            log.info("the caches are filled")
            await lease.acquire()
            metrics.leader.set(1)
            tasks.extend(asyncio.create_task(one) for one in (lease.keep(), events.run(), plane.run()))
            on_leading(Ready(plane, port))
            await _first(tasks)

        tasks: list[asyncio.Task[None]] = []
        stack.push_async_callback(_cancel, tasks)
        working = asyncio.create_task(work())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            elif lease.held:
                log.info("stopping: what is being looked at is finished first")
                await plane.finish(FINISH_SECONDS)
                await events.flush(FLUSH_SECONDS)
        finally:
            await _cancel([working, stopped])
        await _cancel(tasks)
        metrics.leader.set(0)
        await lease.release()
        log.info("stopped")


def _lineage(config: OperatorConfig) -> tuple[Lineage, Callable[[], int]]:
    if config.mlflow.tracking_uri is None:
        return NoLineage(), lambda: 0
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from llmops_operator.controllers.lineage.mlflow import MlflowLineage  # takes a second or two to import

    lineage = MlflowLineage(config.mlflow.tracking_uri, external_url=config.mlflow.external_url)
    return lineage, lambda: lineage.errors


async def _first(tasks: list[asyncio.Task[None]]) -> None:
    """Wait until one of the tasks ends, and raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    for one in ended:
        if isinstance(one, BaseException) and not isinstance(one, asyncio.CancelledError | LeadershipLost):
            log.error("%s: %s", type(one).__name__, one)
