"""A control plane that dies at any call, and writes that come too late."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_lineage import FakeLineage
from world import World, index, job, ready, service

from llmops_operator.controllers.ports import Conflict, Key, NotYet
from llmops_operator.domain.workload import Owner, State


class Crash:
    """Kills the control plane at its call number `at` to the world outside, before or after the call."""

    def __init__(self, world: World, at: int, *, after: bool) -> None:
        self.at, self.after, self.calls = at, after, 0
        self.dead = asyncio.Event()
        for target, names in (
            (world.store, ("write_status", "set_finalizer", "record_event")),
            (world.backend, ("apply", "remove", "discard_volumes")),
        ):
            for name in names:
                setattr(target, name, self._counted(getattr(target, name)))

    def _counted(self, call: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def counted(*arguments: Any, **options: Any) -> None:
            self.calls += 1
            dies = self.calls == self.at
            if not dies or self.after:
                await call(*arguments, **options)
            if dies:
                self.dead.set()
                await asyncio.Event().wait()

        return counted


async def _story(world: World, crash: Crash) -> None:
    """The quickstart, its first attempt at training lost, ridden out across the death of the control plane."""
    for _ in range(300):
        if crash.dead.is_set():
            crash.dead.clear()
            await world.die()
            world.lineage = FakeLineage()
            world.start()
        await asyncio.sleep(0.004)
        if world.state("assistant-train-1") is State.PENDING:
            world.backend.fail("assistant-train-1", exit_code=75, reason="LostWorker", message="lost")
        world.play()
        assert world.plane is not None
        if world.all_ready() and world.plane.queue.idle and not crash.dead.is_set():
            break
    await world.play_until(world.all_ready)


async def _end_of_story(at: int, *, after: bool) -> tuple[Any, list[str], bool]:
    """The end state, what was started, and whether the control plane made as many calls as to die."""
    world = World()
    crash = Crash(world, at, after=after)
    world.start()
    for one in (service(), index(), job()):
        world.store.apply(one)
    await _story(world, crash)
    end, starts = world.end_state(), sorted(world.backend.starts)
    await world.die()
    return end, starts, crash.calls >= at


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_call_ends_in_the_same_state_with_nothing_started_twice(after: bool) -> None:
    end, starts, _ = await _end_of_story(1_000_000, after=after)
    assert starts == ["assistant-train-1", "assistant-train-2", "chat-engine", "chat-gateway", "handbook-sync-1"]
    for at in itertools.count(1):
        other_end, other_starts, died = await _end_of_story(at, after=after)
        assert other_starts == starts, f"crash at call {at}"
        assert other_end == end, f"crash at call {at}"
        if not died:
            break
    assert at > 50, "the story has become so short that it says little"


async def test_a_write_that_comes_too_late_is_decided_anew(world: World) -> None:
    write, conflicts = world.store.write_status, []

    async def late(key: Key, status: Any, *, resource_version: str) -> None:
        if len(conflicts) < 3:
            conflicts.append(key)
            raise Conflict("it has changed")
        await write(key, status, resource_version=resource_version)

    world.store.write_status = late  # type: ignore[method-assign]
    await ready(world)
    assert len(conflicts) == 3
    assert sorted(world.backend.starts) == ["assistant-train-1", "chat-engine", "chat-gateway", "handbook-sync-1"]


async def test_what_takes_its_time_to_go_is_asked_for_again_without_a_word(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    key = world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    remove, asked = world.backend.remove, []

    async def slow(owner: Owner, name: str) -> None:
        asked.append(name)
        if len(asked) < 3:
            raise NotYet(f"{name} is ending")
        await remove(owner, name)

    world.backend.remove = slow  # type: ignore[method-assign]
    world.store.delete(key)
    await world.until(lambda: not world.backend.names)
    assert asked == ["assistant-train-1"] * 3
    assert not caplog.records
