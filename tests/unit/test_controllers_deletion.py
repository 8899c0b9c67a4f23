"""Deletion in any order, with and without what lives outside of Kubernetes."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest
from world import I, R, T, World, index, job, ready, service

from llmops_operator.controllers.ports import Key, NotYet, Unavailable
from llmops_operator.domain.workload import Lifecycle, Owner, Role, Workload


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
    assert world.collections.uids == world.collections.aliases == {}


async def test_an_index_that_keeps_its_collections_goes_at_once(world: World) -> None:
    await ready(world, job(), index(deletionPolicy="Retain"), service())
    world.store.delete(I)
    await world.until(lambda: world.store.get(I) is None)
    assert len(world.collections.uids) == 1
    assert world.collections.tries == 0


async def test_an_index_that_was_never_synced_goes_without_the_vector_store(world: World) -> None:
    world.collections.away = "Qdrant is away"
    world.store.apply(index(suspend=True))
    await world.until(lambda: (world.store.get(I) or {})["metadata"].get("finalizers"))
    world.store.delete(I)
    await world.until(lambda: world.store.get(I) is None)
    assert world.collections.tries == 0


async def test_nothing_is_dropped_while_a_sync_still_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.options = replace(world.options, timing=replace(world.options.timing, drop_deadline=60))
    await world.die()
    world.start()
    await ready(world)
    remove = world.backend.remove
    ending = True

    async def slow(owner: Owner, name: str) -> None:
        if ending:
            raise NotYet(f"{name} is still ending")
        await remove(owner, name)

    monkeypatch.setattr(world.backend, "remove", slow)
    world.store.delete(I)
    await world.until(lambda: world.condition(I, "Ready")["reason"] == "CollectionsNotDropped")
    assert world.condition(I, "Ready")["message"].startswith("handbook-sync-1 is still ending. ")
    await world.settled()
    assert world.collections.tries == 0
    ending = False
    await world.until(lambda: world.store.get(I) is None)
    assert world.collections.uids == {}


@pytest.mark.parametrize("error", [NotYet, Unavailable])
async def test_a_sync_that_does_not_end_holds_up_a_deletion_only_so_long_and_is_removed_when_it_can_be(
    error: type[Exception], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ready(world)
    remove = world.backend.remove
    ending = True

    async def slow(owner: Owner, name: str) -> None:
        if ending and owner.kind == "EmbeddingIndex":
            raise error(f"{name} is still ending")
        await remove(owner, name)

    monkeypatch.setattr(world.backend, "remove", slow)
    world.store.delete(I)
    await world.until(lambda: world.store.get(I) is None)
    assert world.collections.tries == 0
    left = next(event for event in world.store.events if event[2] == "CollectionsLeftBehind")
    assert "handbook-sync-1 is still ending. Drop the alias default.handbook" in left[3]
    assert "handbook-sync-1" in world.backend.names
    ending = False
    await world.until(lambda: not any(owner.kind == "EmbeddingIndex" for owner in world.backend.owners()))


async def test_what_another_index_of_the_same_name_has_made_stays(world: World) -> None:
    await ready(world)
    world.collections.uids["default.handbook.0123456789"] = "another"
    world.store.delete(I)
    await world.until(lambda: world.store.get(I) is None)
    assert world.collections.uids == {"default.handbook.0123456789": "another"}


async def test_an_index_that_cannot_be_read_any_more_can_be_deleted_and_says_what_it_leaves(world: World) -> None:
    await ready(world)
    world.store.apply(index(chunking={"maxTokens": "many"}))
    await world.until(lambda: world.condition(I, "Accepted")["reason"] == "Invalid")
    world.store.delete(I)
    await world.until(lambda: world.store.get(I) is None)
    left = next(event for event in world.store.events if event[2] == "CollectionsLeftBehind")
    assert "spec.chunking.maxTokens" in left[3]
    assert "drop the alias default.handbook and the collections default.handbook.* by hand" in left[3]
    await world.until(lambda: not any(owner.kind == "EmbeddingIndex" for owner in world.backend.owners()))
    assert world.collections.tries == 0


async def test_a_policy_that_is_changed_moves_the_finalizer(world: World) -> None:
    await ready(world)
    manifest = world.store.get(I)
    assert manifest is not None
    assert manifest["metadata"]["finalizers"] == ["llmops.dev/collections"]
    world.store.apply(index(deletionPolicy="Retain"))
    await world.until(lambda: (world.store.get(I) or {})["metadata"]["finalizers"] == [])


async def test_a_vector_store_that_is_away_holds_up_a_deletion_only_so_long(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await ready(world)
    world.collections.away = "Qdrant is away"
    world.store.delete(I)
    await world.until(lambda: world.store.get(I) is None)
    assert world.collections.tries > 1
    told = {reason: message for key, type_, reason, message in world.store.events if key == I and type_ == "Warning"}
    assert list(told) == ["CollectionsNotDropped", "CollectionsLeftBehind"]
    by_hand = "Drop the alias default.handbook and the collections default.handbook.* by hand"
    assert by_hand in told["CollectionsLeftBehind"]
    assert by_hand in caplog.text  # where the namespace is gone, its events are
    assert len(world.collections.uids) == 1


async def test_a_vector_store_that_comes_back_in_time_loses_nothing(world: World) -> None:
    world.options = replace(world.options, timing=replace(world.options.timing, drop_deadline=60))
    await world.die()
    world.start()
    await ready(world)
    world.collections.away = "Qdrant is away"
    world.store.delete(I)
    await world.until(lambda: world.condition(I, "Ready")["reason"] == "CollectionsNotDropped")
    assert world.condition(I, "Ready")["message"].startswith("Qdrant is away. ")
    world.collections.away = ""
    await world.until(lambda: world.store.get(I) is None)
    assert world.collections.uids == {}
    assert "CollectionsLeftBehind" not in [reason for _, _, reason, _ in world.store.events]


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


async def test_what_runs_for_an_object_that_was_not_seen_yet_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ready(world)
    await world.die()
    running, read, unseen = world.backend.names, world.store.get, {T, I, R}
    monkeypatch.setattr(world.store, "get", lambda key: None if key in unseen else read(key))
    world.start()
    await asyncio.sleep(0.1)
    assert world.backend.names == running
    unseen.clear()
    await world.until(world.all_ready)
    assert world.backend.names == running
