"""The backend on a real API server without a kubelet: what pods and Jobs come to is said by the tests, through the status subresource."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration

from harness.api_server import ApiServer
from llmops_operator.backends.kubernetes import listening
from llmops_operator.backends.kubernetes.api import Api, Resource
from llmops_operator.backends.kubernetes.backend import KubernetesBackend
from llmops_operator.backends.kubernetes.client import Client
from llmops_operator.backends.kubernetes.config import ConnectionSecret, LeaderElection, OperatorConfig
from llmops_operator.backends.kubernetes.connection import copy_connection
from llmops_operator.backends.kubernetes.rendering import render
from llmops_operator.backends.kubernetes.rendering.names import LIVE, RESULT, labels
from llmops_operator.controllers.ports import NotFound, NotYet
from llmops_operator.domain.files import CACHE, STATE
from llmops_operator.domain.workload import Lifecycle, Owner, Readiness, Role, State, Workload

CONFIG = OperatorConfig.model_validate(
    {
        "images": {"services": "services:1", "engine": "engine:1"},
        "qdrant": {"url": "http://qdrant:6333"},
        "state": {"size": "1Gi"},
        "leaderElection": {"namespace": "default"},
    }
)
JOB = Workload(
    name="handbook-train-1",
    role=Role.TRAINER,
    lifecycle=Lifecycle.COMPLETES,
    command=("python", "-m", "llmops_services.training", "config/training.json"),
    files={"training.json": "{}"},
    volumes=(STATE, CACHE),
)
GATEWAY = Workload(
    name="chat-gateway",
    role=Role.GATEWAY,
    lifecycle=Lifecycle.RUNS,
    command=("python", "-m", "llmops_services.gateway", "config/gateway.json"),
    live_files={"gateway.json": "{}"},
    port=True,
    replicas=2,
    cpu="1000m",
    memory="1024Mi",
    readiness=Readiness("/readyz"),
)


class Writes:
    """Counts what is written, as the operator's metrics do."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []

    def wrote(self, verb: str, resource: str, code: int) -> None:
        self.made.append((verb, resource))


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    name = f"w-{uuid.uuid4().hex[:8]}"
    api_server.kubectl("create", "namespace", name)
    return name


@pytest.fixture
def owner(api_server: ApiServer, namespace: str) -> Owner:
    """An object that could own workloads; the garbage collector does not run here, so any uid will do."""
    return Owner("TrainingJob", namespace, "handbook", str(uuid.uuid4()))


@pytest.fixture
async def client(api_server: ApiServer) -> AsyncIterator[tuple[Client, Writes]]:
    found, writes = Configuration(), Writes()
    await kube_config.load_kube_config(str(api_server.kubeconfig), client_configuration=found)
    one = Client(found, meter=writes)
    yield one, writes
    await one.close()
    await asyncio.sleep(0.25)  # aiohttp closes connections with TLS a moment later


@pytest.fixture
async def backend(client: tuple[Client, Writes]) -> AsyncIterator[KubernetesBackend]:
    one = KubernetesBackend(Api(client[0]), CONFIG)
    await one.start()
    yield one
    await one.stop()


async def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := condition()):  # noqa: ASYNC110 - what the API server comes to has no event here
            await asyncio.sleep(0.05)
        return found


