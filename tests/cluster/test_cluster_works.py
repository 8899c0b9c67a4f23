"""That the cluster which the other tests run on does what they take for granted."""

from __future__ import annotations

import time
from typing import Any

import pytest

from harness import images
from harness.clusters import Cluster
from harness.pods import restricted_pod, run_job
from harness.volumes import toolchain_python


def test_a_name_of_a_service_leads_to_its_pod(cluster: Cluster, namespace: str, toolchain: dict[str, Any]) -> None:
    server = restricted_pod([toolchain_python(), "-m", "http.server", "-d", "/tmp", "8080"], toolchain)
    server["restartPolicy"] = "Always"
    server["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    labels = {"app": "files"}
    cluster.kubectl.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "files", "namespace": namespace},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": server}},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "files", "namespace": namespace},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )
    cluster.kubectl("rollout", "status", "deployment/files", "-n", namespace, "--timeout=120s", timeout=150)
    code = f"import urllib.request as u; print(u.urlopen('http://files.{namespace}.svc.cluster.local').status)"
    said = run_job(cluster.kubectl, namespace, "ask", restricted_pod([toolchain_python(), "-c", code], toolchain))
    assert said.strip() == "200"


def test_a_claim_keeps_what_one_user_writes_for_the_next(
    cluster: Cluster, namespace: str, toolchain: dict[str, Any]
) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": "state", "namespace": namespace}
    cluster.kubectl.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
    mounts = {
        **toolchain,
        "volumes": [*toolchain["volumes"], {"name": "state", "persistentVolumeClaim": {"claimName": "state"}}],
        "volumeMounts": [*toolchain["volumeMounts"], {"name": "state", "mountPath": "/state"}],
    }
    run_job(cluster.kubectl, namespace, "write", restricted_pod(["/bin/sh", "-c", "id -u >/state/user"], mounts))
    said = run_job(cluster.kubectl, namespace, "read", restricted_pod(["cat", "/state/user"], mounts))
    assert said.strip() == str(images.USER)


def test_a_pod_that_may_become_root_is_refused(cluster: Cluster, namespace: str) -> None:
    refused = cluster.kubectl.run("run", "root", "-n", namespace, f"--image={images.TOOLCHAIN}")
    assert "violates PodSecurity" in refused.stderr


def test_a_toolchain_pod_has_torch_vllm_and_ray(cluster: Cluster, namespace: str, toolchain: dict[str, Any]) -> None:
    code = "import torch, vllm, ray; print(torch.ones(2).sum().item(), ray.__version__)"
    said = run_job(cluster.kubectl, namespace, "heavy", restricted_pod([toolchain_python(), "-c", code], toolchain))
    assert said.splitlines()[-1].startswith("2.0 2.")


@pytest.mark.timeout(480)
def test_kuberay_runs_a_job_in_a_cluster_of_its_own(
    cluster: Cluster, namespace: str, toolchain: dict[str, Any]
) -> None:
    code = "import ray; ray.init(); print(ray.get(ray.remote(lambda: 'hello from a worker').remote()))"
    head = restricted_pod([], toolchain, name="ray-head")
    del head["restartPolicy"], head["containers"][0]["command"]
    head["containers"][0]["resources"] = {"limits": {"cpu": "1", "memory": "3Gi"}, "requests": {"cpu": "100m"}}
    submitter = restricted_pod([], toolchain)
    del submitter["containers"][0]["command"]
    parameters = {"dashboard-host": "0.0.0.0", "num-cpus": "1", "object-store-memory": "100000000"}
    cluster.kubectl.apply(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": "hello", "namespace": namespace},
            "spec": {
                "entrypoint": f'{toolchain_python()} -c "{code}"',
                "shutdownAfterJobFinishes": True,
                "submitterPodTemplate": {"spec": submitter},
                "rayClusterSpec": {
                    "rayVersion": "2.60.0",
                    "headGroupSpec": {"rayStartParams": parameters, "template": {"spec": head}},
                },
            },
        }
    )
    deadline = time.monotonic() + 400
    status: dict[str, Any] = {}
    while status.get("jobDeploymentStatus") not in ("Complete", "Failed") and time.monotonic() < deadline:
        time.sleep(2)
        status = cluster.kubectl.get("rayjob", "hello", "-n", namespace).get("status", {})
    assert status.get("jobStatus") == "SUCCEEDED", status
    assert "hello from a worker" in cluster.kubectl("logs", "job/hello", "-n", namespace)
