"""Takes a lock of the kernel's, which goes by itself when its holder dies. Light: each supervisor loads it."""

from __future__ import annotations

import fcntl
import time


def try_lock(descriptor: int, *, seconds: float) -> bool:
    """Lock an open file for this process alone; False when another holds it for longer than `seconds`."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                return False
            time.sleep(0.02)
        else:
            return True
