"""One process that listens: uvicorn with uvloop and httptools, and an end that loses no answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from llmops_api.programs import Env
from llmops_services.gateway.app import create_app
from llmops_services.gateway.limits import LIMITS
from llmops_services.gateway.live import Live
from llmops_services.gateway.metrics import Metrics
from llmops_services.gateway.traces import TraceSender, sampling_ratio, tracking_uri
from llmops_services.program import UserError

log = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0005
"""How long a busy thread (a tokenizer, a trace) may keep the interpreter from the event loop; Python's default is 0.005."""


class Server(uvicorn.Server):
    """On SIGTERM it says so at /readyz, goes on until all answers are given (or the grace is over), and then closes."""

    def __init__(self, config: uvicorn.Config, live: Live, metrics: Metrics) -> None:
        super().__init__(config)
        self._live, self._metrics = live, metrics
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Remember the loop, which a signal handler has to reach."""
        self._loop = asyncio.get_running_loop()
        await super().startup()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts the drain, the second ends it."""
        if self._loop is None or self._live.draining:
            self.should_exit = self.force_exit = True
            return
        self._live.draining = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        log.info("shutting down: %d requests under way", self._metrics.in_flight)
        self._draining = asyncio.create_task(self._wait_for_answers(), name="drain")

    async def _wait_for_answers(self) -> None:
        await asyncio.sleep(0.2)  # whoever has just read a good /readyz is still served
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIMITS.grace_seconds):
                await self._metrics.idle.wait()
        self.should_exit = True


def _port() -> int:
    text = os.environ.get(Env.PORT, "8000")
    if not text.isdigit() or int(text) > 65535:
        raise UserError("EnvironmentInvalid", f"{Env.PORT} is {text!r}: write a port number")
    return int(text)


def serve(path: str) -> None:
    """Serve the configuration at `path` until SIGTERM. Raises `UserError` when it, or the environment, is wrong."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.setswitchinterval(SWITCH_SECONDS)
    host, port = os.environ.get(Env.HOST, "127.0.0.1"), _port()
    ratio, uri = sampling_ratio(), tracking_uri()
    sender = TraceSender(uri) if uri else None

    async def run() -> None:
        live = Live(Path(path), api_key=os.environ.get(Env.ENGINE_API_KEY) or None)
        live.start()
        metrics = Metrics()
        if sender is not None:
            sender.start()
        config = uvicorn.Config(
            create_app(live, metrics, sender, ratio=ratio),
            host=host,
            port=port,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            backlog=4096,
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=2,
        )
        try:
            await Server(config, live, metrics).serve()
        finally:
            await live.stop()

    import uvloop

    # uvicorn raises the signal again after its own end; by then everything is done
    with contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, lambda *_: None)
        uvloop.run(run())
    if sender is not None:
        sender.stop(5.0)
