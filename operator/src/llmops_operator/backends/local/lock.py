"""One daemon for one home: a file lock that the kernel frees however the daemon ends, and in the file who holds it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from llmops_operator.backends.local.flock import try_lock
from llmops_operator.backends.local.home import Home

TRY_SECONDS = 1.0
"""Commands that ask whether a daemon lives hold the lock for microseconds; that is waited out."""


@dataclass(frozen=True)
class Holder:
    """The daemon of a home: its process and since when it runs."""

    pid: int
    since: str


class HomeInUse(Exception):
    """Another daemon works on this home. The message says which, since when, and what to do."""


@contextmanager
def hold(home: Home) -> Iterator[None]:
    """Be the daemon of `home` within the block. Raises `HomeInUse`."""
    with home.lock.open("a+", encoding="utf-8") as file:
        if not try_lock(file.fileno(), seconds=TRY_SECONDS):
            raise HomeInUse(_sentence(home, holder(home)))
        file.truncate(0)
        file.write(json.dumps(asdict(Holder(os.getpid(), datetime.now(UTC).isoformat(timespec="seconds")))))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def holder(home: Home) -> Holder | None:
    """The daemon of `home`; None when none lives."""
    try:
        file = home.lock.open(encoding="utf-8")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            return None
        try:
            return Holder(**json.loads(file.read()))
        except (ValueError, TypeError):  # it has only just taken the lock, or just let it go
            return Holder(0, "")


def _sentence(home: Home, other: Holder | None) -> str:
    who = f"process {other.pid} since {other.since}" if other and other.pid else "another process"
    return (
        f"{home.root} is in use by {who}: apply manifests to it with `llmops apply`, end it with `llmops down`, "
        "or choose another folder with --home"
    )
