"""What a workload waits for, or why it may not be, is told in its status."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rendered_workloads import CONFIG, GATEWAY, TRAINER
from waiting import eventually
from workloads import patch_status, pod

from harness.api_server import ApiServer
from llmops_operator.backends.kubernetes import listening
from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.backend import KubernetesBackend
from llmops_operator.backends.kubernetes.client import Client
from llmops_operator.backends.kubernetes.config import ConnectionSecret
from llmops_operator.controllers.ports import NotYet
from llmops_operator.domain.workload import Owner, State, Workload, WorkloadStatus


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


def warn(server: ApiServer, one: dict[str, Any], reason: str, message: str) -> None:
    """As a controller of Kubernetes would."""
    metadata = one["metadata"]
    about = {"kind": one["kind"], **{key: metadata[key] for key in ("name", "namespace", "uid")}}
    name = {"name": f"{metadata['name']}.{reason.lower()}", "namespace": metadata["namespace"]}
    head = {"apiVersion": "v1", "kind": "Event", "metadata": name, "involvedObject": about}
    server.kubectl.apply({**head, "type": "Warning", "reason": reason, "message": message})


async def asked_why(backend: KubernetesBackend, owner: Owner, workload: Workload = TRAINER) -> WorkloadStatus:
    """What is said of a workload once events were looked for."""
    backend._listening.look_at(owner)
    await backend._listening._collect()
    await backend._listening._ask_why()
    return backend.observe(owner)[workload.name]


async def test_a_pod_that_may_not_be_made_is_told_from_the_events_of_its_job(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "STUCK_SECONDS", 0)
    await backend.apply(owner, TRAINER)
    [job] = backend._children.of(owner, "Job")
    warn(api_server, job, "FailedCreate", 'pods "x" is forbidden: exceeded quota: small')
    assert (await asked_why(backend, owner)).reason == "QuotaExceeded"


async def test_a_volume_that_cannot_be_made_is_told_from_the_events_of_its_claim_not_of_the_pod_that_waits_for_it(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "STUCK_SECONDS", 0)
    await backend.apply(owner, TRAINER)
    waits = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": waits}
    pod(api_server, owner, TRAINER, "train-1-abc", phase="Pending", conditions=[unscheduled])
    [one] = await eventually(lambda: backend._children.of(owner, "Pod"))
    warn(api_server, one, "FailedScheduling", waits)
    assert (await asked_why(backend, owner)).message.startswith(waits)
    claims = backend._children.of(owner, "PersistentVolumeClaim")
    claim = next(one for one in claims if "state" in one["metadata"]["name"])
    warn(api_server, claim, "ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found')
    told = await asked_why(backend, owner)
    name = claim["metadata"]["name"]
    why = f'persistentvolumeclaim "{name}": storageclass.storage.k8s.io "fast" not found; look at the claim'
    assert (told.reason, told.message[: len(why)]) == ("VolumeNotBound", why)


async def test_what_kept_a_service_from_beginning_is_forgotten_once_it_is_ready(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "STUCK_SECONDS", 0)
    await backend.apply(owner, GATEWAY)
    [deployment] = backend._children.of(owner, "Deployment")
    warn(api_server, deployment, "FailedCreate", 'pods "x" is forbidden: exceeded quota: small')
    assert (await asked_why(backend, owner, GATEWAY)).reason == "QuotaExceeded"
    counts = {"replicas": 2, "readyReplicas": 2, "availableReplicas": 2}
    patch_status(api_server, "deployment", owner.namespace, GATEWAY.name, counts)
    await eventually(lambda: backend._children.of(owner, "Deployment")[0]["status"].get("readyReplicas"))
    await asked_why(backend, owner, GATEWAY)
    assert backend._listening.heard(owner, GATEWAY.name).warning == ""
