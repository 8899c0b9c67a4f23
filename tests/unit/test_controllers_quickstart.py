"""From nothing to an answer: the three objects in any order, what the programs are given, and the rest afterwards."""

from __future__ import annotations

import itertools

import pytest
from fake_lineage import FakeLineage
from world import OPTIONS, I, R, T, World, index, job, ready, service

from llmops_api.programs import EngineConfig, GatewayConfig, IndexingConfig, TrainingConfig
from llmops_operator.controllers.control_plane import Options
from llmops_operator.domain.workload import Lifecycle, Role


@pytest.mark.parametrize("order", list(itertools.permutations((0, 1, 2))), ids=str)
@pytest.mark.parametrize("patience", ["at once", "one after the other has settled"])
async def test_any_order_of_creation_ends_in_the_same_state(order: tuple[int, ...], patience: str) -> None:
    ends = []
    for each in ((0, 1, 2), order):
        world = World()
        world.start()
        for position in each:
            world.store.apply((job(), index(), service())[position])
            if patience != "at once":
                await world.settled()
                world.play()
        await world.play_until(world.all_ready)
        ends.append((world.end_state(), sorted(world.backend.starts)))
        await world.die()
    assert ends[0] == ends[1]
    assert sorted(world.backend.starts) == ["assistant-train-1", "chat-engine", "chat-gateway", "handbook-sync-1"]


async def test_the_programs_get_what_their_objects_say(world: World) -> None:
    await ready(world)
    trainer, indexer = world.backend.workload("assistant-train-1"), world.backend.workload("handbook-sync-1")
    engine, gateway = world.backend.workload("chat-engine"), world.backend.workload("chat-gateway")
    assert trainer.command == ("python", "-m", "llmops_services.training", "config/training.json")
    training = TrainingConfig.model_validate_json(trainer.files["training.json"])
    assert training.spec.hyperparameters.max_steps == 5
    assert "maxSteps: 5" in training.manifest
    assert IndexingConfig.model_validate_json(indexer.files["indexing.json"]).object.name == "handbook"
    assert EngineConfig.model_validate_json(engine.files["engine.json"]).adapters
    config = GatewayConfig.model_validate(world.live("chat-gateway", "gateway.json"))
    assert (config.model, config.engines) == ("assistant-v1", ("http://chat-engine",))
    assert [(one.name, one.alias) for one in config.indexes] == [("handbook", "default.handbook")]
    assert (config.mlflow_experiment, config.mlflow_model_id) == ("llmops/default", f"m-{config.revision}")
    roles = [(one.role, one.lifecycle) for one in (trainer, indexer, engine, gateway)]
    assert roles == [
        (Role.TRAINER, Lifecycle.COMPLETES),
        (Role.INDEXER, Lifecycle.COMPLETES),
        (Role.ENGINE, Lifecycle.RUNS),
        (Role.GATEWAY, Lifecycle.RUNS),
    ]


async def test_the_engine_starts_before_the_adapter_and_the_indexes_are_there(world: World) -> None:
    world.store.apply(service())
    await world.settled()
    assert world.backend.names == ["chat-engine"]
    assert 'there is no TrainingJob "assistant"' in world.condition(R, "ModelResolved")["message"]
    assert 'there is no EmbeddingIndex "handbook"' in world.condition(R, "IndexesResolved")["message"]


async def test_the_status_says_what_answers_and_where(world: World) -> None:
    await ready(world)
    status = world.status(R)
    assert status["url"] == "http://chat-gateway"
    assert status["model"] == {"name": "assistant-v1", "version": "1", "uri": "mlflow://assistant/1", "adapter": True}
    assert status["indexes"] == [{"name": "handbook", "collection": "default.handbook.0000000256"}]
    assert (status["replicas"], status["readyReplicas"], status["phase"]) == (1, 1, "Ready")
    assert status["runUrl"] == f"http://mlflow/{status['revision']}"
    assert world.status(T)["runUrl"] == "http://mlflow/7/run-1"
    assert world.status(I)["runId"] == "run-default.handbook.0000000256@v1"


async def test_all_conditions_are_written_at_first_sight_and_unknown_where_nobody_has_looked(world: World) -> None:
    world.store.apply(job())
    await world.settled()
    types = [one["type"] for one in world.status(T)["conditions"]]
    assert types == ["Accepted", "Trained", "GatePassed", "Registered", "LineageRecorded", "Suspended", "Succeeded"]
    assert world.condition(T, "Registered")["status"] == "Unknown"


async def test_nothing_is_written_in_a_steady_state(world: World) -> None:
    await ready(world)
    writes, changes = len(world.store.writes), len(world.backend.changes)
    assert world.plane is not None
    for _ in range(3):
        for key in (T, I, R):
            world.plane.queue.add(key)
        await world.settled()
    assert (len(world.store.writes), len(world.backend.changes)) == (writes, changes)


async def test_a_control_plane_that_starts_over_a_steady_state_writes_nothing(world: World) -> None:
    await ready(world)
    await world.die()
    writes, changes = len(world.store.writes), len(world.backend.changes)
    world.lineage = FakeLineage()
    world.start()
    await world.settled()
    assert (len(world.store.writes), len(world.backend.changes)) == (writes, changes)
    assert world.lineage.records == {}


async def test_everything_is_looked_at_again_now_and_then(world: World) -> None:
    await world.die()
    world.options = Options(resync_seconds=0.05, timing=OPTIONS.timing)
    world.start()
    await ready(world)
    world.store.unsubscribe_all()
    world.store.apply(job(suspend=True) | {"metadata": {"name": "later"}})
    await world.until(lambda: world.is_true(("TrainingJob", "default", "later"), "Suspended"))
