"""`llmops up` and `llmops down`: the daemon in the foreground, and its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llmops_operator.backends.local import daemon
from llmops_operator.backends.local.daemon import Serving
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.lock import HomeInUse
from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.hosting import INTERRUPTED, log_to_home, with_daemon
from llmops_operator.cli.kinds import KINDS
from llmops_operator.cli.screen import Screen, make_console, make_screen, row_of

LOOK_SECONDS = 1.0
"""Seconds left go down without any change in the store."""


def up(folder: Path) -> int:
    """Be the daemon until Ctrl-C, then stop everything. Raises `CommandError`."""
    home = Home.at(folder)
    log_to_home(home)
    screen = make_screen(make_console())
    screen.note(f"starting MLflow and the vector store in {home.root}")
    try:
        code = asyncio.run(with_daemon(home, lambda serving: _show(serving, screen), note=screen.note))
    finally:
        screen.close()
    return 0 if code == INTERRUPTED else code


async def _show(serving: Serving, screen: Screen) -> int:
    changed = asyncio.Event()
    serving.store.subscribe(lambda _: changed.set())
    screen.note(f"up. MLflow: {serving.env['MLFLOW_TRACKING_URI']}   Ctrl-C stops everything")
    if not any(serving.store.list(kind.kind) for kind in KINDS):
        screen.note("there are no objects yet: in another terminal, llmops apply -f FILE")
    while True:
        screen.show([row_of(item) for kind in KINDS for item in serving.store.list(kind.kind)])
        await pause(changed)


async def pause(changed: asyncio.Event) -> None:
    """Until something has changed, or for a second."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            await changed.wait()
    except TimeoutError:
        return
    changed.clear()


def down(folder: Path) -> bool:
    """Stop the daemon of a home and everything that one has left. True when there was anything. Raises `CommandError`."""
    try:
        return asyncio.run(daemon.down(Home.at(folder)))
    except HomeInUse as error:
        raise CommandError(str(error)) from error
