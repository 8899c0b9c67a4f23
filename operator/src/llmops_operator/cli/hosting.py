"""A daemon within this process, for as long as a command's own work lasts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from logging.handlers import RotatingFileHandler

from llmops_operator.backends.ending import signals_set
from llmops_operator.backends.local.daemon import Serving, serve
from llmops_operator.backends.local.database import StoreError
from llmops_operator.backends.local.disk import FREE_SOME, is_full, says_full
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.lock import HomeInUse
from llmops_operator.backends.local.platform import PlatformError
from llmops_operator.cli.faults import CommandError

INTERRUPTED = 130

LOOK_SECONDS = 1.0

log = logging.getLogger(__name__)


async def with_daemon(home: Home, work: Callable[[Serving], Awaitable[int]], *, note: Callable[[str], None]) -> int:
    """Be the daemon of `home` until `work` returns, SIGINT or SIGTERM arrives, or the daemon ends; then stop all it has started.

    Returns what `work` returned, or `INTERRUPTED`. `note` is told what no object can say. Raises `CommandError`.
    """
    ready: asyncio.Future[Serving] = asyncio.get_running_loop().create_future()
    stop, interrupted = asyncio.Event(), asyncio.Event()

    async def when_ready() -> int:
        return await work(await ready)

    with signals_set(interrupted):
        daemon = asyncio.create_task(serve(home, on_ready=ready.set_result, stop=stop, handle_signals=False))
        working, waiting = asyncio.create_task(when_ready()), asyncio.create_task(interrupted.wait())
        watching = asyncio.create_task(_watch_disk(home, note))
        try:
            await asyncio.wait([daemon, working, waiting], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            return INTERRUPTED
        finally:
            for task in (working, waiting, watching):
                task.cancel()
            await asyncio.gather(working, waiting, watching, return_exceptions=True)
            if not daemon.done():
                note("stopping everything …")
            stop.set()
            try:
                await daemon
            except (HomeInUse, PlatformError, StoreError) as error:
                raise CommandError(str(error)) from error
            except OSError as error:
                log.exception("the daemon has ended")
                raise CommandError(_unusable(home, error)) from error


async def _watch_disk(home: Home, note: Callable[[str], None]) -> None:
    """With a full disk no status, no event and no log can be written: it is told here."""
    told = False
    while True:
        full = is_full(home.root)
        if full and not told:
            note(f"{home.root}: {FREE_SOME}")
        told = full
        await asyncio.sleep(LOOK_SECONDS)


def _unusable(home: Home, error: OSError) -> str:
    what = "free some space, or name" if says_full(error) else "name"
    return f"{home.root} cannot be used ({error.strerror}): {what} another folder with --home"


def log_to_home(home: Home) -> None:
    """Write the daemon's log to the home; what it warns of belongs to conditions and events, not between the lines of a screen."""
    try:
        home.create()
        handler = RotatingFileHandler(home.root / "daemon.log", maxBytes=10 << 20, backupCount=2, encoding="utf-8")
    except OSError as error:
        raise CommandError(_unusable(home, error)) from error
    # Else a line that finds no room on the disk is a traceback on the screen.
    logging.raiseExceptions = False
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
