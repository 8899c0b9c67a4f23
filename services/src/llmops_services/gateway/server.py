"""One process that listens: uvicorn with uvloop and httptools, and an end that loses no answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn
import uvloop

from llmops_api.programs import Env
from llmops_api.reasons import FailureReason
from llmops_services.gateway.app import create_app
from llmops_services.gateway.limits import LIMITS
from llmops_services.gateway.live import Live
from llmops_services.gateway.metrics import Metrics
from llmops_services.gateway.traces import TraceSender, sampling_ratio, tracking_uri
from llmops_services.program import TryAgain, UserError

log = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0005
"""How long a busy thread (a tokenizer, a trace) may keep the interpreter from the event loop; Python's default is 0.005."""
LAST_LOOK_SECONDS = 0.2
"""Whoever has read a good /readyz just before the end is still served."""
CLOSE = (b"connection", b"close")
BACKLOG = 4096
TRACES_SECONDS = 5.0
"""For the traces that wait at the end."""


class Server(uvicorn.Server):
    """On SIGTERM it says so at /readyz, goes on until all answers are given (or the grace is over), and then closes. Each of these
    answers tells its client to connect anew, to a process that stays. A second signal ends the wait.
    """

    def __init__(self, config: uvicorn.Config, live: Live, metrics: Metrics) -> None:
        super().__init__(config)
        self._live, self._metrics = live, metrics
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Instead of uvicorn's, which raises the signal again when all is done."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        log.info("shutting down: %d requests under way", self._metrics.in_flight)
        self._live.draining = True
        # The one list that uvicorn adds to every answer; it makes it anew from the other each second.
        self.config.encoded_headers.append(CLOSE)
        self.server_state.default_headers.append(CLOSE)
        self._draining = asyncio.create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        await asyncio.sleep(LAST_LOOK_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIMITS.grace_seconds):
                await self._metrics.idle.wait()
        self.should_exit = True


def _listen(host: str) -> socket.socket:
    text = os.environ.get(Env.PORT, "8000")
    if not text.isdigit() or int(text) > 65535:
        raise UserError(FailureReason.ENVIRONMENT_INVALID, f"{Env.PORT} is {text!r}: write a port number")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(text)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise TryAgain(
            FailureReason.PORT_IN_USE,
            f"cannot listen on {host}:{text} ({os.strerror(error.errno or 0)}): stop what listens there, or set {Env.HOST} and {Env.PORT}",
        ) from error


def serve(path: str) -> None:
    """Serve the configuration at `path` until SIGTERM. Raises `UserError` when it or the environment is wrong, `TryAgain` when
    the port is in use.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.setswitchinterval(SWITCH_SECONDS)
    for chatty in ("httpx", "sentence_transformers"):  # a line for each request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    ratio, uri = sampling_ratio(), tracking_uri()
    sender = TraceSender(uri) if uri else None
    with _listen(os.environ.get(Env.HOST, "127.0.0.1")) as listener:
        uvloop.run(_serve(Path(path), listener, sender, ratio))
    if sender is not None:
        sender.stop(TRACES_SECONDS)


async def _serve(path: Path, listener: socket.socket, sender: TraceSender | None, ratio: float) -> None:
    live = Live(path, api_key=os.environ.get(Env.ENGINE_API_KEY) or None)
    live.start()
    metrics = Metrics()
    if sender is not None:
        sender.start()
    config = uvicorn.Config(
        create_app(live, metrics, sender, ratio=ratio),
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    host, port = listener.getsockname()[:2]
    print(f"gateway: http://{host}:{port} with {path}", flush=True)
    try:
        await Server(config, live, metrics).serve(sockets=[listener])
    finally:
        await live.stop()