def pod(server: ApiServer, owner: Owner, workload: Workload, name: str, **status: Any) -> None:
    """What a controller and a kubelet would have made."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": owner.namespace, "labels": labels(owner, workload)},
        "spec": {"containers": [{"name": "c", "image": "none"}], "terminationGracePeriodSeconds": 0},
    }
    server.kubectl.apply(manifest)
    patch_status(server, "pod", owner.namespace, name, status)


def patch_status(server: ApiServer, kind: str, namespace: str, name: str, status: dict[str, Any]) -> None:
    body = json.dumps({"status": status})
    server.kubectl("patch", kind, name, "-n", namespace, "--subresource=status", "--type=merge", "-p", body)


async def test_applying_twice_writes_once(
    backend: KubernetesBackend, client: tuple[Client, Writes], owner: Owner, api_server: ApiServer
) -> None:
    for workload in (JOB, GATEWAY):
        await backend.apply(owner, workload)
    first = list(client[1].made)
    assert len(first) == len(render(owner, JOB, CONFIG)) + len(render(owner, GATEWAY, CONFIG))
    for workload in (JOB, GATEWAY):
        await backend.apply(owner, workload)
    assert client[1].made == first
    deployment = api_server.kubectl.get("deployment", GATEWAY.name, "-n", owner.namespace)
    assert deployment["spec"]["replicas"] == 2
    # The API server writes quantities its own way: that is no drift.
    assert deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"] == {
        "cpu": "1",
        "memory": "1Gi",
    }


async def test_another_backend_finds_everything_and_writes_nothing(
    backend: KubernetesBackend, client: tuple[Client, Writes], owner: Owner
) -> None:
    for workload in (JOB, GATEWAY):
        await backend.apply(owner, workload)
    before = len(client[1].made)
    second = KubernetesBackend(Api(client[0]), CONFIG)
    await second.start()
    try:
        assert owner in second.owners()
        assert second.observe(owner).keys() == {JOB.name, GATEWAY.name}
        for workload in (JOB, GATEWAY):
            await second.apply(owner, workload)
        assert len(client[1].made) == before
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


async def test_the_policy_of_an_engine_is_kept_as_it_was_rendered_and_goes_when_it_is_no_longer_wanted(
    backend: KubernetesBackend, client: tuple[Client, Writes], owner: Owner, api_server: ApiServer
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
    without = KubernetesBackend(Api(client[0]), CONFIG.model_copy(update={"network_policies": False}))
    await without.start()
    try:
        await without.apply(owner, engine)
    finally:
        await without.stop()
    assert "not found" in api_server.kubectl.run("get", *place).stderr
    assert api_server.kubectl.get("deployment", engine.name, "-n", owner.namespace)


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
    backend: KubernetesBackend, client: tuple[Client, Writes], owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, GATEWAY)
    pod(api_server, owner, GATEWAY, "gateway-1", phase="Running")
    await until(lambda: backend.observe(owner)[GATEWAY.name].state is State.RUNNING)
    changed = replace(GATEWAY, live_files={"gateway.json": '{"new": true}'})
    await backend.apply(owner, changed)
    annotations = api_server.kubectl.get("pod", "gateway-1", "-n", owner.namespace)["metadata"]["annotations"]
    assert annotations[LIVE]
    assert api_server.kubectl.get("configmap", f"{GATEWAY.name}-live", "-n", owner.namespace)["data"] == {
        "gateway.json": '{"new": true}'
    }
    before = len(client[1].made)
    await backend.apply(owner, changed)
    assert len(client[1].made) == before


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
    await until(lambda: backend.observe(owner)["chat-engine"].ready_replicas == 2)
    await until(lambda: backend.observe(owner)[GATEWAY.name].ready_replicas == 2)
    assert backend.observe(owner)["chat-engine"].endpoints == ("http://10.0.0.1:8000", "http://10.0.0.2:8000")
    assert backend.observe(owner)[GATEWAY.name].endpoints == (f"http://chat-gateway.{owner.namespace}.svc:8080",)


JOB_ENDS = {"Complete": ("SuccessCriteriaMet", "Complete"), "Failed": ("FailureTarget", "Failed")}


def end_job(server: ApiServer, owner: Owner, type_: str, reason: str = "", now: str = "2026-11-25T00:00:00Z") -> None:
    """As the Job controller would, in the two steps that the API server asks for."""
    counts = {"startTime": now, "succeeded" if type_ == "Complete" else "failed": 1}
    if type_ == "Complete":
        counts["completionTime"] = now
    conditions = [
        {"type": one, "status": "True", "reason": reason, "lastTransitionTime": now, "lastProbeTime": now}
        for one in JOB_ENDS[type_]
    ]
    patch_status(server, "job", owner.namespace, JOB.name, {**counts, "conditions": conditions})


async def test_a_job_has_succeeded_when_its_result_is_kept(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, JOB)
    pod(api_server, owner, JOB, "train-1-abc", phase="Running")
    await until(lambda: backend.observe(owner)[JOB.name].state is State.RUNNING)
    # The pod's log cannot be read here; what was read of it before stands as an annotation.
    api_server.kubectl("annotate", "job", JOB.name, "-n", owner.namespace, f'{RESULT}={{"steps": 3}}')
    end_job(api_server, owner, "Complete")
    status = await until(lambda: (one := backend.observe(owner)[JOB.name]).state is State.SUCCEEDED and one)
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
    await backend.apply(owner, JOB)
    pod(api_server, owner, JOB, "train-1-abc", phase="Succeeded")
    end_job(api_server, owner, "Complete", now=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    await until(lambda: asked)
    await asyncio.sleep(4 * listening.COLLECT_SECONDS)
    assert asked == ["train-1-abc"]
    assert backend.observe(owner)[JOB.name].state is State.RUNNING


async def test_a_job_that_failed_says_what_its_program_said_and_its_exit_code(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, JOB)
    ended = {"terminated": {"exitCode": 64, "reason": "Error", "startedAt": None, "finishedAt": "2026-11-25T00:00:00Z"}}
    container = {"name": "c", "image": "none", "imageID": "", "ready": False, "restartCount": 0, "state": ended}
    pod(api_server, owner, JOB, "train-1-abc", phase="Failed", containerStatuses=[container])
    said = json.dumps({"reason": "DataInvalid", "message": "line 17 is not JSON"})
    api_server.kubectl("annotate", "job", JOB.name, "-n", owner.namespace, f"{RESULT}={said}")
    end_job(api_server, owner, "Failed", "BackoffLimitExceeded")
    status = await until(lambda: (one := backend.observe(owner)[JOB.name]).state is State.FAILED and one)
    assert (status.exit_code, status.reason, status.message) == (64, "DataInvalid", "line 17 is not JSON")


async def test_a_job_whose_pod_is_gone_failed_without_a_word(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, JOB)
    end_job(api_server, owner, "Failed", "BackoffLimitExceeded")
    status = await until(lambda: (one := backend.observe(owner)[JOB.name]).state is State.FAILED and one)
    assert (status.reason, status.exit_code) == ("PodLost", None)


async def test_what_has_ended_is_not_applied_again(
    backend: KubernetesBackend, client: tuple[Client, Writes], owner: Owner
) -> None:
    await backend.apply(owner, JOB)
    before = len(client[1].made)
    await backend.apply(owner, replace(JOB, files={"training.json": '{"other": 1}'}))
    assert len(client[1].made) == before


async def test_removing_waits_for_pods_that_end_slowly(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, JOB)
    pod(api_server, owner, JOB, "train-1-abc", phase="Running")
    await until(lambda: backend.observe(owner)[JOB.name].state is State.RUNNING)
    with pytest.raises(NotYet, match="still ending"):
        await backend.remove(owner, JOB.name)
    # The garbage collector, which does not run here, deletes the pods first and then the Job.
    api_server.kubectl("delete", "pod", "train-1-abc", "-n", owner.namespace, "--grace-period=0", "--force")
    api_server.kubectl(
        "patch", "job", JOB.name, "-n", owner.namespace, "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
    )
    async with asyncio.timeout(20):
        while True:
            try:
                await backend.remove(owner, JOB.name)
            except NotYet:
                continue
            break
    assert JOB.name not in backend.observe(owner)


async def test_without_kuberay_several_workers_wait_and_say_for_what(backend: KubernetesBackend, owner: Owner) -> None:
    await backend.apply(owner, replace(JOB, workers=2))
    status = backend.observe(owner)[JOB.name]
    assert (status.state, status.reason) == (State.PENDING, "KubeRayMissing")
    assert "install the KubeRay operator" in status.message


async def test_a_watch_that_was_cut_misses_nothing(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, GATEWAY)
    await asyncio.to_thread(api_server.restart)
    api_server.kubectl("delete", "service", GATEWAY.name, "-n", owner.namespace)
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "podIP": "10.0.0.9"}
    pod(api_server, owner, GATEWAY, "gateway-9", **ready)
    await until(lambda: backend.observe(owner)[GATEWAY.name].ready_replicas == 1, 60)
    await backend.apply(owner, GATEWAY)
    await until(lambda: api_server.kubectl.run("get", "service", GATEWAY.name, "-n", owner.namespace).returncode == 0)


async def test_somebody_elses_object_is_left_alone_and_the_status_says_whose_name_it_is(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    api_server.kubectl("-n", owner.namespace, "create", "configmap", "chat-gateway-live", "--from-literal=a=b")
    with pytest.raises(NotYet, match="somebody else"):
        await backend.apply(owner, GATEWAY)
    status = backend.observe(owner)[GATEWAY.name]
    assert (status.state, status.reason) == (State.PENDING, "NameTaken")
    assert owner in backend.owners()
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


async def test_a_config_file_that_was_deleted_is_there_again_before_its_pod_begins(
    backend: KubernetesBackend, owner: Owner, api_server: ApiServer
) -> None:
    await backend.apply(owner, JOB)
    api_server.kubectl("-n", owner.namespace, "delete", "configmap", JOB.name)
    await until(lambda: not any(one["kind"] == "ConfigMap" for one in backend._children.of(owner)))
    await backend.apply(owner, JOB)
    assert any(one["kind"] == "ConfigMap" for one in backend._children.of(owner))


async def test_the_connection_is_copied_to_where_workloads_run(
    client: tuple[Client, Writes], owner: Owner, api_server: ApiServer
) -> None:
    api_server.kubectl("-n", owner.namespace, "create", "secret", "generic", "ours", "--from-literal=QDRANT_API_KEY=k")
    settings = {
        "connection_secret": ConnectionSecret(name="ours"),
        "leader_election": LeaderElection(namespace=owner.namespace),
    }
    config = CONFIG.model_copy(update=settings)
    api = Api(client[0])
    await copy_connection(api, config, owner.namespace)
    said = api_server.kubectl("-n", owner.namespace, "get", "secret", "llmops-connection", "-o", "jsonpath={.data}")
    assert json.loads(str(said)) == {"QDRANT_API_KEY": "aw=="}


async def test_a_connection_that_is_not_there_is_told(
    client: tuple[Client, Writes], owner: Owner, api_server: ApiServer
) -> None:
    backend = KubernetesBackend(
        Api(client[0]), CONFIG.model_copy(update={"connection_secret": ConnectionSecret(name="no")})
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
    await backend.apply(owner, JOB)
    job = backend._children.get("Job", owner.namespace, JOB.name)
    assert job is not None
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "refused", "namespace": owner.namespace},
        "involvedObject": {
            "kind": "Job",
            "name": JOB.name,
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
    assert backend.observe(owner)[JOB.name].reason == "QuotaExceeded"
