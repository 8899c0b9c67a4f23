"""The work queue: a key is in it once, is worked by one worker at a time, and backs off by itself when it fails.

What is added while it is worked is worked once more afterwards. Everything happens in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class Timer(Protocol):
    """A call that waits for its time."""

    def cancel(self) -> None:
        """Do not call."""

    def when(self) -> float:
        """The time of the call, on the loop's clock."""


class WorkQueue(Generic[K]):
    """Keys that want work. `first` and `cap` are the least and the longest back-off in seconds, before up to 20 % of jitter."""

    def __init__(
        self,
        *,
        first: float = 0.05,
        cap: float = 60.0,
        call_later: Callable[..., Timer] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._first, self._cap, self._jitter = first, cap, jitter
        self._call_later = call_later
        self._ready: dict[K, float] = {}
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, Timer] = {}
        self._failures: dict[K, int] = {}
        self._waiting: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        """How many keys wait for a worker."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nobody works; keys that are to be added later do not count."""
        return not self._ready and not self._working

    @property
    def oldest_seconds(self) -> float:
        """How long the key that has waited longest has waited."""
        return time.monotonic() - next(iter(self._ready.values())) if self._ready else 0.0

    def add(self, key: K) -> None:
        """Have the key worked, once, from now on."""
        self._stop_timer(key)
        if key in self._working:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = time.monotonic()
            self._wake()

    def add_after(self, key: K, seconds: float) -> None:
        """Add the key after a while, unless it is to be added sooner than that already."""
        if key in self._ready or key in self._again:
            return
        later = self._call_later or asyncio.get_running_loop().call_later
        timer = later(seconds, self._fire, key)
        known = self._timers.get(key)
        if known is not None and known.when() <= timer.when():
            timer.cancel()
            return
        self._stop_timer(key)
        self._timers[key] = timer

    async def get(self) -> K:
        """The key that has waited longest. It is the caller's until `done`."""
        while not self._ready:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:
                    self._wake()
                raise
        return self.take()

    def take(self) -> K:
        """The key that has waited longest. Raises `StopIteration` when there is none."""
        key = next(iter(self._ready))
        del self._ready[key]
        self._working.add(key)
        return key

    def done(self, key: K, *, failed: bool = False, after: float | None = None) -> None:
        """The work on a key has ended; when it failed it comes back after its back-off, else after `after` seconds if that is set."""
        self._working.remove(key)
        if failed:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
            after = min(self._cap, self._first * 2.0 ** min(failures, 30)) * (1 + 0.2 * self._jitter())
        else:
            self._failures.pop(key, None)
        if key in self._again and not failed:
            self._again.discard(key)
            self.add(key)
        else:
            self._again.discard(key)
            if after is not None:
                self.add_after(key, after)

    def close(self) -> None:
        """Forget what is to be added later."""
        for key in list(self._timers):
            self._stop_timer(key)

    def _fire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _stop_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.pop(0)
            if not turn.done():
                turn.set_result(None)
                return
