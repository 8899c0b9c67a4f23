"""Waiting for something that other processes do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_until(
    holds: Callable[[], Found], what: str | Callable[[], str], *, seconds: float = 120, pause: float = 0.1
) -> Found:
    """What `holds` gives, looked at every `pause` seconds until it is true; fails with `what` was waited for after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what if isinstance(what, str) else what()}"
        time.sleep(pause)
    return found


async def eventually(holds: Callable[[], Found], *, seconds: float = 30) -> Found:
    """Wait in an event loop for what nobody tells of: files and processes. Returns what `holds` gave in the end."""
    async with asyncio.timeout(seconds):
        while not (found := holds()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return found
