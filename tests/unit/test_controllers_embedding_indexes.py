"""Stories of an EmbeddingIndex: edits, refreshes, failed syncs and its gate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from world import I, R, World, index, ready

from llmops_operator.domain.timing import timestamp


async def test_an_edit_while_a_sync_runs_starts_it_anew(world: World) -> None:
    world.store.apply(index())
    await world.until(lambda: "handbook-sync-1" in world.backend.names)
    world.backend.run("handbook-sync-1")
    world.store.apply(index(chunking={"maxTokens": 128}))
    await world.until(lambda: world.backend.names == ["handbook-sync-2"])
    world.sync("handbook-sync-2")
    await world.until(lambda: world.is_true(I, "Ready"))
    assert world.status(I)["version"]["collection"] == "default.handbook.0000000128"
    assert [one["reason"] for one in world.status(I)["attempts"]] == ["SpecChanged", "Completed"]


async def test_a_result_that_arrives_together_with_an_edit_is_taken_and_the_edit_is_synced(world: World) -> None:
    world.store.apply(index())
    await world.until(lambda: "handbook-sync-1" in world.backend.names)
    world.sync("handbook-sync-1")
    world.store.apply(index(chunking={"maxTokens": 128}))
    await world.until(lambda: "handbook-sync-2" in world.backend.names)
    assert world.status(I)["version"]["collection"] == "default.handbook.0000000256"
    assert not world.is_true(I, "Synced")
    world.sync("handbook-sync-2")
    await world.until(lambda: world.is_true(I, "Ready"))
    assert world.status(I)["version"]["collection"] == "default.handbook.0000000128"


async def test_a_sync_that_is_asked_for_runs_once(world: World) -> None:
    world.store.apply(index())
    await world.play_until(lambda: world.is_true(I, "Ready"))
    world.store.apply(index({"llmops.dev/sync-requested-at": timestamp(datetime.now(UTC))}))
    await world.until(lambda: "handbook-sync-2" in world.backend.names)
    assert world.is_true(I, "Serving")
    world.documents = "v2"
    await world.play_until(lambda: world.is_true(I, "Ready"))
    assert world.status(I)["version"]["digest"] == "v2"
    assert world.backend.starts == ["handbook-sync-1", "handbook-sync-2"]
    assert world.backend.names == ["handbook-sync-2"]


async def test_an_index_is_refreshed_when_its_time_is_over(world: World) -> None:
    world.store.apply(index(refresh={"everySeconds": 5}))
    await world.until(lambda: "handbook-sync-1" in world.backend.names)
    world.sync("handbook-sync-1")
    await world.until(lambda: world.is_true(I, "Ready"))
    assert world.plane is not None
    world.plane._clock = lambda: datetime.now(UTC) + timedelta(seconds=6)
    world.plane.queue.add(I)
    await world.until(lambda: "handbook-sync-2" in world.backend.names)
    assert world.is_true(I, "Ready"), "what is known goes on being said while it is looked at again"


async def test_a_failed_sync_is_tried_again_while_the_old_version_serves(world: World) -> None:
    await ready(world)
    world.store.apply(index(chunking={"maxTokens": 128}))
    await world.until(lambda: "handbook-sync-2" in world.backend.names)
    world.backend.fail(
        "handbook-sync-2", exit_code=75, reason="VectorStoreUnavailable", message="Qdrant does not answer"
    )
    await world.until(lambda: "handbook-sync-3" in world.backend.names)
    assert world.condition(I, "Synced")["reason"] == "VectorStoreUnavailable"
    assert world.is_true(I, "Serving")
    assert world.is_true(R, "Ready")
    await world.play_until(world.all_ready)
    assert world.status(R)["indexes"] == [{"name": "handbook", "collection": "default.handbook.0000000128"}]


async def test_a_version_that_fails_its_gate_leaves_the_old_one_serving(world: World) -> None:
    await ready(world)
    world.store.apply(index(chunking={"maxTokens": 128}))
    await world.until(lambda: "handbook-sync-2" in world.backend.names)
    world.sync("handbook-sync-2", gate=False)
    await world.until(lambda: world.condition(I, "GatePassed")["status"] == "False")
    assert world.condition(I, "Ready")["reason"] == "GateNotPassed"
    assert world.condition(I, "Ready")["message"] == "recall@5 is 0.5"
    assert world.is_true(I, "Serving")
    await world.settled()
    assert world.is_true(R, "Ready")
    assert world.status(R)["indexes"] == [{"name": "handbook", "collection": "default.handbook.0000000256"}]
