"""Stories of a RagService: what is taken over live, and what answers meanwhile."""

from __future__ import annotations

from world import R, T, World, index, job, ready, service

from llmops_api.programs import EngineConfig


async def test_a_new_version_of_the_adapter_is_taken_over_without_restarting_anything(world: World) -> None:
    world.lineage.register("assistant", "champion", "1")
    by_alias = {"model": {"name": "assistant", "alias": "champion"}}
    for one in (index(), service(by_alias)):
        world.store.apply(one)
    await world.play_until(lambda: world.is_true(R, "Ready"))
    starts = list(world.backend.starts)
    world.lineage.register("assistant", "champion", "2")
    await world.until(lambda: world.live("chat-gateway", "gateway.json")["model"] == "assistant-v2")
    loaded = [one["name"] for one in world.live("chat-engine", "adapters.json")["adapters"]]
    assert loaded == ["assistant-v1", "assistant-v2"], "the old one stays until the gateway asks for the new one"
    assert world.condition(R, "Ready")["reason"] == "TakingOver"
    world.answer()
    await world.until(lambda: world.is_true(R, "Ready"))
    assert [one["name"] for one in world.live("chat-engine", "adapters.json")["adapters"]] == ["assistant-v2"]
    assert world.status(R)["model"]["version"] == "2"
    await world.play_until(lambda: world.is_true(R, "LineageRecorded"))
    assert world.backend.starts == starts


async def test_an_alias_that_is_taken_away_leaves_the_last_version_answering(world: World) -> None:
    world.lineage.register("assistant", "champion", "1")
    for one in (index(), service({"model": {"name": "assistant", "alias": "champion"}})):
        world.store.apply(one)
    await world.play_until(lambda: world.is_true(R, "Ready"))
    before = world.backend.workload("chat-engine"), world.backend.workload("chat-gateway")
    world.lineage.registry.clear()
    world.lineage._tell(R)
    await world.until(lambda: world.condition(R, "ModelResolved")["reason"] == "ModelNotFound")
    assert "meanwhile assistant-v1 answers" in world.condition(R, "ModelResolved")["message"]
    assert (world.backend.workload("chat-engine"), world.backend.workload("chat-gateway")) == before


async def test_a_training_job_that_is_deleted_leaves_its_adapter_answering_across_a_restart(world: World) -> None:
    await ready(world)
    before = world.backend.workload("chat-engine"), world.live("chat-gateway", "gateway.json")
    world.store.delete(T)
    await world.until(lambda: world.condition(R, "ModelResolved")["reason"] == "TrainingJobNotFound")
    await world.die()
    world.start()
    await world.settled()
    assert (world.backend.workload("chat-engine"), world.live("chat-gateway", "gateway.json")) == before


async def test_full_weights_become_the_base_of_the_engine(world: World) -> None:
    for one in (job(tuning={"full": {}}), index(), service()):
        world.store.apply(one)
    await world.settled()
    assert "chat-engine" not in world.backend.names, "the base model is not known yet"
    world.train("assistant-train-1", adapter=False)
    await world.play_until(world.all_ready)
    engine = EngineConfig.model_validate_json(world.backend.workload("chat-engine").files["engine.json"])
    assert (engine.base.uri, engine.served_name, engine.adapters) == ("mlflow://assistant/1", "assistant-v1", False)
    assert world.live("chat-gateway", "gateway.json")["model"] == "assistant-v1"


async def test_an_index_is_swapped_live(world: World) -> None:
    await ready(world)
    starts, revision = list(world.backend.starts), world.status(R)["revision"]
    world.store.apply(index(chunking={"maxTokens": 128}))
    await world.play_until(world.all_ready)
    await world.play_until(lambda: world.status(R)["revision"] != revision)
    assert world.status(R)["indexes"] == [{"name": "handbook", "collection": "default.handbook.0000000128"}]
    assert world.backend.starts == [*starts, "handbook-sync-2"]


async def test_a_prompt_is_changed_live(world: World) -> None:
    await ready(world)
    starts, revision = list(world.backend.starts), world.status(R)["revision"]
    world.store.apply(service(prompt={"system": "Be brief."}))
    await world.until(lambda: world.live("chat-gateway", "gateway.json")["prompt"]["system"] == "Be brief.")
    await world.play_until(world.all_ready)
    assert world.status(R)["revision"] != revision
    assert world.backend.starts == starts


async def test_an_index_that_is_added_and_not_there_leaves_the_others_searched(world: World) -> None:
    await ready(world)
    more = [{"indexRef": {"name": "handbook"}}, {"indexRef": {"name": "manuals"}}]
    world.store.apply(service(indexes=more))
    await world.until(lambda: world.condition(R, "IndexesResolved")["reason"] == "IndexNotFound")
    assert "meanwhile handbook is searched" in world.condition(R, "IndexesResolved")["message"]
    assert [one["name"] for one in world.live("chat-gateway", "gateway.json")["indexes"]] == ["handbook"]


async def test_a_suspended_service_stops_and_comes_back(world: World) -> None:
    await ready(world)
    world.store.apply(service(suspend=True))
    await world.until(lambda: world.is_true(R, "Suspended") and "chat-engine" not in world.backend.names)
    assert "chat-gateway" not in world.backend.names
    assert "url" not in world.status(R)
    assert world.condition(R, "Ready")["reason"] == "Suspended"
    world.store.apply(service())
    await world.play_until(world.all_ready)


async def test_engines_that_run_elsewhere_need_no_engine_of_ours(world: World) -> None:
    endpoint = {"urls": ["http://one:8000/v1", "http://two:8000/v1/"], "name": "llama", "secretRef": {"name": "key"}}
    world.store.apply(index())
    world.store.apply(service(model={"endpoint": endpoint}, replicas=2))
    await world.play_until(lambda: world.is_true(R, "Ready"))
    assert "chat-engine" not in world.backend.names
    gateway = world.backend.workload("chat-gateway")
    config = world.live("chat-gateway", "gateway.json")
    assert (config["engines"], config["model"]) == (["http://one:8000", "http://two:8000"], "llama")
    assert [(one.env, one.name, one.key) for one in gateway.secrets] == [("LLMOPS_ENGINE_API_KEY", "key", "apiKey")]
    assert (gateway.replicas, world.status(R)["readyReplicas"]) == (2, 2)


async def test_why_a_program_does_not_get_well_is_said_in_its_words(world: World) -> None:
    await ready(world)
    world.backend.unready(
        "chat-engine", reason="CrashLoopBackOff", message="restarted 4 times; last line: CUDA out of memory"
    )
    await world.until(lambda: world.condition(R, "Ready")["reason"] == "CrashLoopBackOff")
    assert "CUDA out of memory" in world.condition(R, "EngineReady")["message"]
    assert world.live("chat-gateway", "gateway.json")["engines"] == []
    world.backend.ready("chat-engine")
    world.backend.unready("chat-gateway", reason="PortInUse", message="port 8080 is in use")
    await world.until(lambda: world.condition(R, "Ready")["reason"] == "PortInUse")
