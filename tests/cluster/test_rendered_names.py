"""Names of RayJobs, as the real KubeRay operator takes them: it refuses more of them than the API server does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from api_cases import JOB, edited
from rendered_workloads import CONFIG
from waiting import wait_until

from harness import binaries
from harness.addons import install_kuberay_crds
from harness.api_server import ApiServer, running_api_server
from llmops_api.v1alpha1 import TrainingJob
from llmops_operator.backends.kubernetes.rendering import render
from llmops_operator.domain.decision import owner_of
from llmops_operator.domain.training_job import trainer

OPERATOR = "ray-operator"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """With the KubeRay operator, whose pods nothing runs."""
    binaries.build(binaries.KUBERAY)
    with running_api_server() as server:
        install_kuberay_crds(server.kubectl)
        server.kubectl.await_crds()
        quiet = ("-enable-leader-election=false", "-metrics-addr=0", "-health-probe-bind-address=0")
        server.processes.start(OPERATOR, [binaries.binary(OPERATOR), "-kubeconfig", server.kubeconfig, *quiet])
        yield server


@pytest.mark.parametrize("name", ["handbook", "a" * 40, "7b-handbook", "0" * 63], ids=len)
def test_kuberay_makes_a_cluster_for_a_training_of_any_name(server: ApiServer, name: str) -> None:
    spec = edited(JOB, {"data.train.uri": "pvc://data/train.jsonl", "compute": {"workers": 2}})
    job = TrainingJob.model_validate({"metadata": {"name": name, "uid": "u"}, "spec": spec})
    *_, rayjob = render(owner_of("TrainingJob", job.metadata), trainer(job, 1, "", None), CONFIG)
    server.kubectl.apply(rayjob)

    def cluster() -> str | None:
        server.processes.check(OPERATOR)
        status: dict[str, str] = server.kubectl.get("rayjob", rayjob["metadata"]["name"]).get("status", {})
        return status.get("rayClusterName")

    wait_until(cluster, lambda: server.processes.tail(OPERATOR, 3), seconds=60)
