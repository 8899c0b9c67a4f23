"""What a workload waits for, or why it may not be, is told in its status."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from rendered_workloads import CONFIG, GATEWAY, TRAINER

from harness.api_server import ApiServer
from llmops_operator.backends.kubernetes import listening
from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.backend import KubernetesBackend
from llmops_operator.backends.kubernetes.client import Client
from llmops_operator.backends.kubernetes.config import ConnectionSecret
from llmops_operator.controllers.ports import NotYet
from llmops_operator.domain.workload import Owner, State


async def test_without_kuberay_several_workers_wait_and_say_for_what(backend: KubernetesBackend, owner: Owner) -> None:
    await backend.apply(owner, replace(TRAINER, workers=2))
    status = backend.observe(owner)[TRAINER.name]
    assert (status.state, status.reason) == (State.PENDING, "KubeRayMissing")
    assert "install the KubeRay operator" in status.message


async def test_somebody_elses_object_is_left_alone_and_the_status_says_whose_name_it_is(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    api_server.kubectl("-n", owner.namespace, "create", "configmap", "chat-gateway-live", "--from-literal=a=b")
    with pytest.raises(NotYet, match="somebody else"):
        await backend.apply(owner, GATEWAY)
    status = backend.observe(owner)[GATEWAY.name]
    assert (status.state, status.reason) == (State.PENDING, "NameTaken")
    assert owner in backend.owners()
    theirs = api_server.kubectl.get("configmap", "chat-gateway-live", "-n", owner.namespace)
    assert (theirs["data"], theirs["metadata"].get("labels")) == ({"a": "b"}, None)
    api_server.kubectl("-n", owner.namespace, "delete", "configmap", "chat-gateway-live")
    await backend.apply(owner, GATEWAY)
    assert backend.observe(owner)[GATEWAY.name].reason == ""


async def test_a_name_belongs_to_one_object(backend: KubernetesBackend, owner: Owner) -> None:
    await backend.apply(owner, GATEWAY)
    with pytest.raises(NotYet, match="TrainingJob handbook"):
        await backend.apply(replace(owner, name="other", uid="other"), GATEWAY)


async def test_what_the_api_server_refuses_is_told_in_the_status(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    with pytest.raises(NotYet):
        await backend.apply(
            owner, replace(GATEWAY, pod_template={"env": [{"name": "A", "value": "b", "valueFrom": {}}]})
        )
    assert backend.observe(owner)[GATEWAY.name].reason == "Refused"
    await backend.apply(owner, GATEWAY)
    assert backend.observe(owner)[GATEWAY.name].reason == ""


async def test_a_connection_that_is_not_there_is_told(client: Client, owner: Owner, api_server: ApiServer) -> None:
    backend = KubernetesBackend(
        Api(client), CONFIG.model_copy(update={"connection_secret": ConnectionSecret(name="no")})
    )
    await backend.start()
    with pytest.raises(NotYet):
        await backend.apply(owner, GATEWAY)
    assert '"no" not found' in backend.observe(owner)[GATEWAY.name].message
    await backend.stop()


async def test_a_pod_that_may_not_be_made_is_told_from_the_events_of_its_job(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "STUCK_SECONDS", 0.5)
    backend._listening._acting = lambda: True
    await backend.apply(owner, TRAINER)
    job = backend._children.get("Job", owner.namespace, TRAINER.name)
    assert job is not None
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "refused", "namespace": owner.namespace},
        "involvedObject": {
            "kind": "Job",
            "name": TRAINER.name,
            "namespace": owner.namespace,
            "uid": job["metadata"]["uid"],
        },
        "type": "Warning",
        "reason": "FailedCreate",
        "message": 'pods "x" is forbidden: exceeded quota: small',
    }
    api_server.kubectl("apply", "-f", "-", stdin=json.dumps(event))
    await asyncio.sleep(1)
    await backend._listening._collect()
    await backend._listening._ask_why()
    assert backend.observe(owner)[TRAINER.name].reason == "QuotaExceeded"
