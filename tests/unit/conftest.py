"""Fixtures that several of these tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.start()
    yield world
    if world.plane:
        await world.die()
