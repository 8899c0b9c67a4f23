"""What is observed of pods, Jobs and Services, on an API server without a kubelet: the tests say what they come to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from rendered_workloads import CONFIG, GATEWAY, TRAINER
from waiting import eventually
from workloads import end_job, pod

from harness.api_server import ApiServer
from llmops_api.programs import Said
from llmops_operator.backends.kubernetes import listening
from llmops_operator.backends.kubernetes.api import Api, Resource
from llmops_operator.backends.kubernetes.backend import KubernetesBackend
from llmops_operator.backends.kubernetes.client import Client
from llmops_operator.backends.kubernetes.rendering.names import RESULT
from llmops_operator.controllers.ports import NotFound, NotYet
from llmops_operator.domain.workload import Owner, Role, State


async def test_the_policy_of_an_engine_is_kept_as_it_was_rendered_and_goes_when_it_is_no_longer_wanted(
    backend: KubernetesBackend, client: Client, owner: Owner, api_server: ApiServer
) -> None:
    engine = replace(GATEWAY, name="chat-engine", role=Role.ENGINE)
    await backend.apply(owner, engine)
    place = ("networkpolicy", engine.name, "-n", owner.namespace)
    made = api_server.kubectl.get(*place)
    told = asyncio.Event()
    backend.subscribe(lambda _: told.set())
    api_server.kubectl("patch", *place, "--type=json", "-p", '[{"op": "add", "path": "/spec/ingress/-", "value": {}}]')
    async with asyncio.timeout(10):
        await told.wait()
    await backend.apply(owner, engine)
    assert api_server.kubectl.get(*place)["spec"] == made["spec"]
    without = KubernetesBackend(Api(client), CONFIG.model_copy(update={"network_policies": False}))
    await without.start()
    try:
        await without.apply(owner, engine)
    finally:
        await without.stop()
    assert "not found" in api_server.kubectl.run("get", *place).stderr
    assert api_server.kubectl.get("deployment", engine.name, "-n", owner.namespace)


async def test_endpoints_are_the_service_of_a_gateway_and_the_ready_pods_of_an_engine(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    engine = replace(GATEWAY, name="chat-engine", role=Role.ENGINE)
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    for workload in (GATEWAY, engine):
        await backend.apply(owner, workload)
        for number in (1, 2):
            pod(api_server, owner, workload, f"{workload.name}-{number}", podIP=f"10.0.0.{number}", **ready)
    pod(api_server, owner, engine, "chat-engine-3", phase="Running", podIP="10.0.0.3")
    await eventually(lambda: backend.observe(owner)["chat-engine"].ready_replicas == 2)
    await eventually(lambda: backend.observe(owner)[GATEWAY.name].ready_replicas == 2)
    assert backend.observe(owner)["chat-engine"].endpoints == ("http://10.0.0.1:8000", "http://10.0.0.2:8000")
    assert backend.observe(owner)[GATEWAY.name].endpoints == (f"http://chat-gateway.{owner.namespace}.svc:8080",)


async def test_a_job_has_succeeded_when_its_result_is_kept(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, TRAINER)
    pod(api_server, owner, TRAINER, "train-1-abc", phase="Running")
    await eventually(lambda: backend.observe(owner)[TRAINER.name].state is State.RUNNING)
    # The pod's log cannot be read here; what was read of it before stands as an annotation.
    api_server.kubectl("annotate", "job", TRAINER.name, "-n", owner.namespace, f'{RESULT}={{"steps": 3}}')
    end_job(api_server, owner, "Complete")
    status = await eventually(lambda: (one := backend.observe(owner)[TRAINER.name]).state is State.SUCCEEDED and one)
    assert status.result == {"steps": 3}
    assert status.exit_code == 0


async def test_a_result_that_is_owed_is_looked_for_now_and_then(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def log(self: Api, resource: Resource, namespace: str, name: str, **_: Any) -> str:
        asked.append(name)
        raise NotFound("it cannot be read yet")

    monkeypatch.setattr(Api, "log", log)
    await backend.apply(owner, TRAINER)
    pod(api_server, owner, TRAINER, "train-1-abc", phase="Succeeded")
    end_job(api_server, owner, "Complete", now=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    await eventually(lambda: asked)
    await asyncio.sleep(4 * listening.COLLECT_SECONDS)
    assert asked == ["train-1-abc"]
    assert backend.observe(owner)[TRAINER.name].state is State.RUNNING


async def test_a_result_is_waited_for_when_the_end_of_a_job_is_heard_of_before_its_pod(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "OWED_SECONDS", 0.2)

    async def log(self: Api, resource: Resource, namespace: str, name: str, **_: Any) -> str:
        return f'{Said.RESULT}{{"steps": 3}}\n'

    monkeypatch.setattr(Api, "log", log)
    of, asked, any_ = backend._children.of, asyncio.Event(), Api.any

    async def any_pod(self: Api, resource: Resource, **where: str) -> bool:
        asked.set()
        return await any_(self, resource, **where)

    monkeypatch.setattr(Api, "any", any_pod)
    monkeypatch.setattr(
        backend._children, "of", lambda owner, *kinds: [one for one in of(owner, *kinds) if one["kind"] != "Pod"]
    )
    await backend.apply(owner, TRAINER)
    pod(api_server, owner, TRAINER, "train-1-abc", phase="Succeeded")
    end_job(api_server, owner, "Complete")
    async with asyncio.timeout(10):
        await asked.wait()
    await asyncio.sleep(4 * listening.COLLECT_SECONDS)
    assert backend.observe(owner)[TRAINER.name].state is State.RUNNING
    monkeypatch.setattr(backend._children, "of", of)
    status = await eventually(lambda: (one := backend.observe(owner)[TRAINER.name]).state is State.SUCCEEDED and one)
    assert status.result == {"steps": 3}


async def test_a_job_that_failed_says_what_its_program_said_and_its_exit_code(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, TRAINER)
    ended = {"terminated": {"exitCode": 64, "reason": "Error", "startedAt": None, "finishedAt": "2026-11-25T00:00:00Z"}}
    container = {"name": "c", "image": "none", "imageID": "", "ready": False, "restartCount": 0, "state": ended}
    pod(api_server, owner, TRAINER, "train-1-abc", phase="Failed", containerStatuses=[container])
    said = json.dumps({"reason": "DataInvalid", "message": "line 17 is not JSON"})
    api_server.kubectl("annotate", "job", TRAINER.name, "-n", owner.namespace, f"{RESULT}={said}")
    end_job(api_server, owner, "Failed", "BackoffLimitExceeded")
    status = await eventually(lambda: (one := backend.observe(owner)[TRAINER.name]).state is State.FAILED and one)
    assert (status.exit_code, status.reason, status.message) == (64, "DataInvalid", "line 17 is not JSON")


async def test_a_job_whose_pod_is_gone_failed_without_a_word(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, TRAINER)
    end_job(api_server, owner, "Failed", "BackoffLimitExceeded")
    status = await eventually(lambda: (one := backend.observe(owner)[TRAINER.name]).state is State.FAILED and one)
    assert (status.reason, status.exit_code) == ("PodLost", None)


async def test_removing_waits_for_pods_that_end_slowly(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, TRAINER)
    pod(api_server, owner, TRAINER, "train-1-abc", phase="Running")
    await eventually(lambda: backend.observe(owner)[TRAINER.name].state is State.RUNNING)
    with pytest.raises(NotYet, match=r"handbook-train-1 is still ending: pod train-1-abc$"):
        await backend.remove(owner, TRAINER.name)
    # The garbage collector, which does not run here, deletes the pods first and then the Job.
    api_server.kubectl("delete", "pod", "train-1-abc", "-n", owner.namespace, "--grace-period=0", "--force")
    api_server.kubectl(
        "patch", "job", TRAINER.name, "-n", owner.namespace, "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
    )
    async with asyncio.timeout(20):
        while True:
            try:
                await backend.remove(owner, TRAINER.name)
            except NotYet:
                continue
            break
    assert TRAINER.name not in backend.observe(owner)
