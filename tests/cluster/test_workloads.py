"""Workloads applied to a real API server: written once, repaired, found again."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from rendered_workloads import CONFIG, GATEWAY, TRAINER
from waiting import eventually
from workloads import Writes, patch_status, pod

from harness.api_server import ApiServer
from llmops_operator.backends.kubernetes import connection
from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.backend import KubernetesBackend
from llmops_operator.backends.kubernetes.client import Client
from llmops_operator.backends.kubernetes.config import ConnectionSecret, LeaderElection, OperatorConfig
from llmops_operator.backends.kubernetes.rendering import render
from llmops_operator.backends.kubernetes.rendering.names import CREDENTIALS, LIVE
from llmops_operator.controllers.ports import Unavailable
from llmops_operator.domain.workload import Owner, State, Workload


async def test_applying_twice_writes_once(
    backend: KubernetesBackend, writes: Writes, owner: Owner, api_server: ApiServer
) -> None:
    for workload in (TRAINER, GATEWAY):
        await backend.apply(owner, workload)
    first = list(writes.made)
    assert len(first) == len(render(owner, TRAINER, CONFIG)) + len(render(owner, GATEWAY, CONFIG))
    for workload in (TRAINER, GATEWAY):
        await backend.apply(owner, workload)
    assert writes.made == first
    deployment = api_server.kubectl.get("deployment", GATEWAY.name, "-n", owner.namespace)
    assert deployment["spec"]["replicas"] == 2
    # The API server writes quantities its own way: that is no drift.
    assert deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"] == {
        "cpu": "1",
        "memory": "1Gi",
    }


async def test_another_backend_finds_everything_and_writes_nothing(
    backend: KubernetesBackend, client: Client, writes: Writes, owner: Owner
) -> None:
    for workload in (TRAINER, GATEWAY):
        await backend.apply(owner, workload)
    before = len(writes.made)
    second = KubernetesBackend(Api(client), CONFIG)
    await second.start()
    try:
        assert owner in second.owners()
        assert second.observe(owner).keys() == {TRAINER.name, GATEWAY.name}
        for workload in (TRAINER, GATEWAY):
            await second.apply(owner, workload)
        assert len(writes.made) == before
    finally:
        await second.stop()


async def test_drift_is_repaired_and_what_others_add_is_left_alone(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, GATEWAY)
    told = asyncio.Event()
    backend.subscribe(lambda _: told.set())
    place = ("deployment", GATEWAY.name, "-n", owner.namespace)
    api_server.kubectl("annotate", *place, "example.com/note=theirs")
    edit = [{"op": "replace", "path": "/spec/template/spec/containers/0/command", "value": ["sleep", "1"]}]
    api_server.kubectl("patch", *place, "--type=json", "-p", json.dumps(edit))
    async with asyncio.timeout(10):
        await told.wait()

    async def repaired() -> None:
        while True:
            await backend.apply(owner, GATEWAY)
            found = api_server.kubectl.get(*place)
            if found["spec"]["template"]["spec"]["containers"][0]["command"] == list(GATEWAY.command):
                assert found["metadata"]["annotations"]["example.com/note"] == "theirs"
                return
            await asyncio.sleep(0.1)

    async with asyncio.timeout(10):
        await repaired()


async def test_a_deleted_child_comes_back(backend: KubernetesBackend, owner: Owner, api_server: ApiServer) -> None:
    await backend.apply(owner, GATEWAY)
    told = asyncio.Event()
    backend.subscribe(lambda _: told.set())
    api_server.kubectl("delete", "service", GATEWAY.name, "-n", owner.namespace)
    async with asyncio.timeout(10):
        await told.wait()
    await backend.apply(owner, GATEWAY)
    assert api_server.kubectl.get("service", GATEWAY.name, "-n", owner.namespace)["spec"]["ports"][0]["port"] == 8080


async def test_a_change_of_live_files_is_told_to_the_pods_once(
    backend: KubernetesBackend, writes: Writes, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, GATEWAY)
    pod(api_server, owner, GATEWAY, "gateway-1", phase="Running")
    await eventually(lambda: backend.observe(owner)[GATEWAY.name].state is State.RUNNING)
    changed = replace(GATEWAY, live_files={"gateway.json": '{"new": true}'})
    await backend.apply(owner, changed)
    annotations = api_server.kubectl.get("pod", "gateway-1", "-n", owner.namespace)["metadata"]["annotations"]
    assert annotations[LIVE]
    assert api_server.kubectl.get("configmap", f"{GATEWAY.name}-live", "-n", owner.namespace)["data"] == {
        "gateway.json": '{"new": true}'
    }
    before = len(writes.made)
    await backend.apply(owner, changed)
    assert len(writes.made) == before


async def test_what_has_ended_is_not_applied_again(backend: KubernetesBackend, writes: Writes, owner: Owner) -> None:
    await backend.apply(owner, TRAINER)
    before = len(writes.made)
    await backend.apply(owner, replace(TRAINER, files={"training.json": '{"other": 1}'}))
    assert len(writes.made) == before


async def test_a_watch_that_was_cut_misses_nothing(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, GATEWAY)
    await asyncio.to_thread(api_server.restart)
    api_server.kubectl("delete", "service", GATEWAY.name, "-n", owner.namespace)
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "podIP": "10.0.0.9"}
    pod(api_server, owner, GATEWAY, "gateway-9", **ready)
    await eventually(lambda: backend.observe(owner)[GATEWAY.name].ready_replicas == 1, seconds=60)
    await backend.apply(owner, GATEWAY)
    await eventually(
        lambda: api_server.kubectl.run("get", "service", GATEWAY.name, "-n", owner.namespace).returncode == 0
    )


async def test_a_config_file_that_was_deleted_is_there_again_before_its_pod_begins(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, TRAINER)
    api_server.kubectl("-n", owner.namespace, "delete", "configmap", TRAINER.name)
    await eventually(lambda: not any(one["kind"] == "ConfigMap" for one in backend._children.of(owner)))
    await backend.apply(owner, TRAINER)
    assert any(one["kind"] == "ConfigMap" for one in backend._children.of(owner))


def connected(secret: str, namespace: str) -> OperatorConfig:
    """The configuration of an operator in `namespace` that takes its credentials from that Secret."""
    settings = {
        "connection_secret": ConnectionSecret(name=secret),
        "leader_election": LeaderElection(namespace=namespace),
    }
    return CONFIG.model_copy(update=settings)


async def test_credentials_are_copied_to_where_workloads_run_and_other_ones_roll_what_serves(
    client: Client, owner: Owner, api_server: ApiServer, writes: Writes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_AGAIN_SECONDS", 0)
    api_server.kubectl("-n", owner.namespace, "create", "secret", "generic", "ours", "--from-literal=QDRANT_API_KEY=k")
    config = connected("ours", owner.namespace)

    def copied() -> dict[str, str]:
        found: dict[str, str] = api_server.kubectl.get("secret", "llmops-connection", "-n", owner.namespace)["data"]
        return found

    def credentials() -> str:
        deployment = api_server.kubectl.get("deployment", GATEWAY.name, "-n", owner.namespace)
        return str(deployment["spec"]["template"]["metadata"]["annotations"][CREDENTIALS])

    backend = KubernetesBackend(Api(client), config)
    await backend.start()
    await backend.apply(owner, GATEWAY)
    assert copied() == {"QDRANT_API_KEY": "aw=="}
    first = credentials()
    before = list(writes.made)
    await backend.apply(owner, GATEWAY)
    assert writes.made == before
    patch = '{"stringData": {"QDRANT_API_KEY": "l"}}'
    api_server.kubectl("-n", owner.namespace, "patch", "secret", "ours", "-p", patch)
    await backend.apply(owner, GATEWAY)
    assert copied() == {"QDRANT_API_KEY": "bA=="}
    assert credentials() != first
    await backend.stop()


@pytest.mark.parametrize("workload", [TRAINER, GATEWAY], ids=["trainer", "gateway"])
async def test_credentials_that_were_deleted_are_there_again_for_a_pod_that_waits_for_them(
    workload: Workload, client: Client, owner: Owner, api_server: ApiServer, writes: Writes
) -> None:
    api_server.kubectl("-n", owner.namespace, "create", "secret", "generic", "ours", "--from-literal=QDRANT_API_KEY=k")
    backend = KubernetesBackend(Api(client), connected("ours", owner.namespace))
    await backend.start()
    try:
        await backend.apply(owner, workload)
        copied = ("secret", "llmops-connection", "-n", owner.namespace)
        api_server.kubectl("delete", *copied)
        waiting = {"reason": "CreateContainerConfigError", "message": 'secret "llmops-connection" not found'}
        about = {"name": "c", "image": "none", "imageID": "", "ready": False, "restartCount": 0}
        container = {**about, "state": {"waiting": waiting}}
        pod(api_server, owner, workload, "one", phase="Pending", containerStatuses=[container])
        await eventually(lambda: backend.observe(owner)[workload.name].reason == "CreateContainerConfigError")
        await backend.apply(owner, workload)
        assert api_server.kubectl.get(*copied)["data"] == {"QDRANT_API_KEY": "aw=="}
        patch_status(api_server, "pod", owner.namespace, "one", {"phase": "Running", "containerStatuses": None})
        await eventually(lambda: not backend.observe(owner)[workload.name].reason)
        await backend.apply(owner, workload)  # the pod is told of live files
        before = list(writes.made)
        await backend.apply(owner, workload)
        assert writes.made == before
    finally:
        await backend.stop()


async def test_a_credential_is_read_anew_and_a_secret_that_is_gone_is_named(
    client: Client, owner: Owner, api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_AGAIN_SECONDS", 0.0)
    api_server.kubectl("-n", owner.namespace, "create", "secret", "generic", "key", "--from-literal=QDRANT_API_KEY=k")
    found = connection.Connection(Api(client), connected("key", owner.namespace))
    assert await found.value("QDRANT_API_KEY") == "k"
    assert await found.value("MLFLOW_TRACKING_TOKEN") is None
    patch = '{"stringData": {"QDRANT_API_KEY": "l"}}'
    api_server.kubectl("-n", owner.namespace, "patch", "secret", "key", "-p", patch)
    assert await found.value("QDRANT_API_KEY") == "l"
    api_server.kubectl("-n", owner.namespace, "delete", "secret", "key")
    with pytest.raises(Unavailable, match=f"the Secret {owner.namespace}/key with QDRANT_API_KEY is not there"):
        await found.value("QDRANT_API_KEY")
    assert await connection.Connection(Api(client), CONFIG).value("QDRANT_API_KEY") is None
