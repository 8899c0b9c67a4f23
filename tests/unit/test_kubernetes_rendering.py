"""The manifests of workloads: what a pod may and may not, what a change of files does, and what is never rendered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rendered_workloads import CONFIG, GATEWAY, TRAINER

from llmops_api.programs import Env
from llmops_api.v1alpha1.pod_template import PodTemplate
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.rendering import render
from llmops_operator.backends.kubernetes.rendering.names import APPLIED, FILES, UID, WORKLOAD, owner_of
from llmops_operator.domain.workload import Owner, Role, Secret, Workload

JOB = Owner("TrainingJob", "team", "handbook", "uid-1")
SERVICE = Owner("RagService", "team", "chat", "uid-2")
ENGINE = replace(GATEWAY, name="chat-engine", role=Role.ENGINE, files={"engine.json": "{}"}, replicas=2)


def rendered(owner: Owner, workload: Workload, config: OperatorConfig = CONFIG) -> dict[str, dict[str, Any]]:
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in render(owner, workload, config)}


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


def env_of(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_a_training_is_a_job_with_its_config_and_a_claim_for_its_state() -> None:
    children = rendered(JOB, TRAINER)
    assert list(children) == [
        "PersistentVolumeClaim/handbook-trainingjob-state",
        "ConfigMap/handbook-train-1",
        "Job/handbook-train-1",
    ]
    job = children["Job/handbook-train-1"]
    assert job["spec"]["backoffLimit"] == 0
    assert "suspend" not in job["spec"]
    (container,) = pod_of(job)["containers"]
    assert container["command"] == list(TRAINER.command)
    assert container["image"] == "llmops-engine:1"
    env = env_of(container)
    assert env[Env.STATE_DIR] == "/var/lib/llmops/state"
    assert env[Env.MLFLOW_TRACKING_URI] == "http://mlflow:5000"
    assert Env.RESULT_FILE not in env
    assert {"mountPath": "/run/llmops/config", "name": "llmops-config", "readOnly": True} in container["volumeMounts"]


def test_a_gateway_is_a_deployment_behind_a_service_that_loses_no_request() -> None:
    children = rendered(SERVICE, replace(GATEWAY, replicas=3))
    assert list(children) == ["ConfigMap/chat-gateway-live", "Service/chat-gateway", "Deployment/chat-gateway"]
    spec = children["Deployment/chat-gateway"]["spec"]
    assert spec["replicas"] == 3
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert spec["selector"]["matchLabels"] == {UID: "uid-2", WORKLOAD: "chat-gateway"}
    (container,) = spec["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 8080}
    assert "startupProbe" not in container  # it may wait for its engine as long as that takes
    assert (
        container["lifecycle"]["preStop"]["sleep"]["seconds"]
        < spec["template"]["spec"]["terminationGracePeriodSeconds"]
    )
    assert children["Service/chat-gateway"]["spec"]["selector"] == spec["selector"]["matchLabels"]


def test_an_engine_on_gpus_asks_for_no_second_gpu_while_it_is_replaced() -> None:
    engine = rendered(SERVICE, replace(ENGINE, gpus=2, gpu_product="NVIDIA-H100-80GB-HBM3", memory="64Gi", cpu="8"))
    spec = engine["Deployment/chat-engine"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": "2"},
    }
    assert {"name": "llmops-shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]


COLLECTIVES = {"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3"}


def pods_of(workload: Workload, config: OperatorConfig = CONFIG) -> list[dict[str, Any]]:
    """All pods of a workload."""

    def found_in(value: Any) -> list[dict[str, Any]]:
        if isinstance(value, dict):
            here = [value["spec"]] if "containers" in value.get("spec", {}) else []
            return here + [pod for one in value.values() for pod in found_in(one)]
        return [pod for one in value for pod in found_in(one)] if isinstance(value, list) else []

    *_, main = render(SERVICE, workload, config)
    return found_in(main["spec"])


def collectives_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return {name: value for name, value in env_of(container).items() if "NCCL" in name}


@pytest.mark.parametrize("workload", [replace(TRAINER, gpus=2), replace(ENGINE, gpus=4)], ids=["trainer", "engine"])
def test_gpus_that_compute_together_say_what_went_wrong_and_end_when_they_hang(workload: Workload) -> None:
    (pod,) = pods_of(workload)
    assert collectives_of(pod) == COLLECTIVES
    (container,) = pod["containers"]
    assert "/dev/shm" in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert pod["enableServiceLinks"] is False  # or a Service named vllm sets VLLM_PORT, and vLLM does not start


def test_workers_with_a_gpu_each_are_told_and_the_head_and_the_submitter_without_are_not() -> None:
    pods = {pod["containers"][0]["name"]: pod for pod in pods_of(replace(TRAINER, workers=2, gpus=1))}
    assert {name: collectives_of(pod) for name, pod in pods.items()} == {
        "ray-head": {},
        "ray-worker": COLLECTIVES,
        "ray-job-submitter": {},
    }


@pytest.mark.parametrize(
    "workload",
    [
        replace(TRAINER, gpus=1),
        replace(TRAINER, workers=2),
        replace(TRAINER, role=Role.INDEXER, workers=2, gpus=1),
        replace(ENGINE, gpus=1),
        GATEWAY,
    ],
    ids=["one GPU", "no GPUs", "workers of an index", "an engine on one", "a gateway"],
)
def test_what_computes_by_itself_is_told_nothing_of_collectives(workload: Workload) -> None:
    assert [collectives_of(pod) for pod in pods_of(workload)] == [{}] * (3 if workload.workers > 1 else 1)


def test_a_pod_template_says_how_gpus_of_this_cluster_compute_together() -> None:
    everybody = {"env": [{"name": "NCCL_SOCKET_IFNAME", "value": "eth1"}, {"name": "NCCL_DEBUG", "value": "ERROR"}]}
    config = CONFIG.model_copy(update={"pod_template": PodTemplate.model_validate(everybody)})
    wish = {"env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}
    (pod,) = pods_of(replace(TRAINER, gpus=2, pod_template=wish), config)
    assert collectives_of(pod) == COLLECTIVES | {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "eth1"}
    names = [one["name"] for one in pod["containers"][0]["env"]]
    assert len(names) == len(set(names))


def test_what_says_nothing_of_its_cpu_asks_for_a_share_but_where_ray_would_count_it() -> None:
    silent = {"cpu": None, "memory": None}
    job = Owner("TrainingJob", "team", "handbook", "uid-3")
    gateway = rendered(SERVICE, replace(GATEWAY, **silent))["Deployment/chat-gateway"]
    *_, trainer = render(job, replace(TRAINER, **silent), CONFIG)
    for pod in (pod_of(gateway), pod_of(trainer)):
        assert pod["containers"][0]["resources"] == {"requests": {"cpu": "100m"}}
    *_, several = render(job, replace(TRAINER, workers=2, **silent), CONFIG)
    cluster = several["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert "resources" not in group["template"]["spec"]["containers"][0]


def test_an_indexer_with_a_gpu_has_the_image_with_cuda() -> None:
    index = Owner("EmbeddingIndex", "team", "handbook", "uid-3")
    indexer = replace(TRAINER, name="handbook-sync", role=Role.INDEXER)

    def image(workload: Workload) -> str:
        *_, main = render(index, workload, CONFIG)
        return str(pod_of(main)["containers"][0]["image"])

    assert image(indexer) == "llmops-services:1"
    assert image(replace(indexer, gpus=1)) == "llmops-engine:1"


def test_an_engine_answers_the_gateway_of_its_own_service_alone() -> None:
    children = rendered(SERVICE, ENGINE)
    assert list(children) == [
        "ConfigMap/chat-engine",
        "ConfigMap/chat-engine-live",
        "NetworkPolicy/chat-engine",
        "Deployment/chat-engine",
    ]
    policy = children["NetworkPolicy/chat-engine"]
    deployment = children["Deployment/chat-engine"]
    assert policy["metadata"]["ownerReferences"] == deployment["metadata"]["ownerReferences"]
    spec = policy["spec"]
    assert spec["podSelector"] == deployment["spec"]["selector"]
    assert spec["policyTypes"] == ["Ingress"]
    (rule,) = spec["ingress"]
    (container,) = pod_of(deployment)["containers"]
    assert [one["port"] for one in rule["ports"]] == [one["containerPort"] for one in container["ports"]]
    (peer,) = rule["from"]
    (admitted,) = peer.values()  # of this namespace: a peer of another would be a namespaceSelector beside it

    def labels_of(owner: Owner, workload: Workload) -> dict[str, str]:
        *_, main = render(owner, workload, CONFIG)
        found: dict[str, str] = main["spec"]["template"]["metadata"]["labels"]
        return found

    def admits(labels: dict[str, str]) -> bool:
        wanted: dict[str, str] = admitted["matchLabels"]
        return wanted.items() <= labels.items()

    assert admits(labels_of(SERVICE, GATEWAY))
    assert not admits(labels_of(SERVICE, ENGINE))
    assert not admits(labels_of(replace(SERVICE, name="other", uid="uid-3"), GATEWAY))
    mimic = {"metadata": {"labels": {"app.kubernetes.io/component": "gateway"}}}
    assert not admits(labels_of(SERVICE, replace(ENGINE, pod_template=mimic)))


def test_without_network_policies_none_is_rendered() -> None:
    children = rendered(SERVICE, ENGINE, CONFIG.model_copy(update={"network_policies": False}))
    assert "NetworkPolicy/chat-engine" not in children


def test_several_workers_are_a_rayjob_whose_head_does_not_train() -> None:
    children = rendered(JOB, replace(TRAINER, workers=2, gpus=1, deadline_seconds=600))
    assert "Job/handbook-train-1" not in children
    spec = children["RayJob/handbook-train-1"]["spec"]
    assert spec["entrypoint"] == (
        """sh -c 'cd /run/llmops && exec "python" "-m" "llmops_services.training" "config/training.json"'"""
    )
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (0, 600)
    assert "suspend" not in spec
    cluster = spec["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (2, 2, 2)
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    for pod in (head["template"], workers["template"], spec["submitterPodTemplate"]):
        assert "resources" not in pod["spec"]["containers"][0] or "nvidia" not in str(head["template"])
        assert "command" not in pod["spec"]["containers"][0]
        assert pod["metadata"]["labels"][WORKLOAD] == "handbook-train-1"


@pytest.mark.parametrize("workload", [TRAINER, replace(TRAINER, workers=2), GATEWAY, ENGINE])
def test_every_pod_is_a_restricted_one(workload: Workload) -> None:
    found = pods_of(workload)
    assert found
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_a_pod_template_adds_and_never_replaces() -> None:
    wish = {
        "metadata": {"labels": {"team": "blue", UID: "another"}, "annotations": {"a": "b"}},
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "volumes": [{"name": "tools", "persistentVolumeClaim": {"claimName": "tools"}}],
        "volumeMounts": [{"name": "tools", "mountPath": "/opt/tools"}, {"name": "tools", "mountPath": "/tmp"}],
        "env": [{"name": "PATH", "value": "/opt/tools/bin"}, {"name": "HOME", "value": "/root"}],
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "low",
    }
    template = rendered(JOB, replace(TRAINER, pod_template=wish))["Job/handbook-train-1"]["spec"]["template"]
    pod = template["spec"]
    assert template["metadata"]["labels"]["team"] == "blue"
    assert template["metadata"]["labels"][UID] == "uid-1"
    assert template["metadata"]["annotations"]["a"] == "b"
    assert FILES in template["metadata"]["annotations"]
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["tolerations"] == wish["tolerations"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["priorityClassName"] == "low"
    (container,) = pod["containers"]
    assert env_of(container)["PATH"] == "/opt/tools/bin"
    assert env_of(container)["HOME"] == "/tmp"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts["/opt/tools"] == "tools"
    assert mounts["/tmp"] == "llmops-tmp"
    assert container["command"] == list(TRAINER.command)


def test_what_an_object_asks_for_wins_over_what_all_pods_get() -> None:
    everybody = {
        "nodeSelector": {"pool": "cpu", "zone": "a"},
        "tolerations": [{"key": "shared"}],
        "env": [{"name": "HTTPS_PROXY", "value": "proxy"}, {"name": "PATH", "value": "/everybody"}],
        "priorityClassName": "low",
        "serviceAccountName": "everybody",
    }
    config = CONFIG.model_copy(update={"pod_template": PodTemplate.model_validate(everybody)})
    wish = {"nodeSelector": {"pool": "gpu"}, "env": [{"name": "PATH", "value": "/own"}], "priorityClassName": "high"}
    pod = pod_of(rendered(JOB, replace(TRAINER, pod_template=wish), config)["Job/handbook-train-1"])
    assert pod["nodeSelector"] == {"pool": "gpu", "zone": "a"}
    assert pod["tolerations"] == [{"key": "shared"}]
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("high", "everybody")
    (container,) = pod["containers"]
    assert (env_of(container)["HTTPS_PROXY"], env_of(container)["PATH"]) == ("proxy", "/own")


def test_secrets_are_named_and_never_shown() -> None:
    config = CONFIG.model_copy(update={"connection_secret": object()})
    workload = replace(GATEWAY, secrets=(Secret(Env.ENGINE_API_KEY, "engines", "apiKey"),))
    (container,) = pod_of(rendered(SERVICE, workload, config)["Deployment/chat-gateway"])["containers"]
    assert env_of(container)[Env.ENGINE_API_KEY] == {"secretKeyRef": {"name": "engines", "key": "apiKey"}}
    assert container["envFrom"] == [{"secretRef": {"name": "llmops-connection"}}], "without it, no program may begin"


def test_a_change_of_files_rolls_the_pods_and_a_change_of_live_files_does_not() -> None:
    def template(workload: Workload) -> Any:
        return rendered(SERVICE, workload)["Deployment/chat-engine"]["spec"]["template"]

    assert template(ENGINE) == template(replace(ENGINE, live_files={"gateway.json": '{"other": 1}'}))
    assert template(ENGINE) != template(replace(ENGINE, files={"engine.json": '{"other": 1}'}))


def test_what_is_rendered_is_marked_with_its_digest_and_its_owner() -> None:
    first, second = render(JOB, TRAINER, CONFIG), render(JOB, TRAINER, CONFIG)
    assert first == second
    changed = rendered(JOB, replace(TRAINER, files={"training.json": "{1}"}))
    for one in first:
        assert owner_of(one) == JOB
        assert one["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    digests = {key: one["metadata"]["annotations"][APPLIED] for key, one in rendered(JOB, TRAINER).items()}
    differing = [key for key, one in changed.items() if one["metadata"]["annotations"][APPLIED] != digests[key]]
    assert differing == ["ConfigMap/handbook-train-1", "Job/handbook-train-1"]


def test_claims_that_uris_name_are_read_and_the_cache_may_be_a_claim() -> None:
    config = OperatorConfig.model_validate(
        CONFIG.model_dump(by_alias=True, exclude_none=True)
        | {
            "cache": {
                "persistentVolumeClaim": {"size": "50Gi", "accessModes": ["ReadWriteMany"], "storageClassName": ""}
            }
        }
    )
    children = rendered(JOB, replace(TRAINER, claims=("corpus",)), config)
    cache = children["PersistentVolumeClaim/llmops-cache"]
    assert cache["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "50Gi"}},
        "storageClassName": "",
    }
    assert owner_of(cache) is None
    pod = pod_of(children["Job/handbook-train-1"])
    assert {"name": "llmops-claim-0", "persistentVolumeClaim": {"claimName": "corpus", "readOnly": True}} in pod[
        "volumes"
    ]
    mounts = pod["containers"][0]["volumeMounts"]
    assert {"name": "llmops-claim-0", "mountPath": "/mnt/pvc/corpus", "readOnly": True} in mounts
