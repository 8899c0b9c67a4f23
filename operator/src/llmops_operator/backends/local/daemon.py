"""The daemon behind `llmops up`: lock, store, platform, backend and control plane, begun in this order and ended in the other.

However it ends, nothing is lost: an orderly end stops every process before `serve` returns, and what a killed daemon leaves
running is adopted by the next one, or ended by `down`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmops_api.programs import Env
from llmops_operator.backends.ending import signals_set
from llmops_operator.backends.local import lock
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.platform import Platform
from llmops_operator.backends.local.processes import ProcessBackend, end
from llmops_operator.backends.local.replica_folder import ReplicaFolder
from llmops_operator.backends.local.store import SqliteStore

if TYPE_CHECKING:
    from llmops_operator.controllers.control_plane import ControlPlane

log = logging.getLogger(__name__)

STOP_SECONDS = 180.0
"""How long a daemon may take to stop everything: the longest grace, and MLflow's own end."""

LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Serving:
    """A daemon that has begun. `env` are the addresses of MLflow and the vector store, by environment variable."""

    home: Home
    store: SqliteStore
    backend: ProcessBackend
    env: Mapping[str, str]


async def serve(
    home: Home,
    *,
    on_ready: Callable[[Serving], None] = lambda serving: None,
    stop: asyncio.Event | None = None,
    handle_signals: bool = True,
) -> None:
    """Be the daemon of `home` until `stop` is set or, with `handle_signals`, SIGTERM or SIGINT arrives; then end everything.

    `on_ready` is called when MLflow and the vector store answer and objects are looked at. Raises `HomeInUse`, `StoreError`,
    `PlatformError`; whatever it raises, nothing that it started is left.
    """
    stop = stop or asyncio.Event()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else it tells of every question for readiness
    home.create()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(lock.hold(home))
        if handle_signals:
            stack.enter_context(signals_set(stop))
        store = SqliteStore(home.objects)
        stack.callback(store.close)
        platform = Platform(home)
        stack.push_async_callback(platform.stop)
        backend = ProcessBackend(home, home.workloads)
        load = asyncio.create_task(asyncio.to_thread(_load_control_plane))
        stack.push_async_callback(_cancel, [load])

        def moved(env: Mapping[str, str]) -> None:
            log.warning(
                "a port was taken by another program, addresses are now %s; restart llmops for lineage", dict(env)
            )
            backend.set_env(env)

        if not await _unless(stop, platform.start(moved=moved)):
            return
        backend.set_env(platform.env)
        stack.push_async_callback(backend.stop)
        await backend.start()
        tasks = [
            asyncio.create_task(store.watch(), name="store"),
            asyncio.create_task((await load)(store, backend, platform).run(), name="control plane"),
        ]
        stack.push_async_callback(_cancel, tasks)
        on_ready(Serving(home, store, backend, platform.env))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in tasks:
            if task.done():
                task.result()


async def down(home: Home) -> bool:
    """Have the daemon of `home` end everything, and end what a killed one has left. True when there was anything to end.

    Raises `HomeInUse` when another daemon takes over meanwhile.
    """
    if not home.root.exists():
        return False
    daemon = lock.holder(home)
    if daemon is not None:
        await _end_daemon(home)
    with lock.hold(home):
        folders = [*home.workloads.glob("*/*/*/run"), *home.platform.glob("*/*/*/run")]
        ended = await asyncio.gather(*(end(ReplicaFolder(folder.parent)) for folder in folders))
    return daemon is not None or any(ended)


async def _end_daemon(home: Home) -> None:
    asked = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_SECONDS):
            while (daemon := lock.holder(home)) is not None:
                if daemon.pid not in (0, asked):
                    os.kill(daemon.pid, signal.SIGTERM)
                    asked = daemon.pid
                await asyncio.sleep(LOOK_SECONDS)
            return
    log.warning("the daemon (process %d) has not ended within %g s and is killed", asked, STOP_SECONDS)
    os.kill(asked, signal.SIGKILL)


def _load_control_plane() -> Callable[[SqliteStore, ProcessBackend, Platform], ControlPlane]:
    """Import the controllers and MLflow's client, which takes a second or two, while the MLflow server starts."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from llmops_operator.controllers.control_plane import ControlPlane, Options
    from llmops_operator.controllers.lineage.mlflow import MlflowLineage
    from llmops_operator.controllers.vector_store import QdrantCollections
    from llmops_operator.domain.timing import Timing

    timing = Timing(retry_first=2.0, retry_cap=60.0, progress_interval=1.0)

    def control_plane(store: SqliteStore, backend: ProcessBackend, platform: Platform) -> ControlPlane:
        async def vector_store() -> tuple[str, str | None]:
            return platform.env[Env.QDRANT_URL], os.environ.get(Env.QDRANT_API_KEY)

        lineage = MlflowLineage(platform.env[Env.MLFLOW_TRACKING_URI])
        return ControlPlane(store, backend, lineage, QdrantCollections(vector_store), Options(timing=timing))

    return control_plane


async def _unless(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Do `work`, unless `stop` is set before it is done. True when it was done."""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        await _cancel((working, stopped))


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
