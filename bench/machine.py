"""What something was measured on, and how quiet it was there."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import psutil


class Quiet:
    """How much of the machine was taken by processes that are not of this measurement, since it was made."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), busy_seconds(), own_seconds()

    def others(self) -> float:
        """Their share of all cores' time, 0 to 1."""
        theirs = (busy_seconds() - self._busy) - (own_seconds() - self._own)
        return max(0.0, theirs / (time.monotonic() - self._began) / (os.cpu_count() or 1))


def busy_seconds() -> float:
    """What all cores have worked since the machine started, what its host took from it included."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def own_seconds() -> float:
    """What this process and its children have worked, those that have ended included."""
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in (here, *here.children(recursive=True)))


def machine() -> str:
    """What this was measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"
