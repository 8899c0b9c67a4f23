"""What a lack of memory or of disk looks like: libraries say it in exceptions of their own, and the kernel in no exception at all."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

_NO_SPACE = ("No space left on device", "Disk quota exceeded")
_TORN_BY_TORCH = ("PytorchStreamWriter failed", ". unexpected pos ")  # all that torch says when it cannot write
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory")


def disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is a full disk or an exhausted quota."""
    return any(
        (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(words in str(one) for words in _NO_SPACE)
        or (isinstance(one, RuntimeError) and any(words in str(one) for words in _TORN_BY_TORCH))
        for one in _causes(error)
    )


def memory_short(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is an allocation that failed, on the CPU or on an accelerator."""
    return any(
        isinstance(one, MemoryError)
        or (isinstance(one, OSError) and one.errno == errno.ENOMEM)
        or (isinstance(one, RuntimeError) and any(words in str(one) for words in _NO_MEMORY))
        for one in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, in this process's control group if there is one.

    A process that is killed says nothing, and its parent sees SIGKILL: that this number has grown tells why.
    """
    for path in _counters():
        try:
            lines = path.read_text("ascii").splitlines()
        except OSError:
            continue
        found = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
        if found:
            return found[0]
    return 0


def _counters() -> Iterator[Path]:
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text("ascii").splitlines()]
    except OSError:
        groups = []
    root = Path("/sys/fs/cgroup")
    for _, controllers, path in groups:
        if controllers == "":
            yield root / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield root / "memory" / path.lstrip("/") / "memory.oom_control"
            yield root / "memory" / "memory.oom_control"
    yield Path("/proc/vmstat")
