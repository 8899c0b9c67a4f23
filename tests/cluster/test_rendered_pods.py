"""What the operator renders, as a real API server takes it: each field known, each pod under the pod security level `restricted`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import rendered_workloads
from rendered_workloads import GATEWAY

from harness.addons import install_kuberay_crds
from harness.api_server import ApiServer, running_api_server
from harness.kubectl import as_list
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.rendering import render
from llmops_operator.domain.files import CACHE
from llmops_operator.domain.workload import Owner, Role, Secret, Workload

CONFIG = OperatorConfig.model_validate(
    {
        "images": {"services": "services:1", "engine": "engine:1"},
        "imagePullSecrets": ["registry"],
        "mlflow": {"trackingUri": "http://mlflow:5000"},
        "qdrant": {"url": "http://qdrant:6333"},
        "connectionSecret": {"name": "platform"},
        "cache": {"persistentVolumeClaim": {"size": "50Gi", "accessModes": ["ReadWriteMany"]}},
        "leaderElection": {"namespace": "llmops-system"},
    }
)
WISH = {
    "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "serviceAccountName": "default",
    "imagePullSecrets": [{"name": "theirs"}],
    "volumes": [{"name": "data", "emptyDir": {}}],
    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    "env": [{"name": "LOG", "value": "debug"}],
}
TRAINER = replace(
    rendered_workloads.TRAINER,
    secrets=(Secret(env="HF_TOKEN", name="hub", key="token"),),
    claims=("documents",),
    cpu="4",
    memory="16Gi",
    deadline_seconds=3600,
)
ENGINE = replace(GATEWAY, name="chat-engine", role=Role.ENGINE, files={"engine.json": "{}"}, volumes=(CACHE,))
GPUS = {"gpus": 2, "gpu_product": "NVIDIA-H100-80GB-HBM3"}
WORKLOADS = {
    "trainer": TRAINER,
    "trainer on GPUs": replace(TRAINER, **GPUS),
    "trainer of two workers": replace(TRAINER, workers=2, **GPUS),
    "indexer": replace(TRAINER, name="handbook-sync", role=Role.INDEXER),
    "indexer of two workers": replace(TRAINER, name="handbook-sync", role=Role.INDEXER, workers=2),
    "gateway": GATEWAY,
    "engine": ENGINE,
    "engine on GPUs": replace(ENGINE, **GPUS),
}
OWNER = Owner("TrainingJob", "restricted", "handbook", "00000000-0000-0000-0000-000000000001")


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """With KubeRay's RayJob, and a namespace whose pods must be restricted."""
    with running_api_server() as server:
        install_kuberay_crds(server.kubectl)
        server.kubectl.await_crds("rayjobs.ray.io")
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": OWNER.namespace, "labels": labels}
        server.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        yield server


def pods_in(value: Any) -> list[dict[str, Any]]:
    """All pod templates in a manifest, as pods."""
    if isinstance(value, Mapping):
        if "containers" in value.get("spec", {}):
            metadata = {**value["metadata"], "name": "one", "namespace": OWNER.namespace}
            return [{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": value["spec"]}]
        return [pod for one in value.values() for pod in pods_in(one)]
    return [pod for one in value for pod in pods_in(one)] if isinstance(value, list) else []


def refusal(server: ApiServer, *manifests: Mapping[str, Any]) -> str:
    """What the API server has against them; empty when nothing."""
    arguments = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    return server.kubectl.run(*arguments, stdin=as_list(manifests)).stderr


@pytest.mark.parametrize("wish", [{}, WISH], ids=["plain", "podTemplate"])
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_children_and_their_pods_are_taken(server: ApiServer, workload: Workload, wish: Mapping[str, Any]) -> None:
    children = render(OWNER, replace(workload, pod_template=wish), CONFIG)
    assert refusal(server, *children) == ""
    pods = pods_in(children[-1])
    assert len(pods) == (3 if workload.workers > 1 else 1)  # of a RayJob: head, workers, and what submits
    for pod in pods:
        assert refusal(server, pod) == ""


def test_the_api_server_would_have_refused_others(server: ApiServer) -> None:
    *_, job = render(OWNER, TRAINER, CONFIG)
    (pod,) = pods_in(job)
    loose = json.loads(json.dumps(pod))
    del loose["spec"]["containers"][0]["securityContext"]["capabilities"]
    assert 'violates PodSecurity "restricted' in refusal(server, loose)
    *_, rayjob = render(OWNER, replace(TRAINER, workers=2), CONFIG)
    unknown = json.loads(json.dumps(rayjob))
    unknown["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["hostnames"] = "x"
    assert "hostnames" in refusal(server, unknown)
