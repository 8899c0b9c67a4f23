"""What must not spread: MLflow that is away, objects that are wrong, and calls that hang."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from world import OPTIONS, I, R, T, World, index, job, ready, service

from llmops_operator.controllers import control_plane, rag_services
from llmops_operator.controllers.control_plane import Options
from llmops_operator.controllers.lineage.port import NoLineage
from llmops_operator.controllers.ports import Key, Refused
from llmops_operator.domain.workload import Owner, Workload


async def test_mlflow_being_away_delays_nothing_and_is_said(world: World) -> None:
    world.lineage.away = True
    await ready(world)
    condition = world.condition(R, "LineageRecorded")
    assert (condition["status"], condition["reason"]) == ("False", "MLflowUnavailable")
    assert "connection refused" in condition["message"]
    assert "since 2026-01-01" in condition["message"]
    starts = list(world.backend.starts)
    world.lineage.comes_back()
    await world.until(lambda: world.is_true(R, "LineageRecorded") and world.is_true(I, "LineageRecorded"))
    assert world.live("chat-gateway", "gateway.json")["mlflowModelId"] == f"m-{world.status(R)['revision']}"
    assert world.backend.starts == starts


async def test_a_record_that_finds_no_room_is_brought_again(world: World) -> None:
    await world.die()
    world.options = Options(timing=OPTIONS.timing, lineage_retry_seconds=0.02)
    world.start()
    world.lineage.full = True
    await ready(world)
    assert world.condition(I, "LineageRecorded")["reason"] == "Recording"
    world.lineage.full = False
    await world.until(lambda: world.is_true(I, "LineageRecorded") and world.is_true(R, "LineageRecorded"))


async def test_without_mlflow_everything_works_but_the_registry(world: World) -> None:
    await world.die()
    world.lineage = NoLineage()
    world.start()
    await ready(world)
    assert world.condition(I, "LineageRecorded")["reason"] == "Disabled"
    assert "mlflowExperiment" not in world.live("chat-gateway", "gateway.json")
    world.store.apply(service({"model": {"name": "assistant", "alias": "champion"}}))
    await world.until(lambda: world.condition(R, "ModelResolved")["reason"] == "NoRegistry")
    assert world.lineage.record(R, None) is True
    assert world.lineage.run_url("1", "2") is None


async def test_an_invalid_object_says_which_field_is_wrong_and_goes_on_when_it_is_corrected(world: World) -> None:
    world.store.apply(job(tuning={"lora": {}, "full": {}}, epochs=3))
    await world.until(lambda: world.condition(T, "Accepted")["status"] == "False")
    said = world.condition(T, "Accepted")["message"]
    assert "spec.tuning: tuning takes exactly one of lora and full" in said
    assert "spec.epochs: unknown field: it belongs to spec.hyperparameters.epochs" in said
    assert world.condition(T, "Succeeded")["reason"] == "Invalid"
    writes = len(world.store.writes)
    assert world.plane is not None
    world.plane.queue.add(T)
    await world.settled()
    assert len(world.store.writes) == writes
    assert [event[2] for event in world.store.events] == ["Invalid"]
    world.store.apply(job())
    await world.until(lambda: "assistant-train-1" in world.backend.names)
    assert world.is_true(T, "Accepted")


async def test_an_object_whose_status_nobody_takes_is_told_of_by_an_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise Refused("the API server takes no status of an object that breaks the schema")

    monkeypatch.setattr(world.store, "write_status", refuse)
    world.store.apply(job(epochs=3))
    await world.until(lambda: bool(world.store.events))
    await world.settled()
    assert [event[2] for event in world.store.events] == ["Invalid"]


async def test_an_invalid_edit_leaves_running_what_runs(world: World) -> None:
    await ready(world)
    names = world.backend.names
    world.store.apply(service(replicas="many"))
    await world.until(lambda: world.condition(R, "Accepted")["status"] == "False")
    assert world.condition(R, "Ready")["status"] == "False"
    assert world.backend.names == names
    assert world.status(R)["url"] == "http://chat-gateway"


async def test_an_object_that_nobody_can_look_at_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = rag_services.look

    def poisoned(one: Any, at: Any) -> Any:
        if one.metadata.name == "poisoned":
            raise RuntimeError("a bug")
        return looked(one, at)

    monkeypatch.setattr(control_plane.rag_services, "look", poisoned)
    world.store.apply(service() | {"metadata": {"name": "poisoned"}})
    await ready(world)
    assert world.status(("RagService", "default", "poisoned")) == {}


async def test_an_object_whose_workload_hangs_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    world = World(options=Options(workers=2, timeout_seconds=0.05, timing=OPTIONS.timing))
    apply = world.backend.apply

    async def hanging(owner: Owner, workload: Workload) -> None:
        if owner.name == "hanging":
            await asyncio.Event().wait()
        await apply(owner, workload)

    world.backend.apply = hanging  # type: ignore[method-assign]
    world.start()
    world.store.apply(job() | {"metadata": {"name": "hanging"}})
    for one in (job(), index(), service()):
        world.store.apply(one)
    end = asyncio.get_running_loop().time() + 10
    said = "TrainingJob default/hanging: not done within 0.05 s"
    while not (world.all_ready() and said in caplog.text):
        assert asyncio.get_running_loop().time() < end, world.describe()
        world.play()
        await asyncio.sleep(0.01)
    await world.die()


async def test_an_object_that_goes_in_the_middle_is_no_error(world: World, caplog: pytest.LogCaptureFixture) -> None:
    write = world.store.write_status

    async def gone(key: Key, status: Any, *, resource_version: str) -> None:
        world.store.delete(key)
        await write(key, status, resource_version=resource_version)

    world.store.write_status = gone  # type: ignore[method-assign]
    world.store.apply(job())
    await world.until(lambda: world.store.get(T) is None)
    await world.settled()
    assert world.backend.starts == []
    assert caplog.text == ""


async def test_a_status_of_another_object_that_cannot_be_read_counts_as_none(world: World) -> None:
    await ready(world)
    manifest = world.store.get(I)
    assert manifest is not None
    await world.store.write_status(I, {"version": 7}, resource_version=manifest["metadata"]["resourceVersion"])
    await world.until(lambda: world.condition(I, "Accepted")["status"] == "False")
    await world.until(lambda: world.condition(R, "IndexesResolved")["reason"] == "IndexNotServing")


async def test_a_service_with_a_finalizer_of_somebody_else_stops_and_waits(world: World) -> None:
    await ready(world)
    for key in (T, R):
        await world.store.set_finalizer(key, "example.org/theirs", present=True)
        world.store.delete(key)
    await world.until(lambda: world.backend.names == ["handbook-sync-1"])
    assert {owner.kind for owner in world.backend.volumes} == {"EmbeddingIndex"}
