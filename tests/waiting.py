"""Waiting for something that other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], what: str, *, seconds: float = 120) -> None:
    """Look every tenth of a second until `holds` is true; fail with `what` was waited for after `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
