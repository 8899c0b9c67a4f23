"""`python -m llmops_services.vectorstore CONFIG.json`: serve until SIGTERM or SIGINT, then flush and close."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
import uvloop

from llmops_api.programs import Env
from llmops_api.reasons import FailureReason
from llmops_services.program import TryAgain, load_config, run_program

from .app import create_app
from .catalog import Catalog
from .config import VectorStoreConfig

_GRACE_S = 10
_MOST_CONNECTIONS = 1024


class _Server(uvicorn.Server):
    """A server that ends a signalled stop with exit code 0: uvicorn's own raises the signal again once it is done."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.should_exit = True


def _listen(config: VectorStoreConfig) -> socket.socket:
    try:
        listener = socket.create_server((config.host, config.port), backlog=2048)
    except OSError as error:
        raise TryAgain(
            FailureReason.PORT_IN_USE,
            f"port: cannot listen on {config.host}:{config.port} ({os.strerror(error.errno or 0)}); stop what listens there or give another port",
        ) from error
    # Inherited by the connections. asyncio sets it only on sockets that name their protocol; without it an answer waits 40 ms
    # for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def _serve(config: VectorStoreConfig) -> None:
    catalog = Catalog.open(config.folder)
    with _listen(config) as listener:
        app = create_app(catalog, os.environ.get(Env.QDRANT_API_KEY))
        server = _Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_keep_alive=75,  # longer than clients keep one that they do not use, so that none asks on one that is closed
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        host, port = listener.getsockname()[:2]
        print(f"vector store: http://{host}:{port} over {config.folder}", flush=True)
        await server.serve(sockets=[listener])


def main(path: str) -> None:
    """Serve what the config file `path` says."""
    config = load_config(VectorStoreConfig, path)
    if not config.folder.is_absolute():
        config = config.model_copy(update={"folder": config.folder.absolute()})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config))


if __name__ == "__main__":
    run_program(main)
