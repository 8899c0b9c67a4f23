"""The work queue: a key once, one worker at a time, back-off by itself. The clock is the test's."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmops_operator.controllers.queue import WorkQueue


class Call:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self) -> None:
        self.cancelled = True

    def when(self) -> float:
        return self.at


class Clock:
    """A loop's clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[float, int, Call]] = []

    def call_later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Call:
        call = Call(self.now + seconds, lambda: function(*arguments))
        heapq.heappush(self.calls, (call.at, len(self.calls), call))
        return call

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.calls and self.calls[0][0] <= end:
            self.now, _, call = heapq.heappop(self.calls)
            if not call.cancelled:
                call.call()
        self.now = end


def made(clock: Clock, **options: Any) -> WorkQueue[str]:
    return WorkQueue(first=1.0, cap=60.0, call_later=clock.call_later, jitter=lambda: 0.0, **options)


def test_a_key_that_is_added_twice_is_worked_once() -> None:
    queue = made(Clock())
    queue.add("a")
    queue.add("a")
    assert len(queue) == 1
    assert queue.take() == "a"
    assert len(queue) == 0


def test_keys_come_in_the_order_in_which_they_were_added() -> None:
    queue = made(Clock())
    for key in "bac":
        queue.add(key)
    assert [queue.take() for _ in range(3)] == ["b", "a", "c"]


def test_a_key_that_is_added_while_it_is_worked_is_worked_once_more_afterwards() -> None:
    queue = made(Clock())
    queue.add("a")
    key = queue.take()
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0
    queue.done(key)
    assert len(queue) == 1
    queue.done(queue.take())
    assert queue.idle


def test_a_failure_backs_off_doubling_up_to_the_cap_and_a_success_forgets_it() -> None:
    clock = Clock()
    queue = made(clock)
    queue.add("a")
    waited = []
    for _ in range(9):
        queue.done(queue.take(), failed=True)
        began = clock.now
        while not len(queue):
            clock.advance(0.5)
        waited.append(clock.now - began)
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    queue.done(queue.take())
    queue.add("a")
    queue.done(queue.take(), failed=True)
    clock.advance(1)
    assert len(queue) == 1


def test_jitter_makes_the_back_off_longer_by_a_fifth_at_most() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(first=10.0, cap=60.0, call_later=clock.call_later, jitter=lambda: 1.0)
    queue.add("a")
    queue.done(queue.take(), failed=True)
    clock.advance(11.9)
    assert len(queue) == 0
    clock.advance(0.2)
    assert len(queue) == 1


def test_a_change_of_a_failing_object_does_not_wait_for_the_back_off() -> None:
    clock = Clock()
    queue = made(clock)
    queue.add("a")
    queue.done(queue.take(), failed=True)
    queue.add("a")
    assert queue.take() == "a"
    queue.done("a")
    clock.advance(100)
    assert queue.idle


def test_a_change_in_the_middle_of_work_that_fails_waits_for_the_back_off() -> None:
    clock = Clock()
    queue = made(clock)
    queue.add("a")
    queue.take()
    queue.add("a")
    queue.done("a", failed=True)
    assert len(queue) == 0
    clock.advance(1)
    assert len(queue) == 1


def test_of_two_delays_the_shorter_one_counts() -> None:
    clock = Clock()
    queue = made(clock)
    for seconds in (10, 5, 20):
        queue.add_after("a", seconds)
    clock.advance(5)
    assert queue.take() == "a"
    queue.done("a")
    clock.advance(100)
    assert queue.idle


def test_a_delay_for_a_key_that_waits_already_says_nothing() -> None:
    clock = Clock()
    queue = made(clock)
    queue.add("a")
    queue.add_after("a", 1)
    queue.done(queue.take())
    clock.advance(100)
    assert queue.idle


def test_done_can_ask_for_another_look_after_a_while() -> None:
    clock = Clock()
    queue = made(clock)
    queue.add("a")
    queue.done(queue.take(), after=3)
    clock.advance(2)
    assert queue.idle
    clock.advance(1)
    assert queue.take() == "a"


def test_a_closed_queue_adds_nothing_later() -> None:
    clock = Clock()
    queue = made(clock)
    queue.add_after("a", 1)
    queue.close()
    clock.advance(2)
    assert queue.idle


async def test_workers_that_wait_are_given_keys_as_they_come() -> None:
    queue: WorkQueue[str] = WorkQueue()
    workers = [asyncio.create_task(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b")
    assert sorted(await asyncio.gather(*workers)) == ["a", "b"]


async def test_a_worker_that_is_cancelled_as_it_is_woken_leaves_the_key_to_another() -> None:
    queue: WorkQueue[str] = WorkQueue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    assert await asyncio.wait_for(second, 1) == "a"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_worker_that_is_cancelled_while_it_waits_is_forgotten() -> None:
    queue: WorkQueue[str] = WorkQueue()
    first = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    second = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    assert await asyncio.wait_for(second, 1) == "a"


async def test_delays_run_on_the_event_loop_when_no_clock_is_given() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 0.01)
    assert await asyncio.wait_for(queue.get(), 1) == "a"


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_whatever_is_added_comes_out_once_each(keys: list[str]) -> None:
    queue = made(Clock())
    for key in keys:
        queue.add(key)
    assert [queue.take() for _ in range(len(queue))] == list(dict.fromkeys(keys))


class Machine(RuleBasedStateMachine):
    """Any sequence of calls, against the plainest possible account of what is owed to each key."""

    keys = st.sampled_from("abcd")

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.queue = made(self.clock)
        self.owed: set[str] = set()
        self.working: set[str] = set()

    @rule(key=keys)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.owed.add(key)

    @rule(key=keys, seconds=st.floats(0, 100))
    def add_after(self, key: str, seconds: float) -> None:
        self.queue.add_after(key, seconds)
        self.owed.add(key)

    @precondition(lambda self: len(self.queue) > 0)
    @rule()
    def take(self) -> None:
        key = self.queue.take()
        assert key not in self.working
        self.working.add(key)
        self.owed.discard(key)

    @precondition(lambda self: self.working)
    @rule(failed=st.booleans())
    def done(self, failed: bool) -> None:
        key = min(self.working)
        self.working.discard(key)
        self.queue.done(key, failed=failed)
        if failed:
            self.owed.add(key)

    @rule(seconds=st.floats(0, 200))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def nothing_that_is_owed_is_lost(self) -> None:
        if hasattr(self, "queue"):
            pending = set(self.queue._ready) | self.queue._again | set(self.queue._timers)
            assert self.owed <= pending
            assert not set(self.queue._ready) & self.queue._working

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.clock.advance(1000)
            came = {self.queue.take() for _ in range(len(self.queue))}
            assert self.owed <= came | self.queue._again


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
