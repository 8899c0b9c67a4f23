"""Stories of a TrainingJob: attempts, suspension, its gate and its progress."""

from __future__ import annotations

import asyncio

from world import I, R, T, World, index, job, service

from llmops_api.v1alpha1.meta import Progress
from llmops_operator.controllers.control_plane import Options
from llmops_operator.domain.timing import Timing


async def test_a_lost_worker_is_tried_again_after_a_pause_and_both_attempts_are_kept(world: World) -> None:
    world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    world.backend.fail("assistant-train-1", exit_code=75, reason="LostWorker", message="a worker went away")
    await world.until(lambda: "assistant-train-2" in world.backend.names)
    world.train("assistant-train-2")
    await world.until(lambda: world.is_true(T, "Succeeded"))
    ended = [(one["number"], one["reason"], one.get("exitCode")) for one in world.status(T)["attempts"]]
    assert ended == [(1, "LostWorker", 75), (2, "Completed", 0)]
    assert world.backend.names == ["assistant-train-1", "assistant-train-2"]


async def test_the_users_mistake_ends_the_job_for_good_and_its_run(world: World) -> None:
    world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    sentence = "train.jsonl:17 is not JSON: write one object a line"
    world.backend.fail("assistant-train-1", exit_code=64, reason="BadData", message=sentence)
    await world.until(lambda: world.condition(T, "Succeeded")["status"] == "False")
    assert world.condition(T, "Succeeded")["message"] == sentence
    await world.until(lambda: world.is_true(T, "LineageRecorded"))
    assert [record.key for record in world.lineage.records.values()] == ["end:FAILED"]
    await asyncio.sleep(0.1)
    await world.settled()
    assert world.backend.starts == ["assistant-train-1"]
    assert (T, "Warning", "BadData", sentence) in world.store.events


async def test_a_suspended_training_stops_and_goes_on_without_counting_an_attempt(world: World) -> None:
    world.store.apply(job(backoffLimit=0))
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    before = world.backend.workload("assistant-train-1")
    world.backend.run("assistant-train-1")
    world.store.apply(job(backoffLimit=0, suspend=True))
    await world.until(lambda: world.backend.names == [] and world.is_true(T, "Suspended"))
    assert world.status(T)["phase"] == "Suspended"
    assert world.backend.volumes, "the checkpoints stay"
    world.store.apply(job(backoffLimit=0))
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    assert world.backend.workload("assistant-train-1") == before
    world.train("assistant-train-1")
    await world.until(lambda: world.is_true(T, "Succeeded"))
    assert [one["reason"] for one in world.status(T)["attempts"]] == ["Suspended", "Completed"]


async def test_a_version_below_its_gate_is_registered_and_not_served(world: World) -> None:
    for one in (job(), index(), service()):
        world.store.apply(one)
    await world.until(lambda: "assistant-train-1" in world.backend.names and "handbook-sync-1" in world.backend.names)
    world.train("assistant-train-1", gate=False)
    world.sync("handbook-sync-1")
    world.backend.ready("chat-engine")
    await world.until(lambda: world.is_true(T, "Succeeded") and world.is_true(I, "Ready"))
    assert world.condition(T, "GatePassed")["message"] == "Loss fell by 0.3"
    await world.until(lambda: world.condition(R, "Ready")["reason"] == "GateNotPassed")
    assert 'TrainingJob "assistant" did not pass its gate (Loss fell by 0.3)' in world.condition(R, "Ready")["message"]
    assert world.live("chat-engine", "adapters.json") == {"adapters": [], "expectedRank": 16}
    assert "chat-gateway" not in world.backend.names


async def test_progress_is_written_into_the_status_only_so_often(world: World) -> None:
    await world.die()
    world.options = Options(timing=Timing(progress_interval=0.15))
    world.start()
    world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    world.backend.run("assistant-train-1", progress=Progress(doing="training", step=0))
    await world.settled()
    before = len(world.store.writes)
    for step in range(1, 11):
        world.backend.run("assistant-train-1", progress=Progress(doing="training", step=step))
        await asyncio.sleep(0.01)
    await world.until(lambda: world.status(T)["progress"]["step"] == 10)
    assert len(world.store.writes) - before <= 3
