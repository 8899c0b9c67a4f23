"""Deletion in any order, with and without what lives outside of Kubernetes."""

from __future__ import annotations

import itertools

import pytest
from world import I, R, T, World, index, job, ready, service

from llmops_operator.controllers.ports import Key
from llmops_operator.domain.workload import Lifecycle, Owner, Role, State, Workload


@pytest.mark.parametrize("order", list(itertools.permutations((T, I, R))), ids=str)
async def test_whatever_is_deleted_in_whatever_order_nothing_is_left(order: tuple[Key, ...], world: World) -> None:
    await ready(world)
    for key in order:
        world.store.delete(key)
        await world.settled()
        world.play()
    await world.play_until(lambda: world.store.list("EmbeddingIndex") == [])
    assert world.backend.names == []
    assert world.backend.owners() == frozenset()
    assert "handbook-drop" in world.backend.starts


async def test_an_index_that_keeps_its_collections_goes_at_once(world: World) -> None:
    await ready(world, job(), index(deletionPolicy="Retain"), service())
    world.store.delete(I)
    await world.until(lambda: world.store.get(I) is None)
    assert "handbook-drop" not in world.backend.starts


async def test_a_policy_that_is_changed_moves_the_finalizer(world: World) -> None:
    await ready(world)
    manifest = world.store.get(I)
    assert manifest is not None
    assert manifest["metadata"]["finalizers"] == ["llmops.dev/collections"]
    world.store.apply(index(deletionPolicy="Retain"))
    await world.until(lambda: (world.store.get(I) or {})["metadata"]["finalizers"] == [])


async def test_a_vector_store_that_is_away_holds_up_a_deletion_only_so_long(world: World) -> None:
    await ready(world)
    world.store.delete(I)
    for _ in range(2):
        await world.until(lambda: world.state("handbook-drop") is State.PENDING)
        world.backend.fail("handbook-drop", exit_code=75, reason="VectorStoreUnavailable", message="Qdrant is away")
    await world.until(lambda: world.store.get(I) is None)
    events = [event for event in world.store.events if event[2] == "CollectionsLeftBehind"]
    assert len(events) == 1
    assert "Drop the alias default.handbook and the collections default.handbook.* by hand" in events[0][3]


async def test_the_run_of_a_training_that_is_deleted_in_the_middle_is_ended(world: World) -> None:
    world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    world.store.delete(T)
    await world.until(lambda: world.backend.names == [])
    assert [record.key for record in world.lineage.records.values()] == ["end:KILLED"]


async def test_an_object_made_anew_under_the_same_name_begins_anew(world: World) -> None:
    await ready(world)
    world.store.delete(T)
    world.store.apply(job())
    await world.play_until(lambda: world.is_true(T, "Succeeded"))
    assert world.backend.starts.count("assistant-train-1") == 2
    assert world.backend.changes.index(("remove", "assistant-train-1")) < len(world.backend.changes)


async def test_what_runs_for_an_object_that_vanished_while_nobody_looked_is_removed() -> None:
    world = World()
    await world.backend.apply(Owner(*R, "old"), Workload("chat-engine", Role.ENGINE, Lifecycle.RUNS, ("python",)))
    world.start()
    await world.until(lambda: world.backend.names == [])
    await world.die()
