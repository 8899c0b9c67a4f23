"""A daemon within this process, for as long as a command's own work lasts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from logging.handlers import RotatingFileHandler

from llmops_operator.backends.ending import signals_set
from llmops_operator.backends.local.daemon import Serving, serve
from llmops_operator.backends.local.database import StoreError
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.lock import HomeInUse
from llmops_operator.backends.local.platform import PlatformError
from llmops_operator.cli.faults import CommandError

INTERRUPTED = 130


async def with_daemon(
    home: Home, work: Callable[[Serving], Awaitable[int]], *, stopping: Callable[[], None] = lambda: None
) -> int:
    """Be the daemon of `home` until `work` returns, SIGINT or SIGTERM arrives, or the daemon ends; then stop all it has started.

    Returns what `work` returned, or `INTERRUPTED`. `stopping` is called before things are stopped, which takes some seconds.
    Raises `CommandError`.
    """
    ready: asyncio.Future[Serving] = asyncio.get_running_loop().create_future()
    stop, interrupted = asyncio.Event(), asyncio.Event()

    async def when_ready() -> int:
        return await work(await ready)

    with signals_set(interrupted):
        daemon = asyncio.create_task(serve(home, on_ready=ready.set_result, stop=stop, handle_signals=False))
        working, waiting = asyncio.create_task(when_ready()), asyncio.create_task(interrupted.wait())
        try:
            await asyncio.wait([daemon, working, waiting], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            return INTERRUPTED
        finally:
            working.cancel()
            waiting.cancel()
            await asyncio.gather(working, waiting, return_exceptions=True)
            if not daemon.done():
                stopping()
            stop.set()
            try:
                await daemon
            except (HomeInUse, PlatformError, StoreError) as error:
                raise CommandError(str(error)) from error


def log_to_home(home: Home) -> None:
    """Write the daemon's log to the home; what it warns of belongs to conditions and events, not between the lines of a screen."""
    try:
        home.create()
        handler = RotatingFileHandler(home.root / "daemon.log", maxBytes=10 << 20, backupCount=2, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{home.root} cannot be used ({error.strerror}): name another folder with --home") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
