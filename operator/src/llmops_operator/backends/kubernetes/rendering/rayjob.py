"""A workload of several Ray workers as a KubeRay RayJob: a head that runs the program, the workers, and a pod that submits it.

The submitting pod follows the program's log and ends as it does; a retry is another RayJob, made by the reconciler, which goes on from
the checkpoint. `suspend` is not said here: a queueing controller may own it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.rendering.pod import pod, shell
from llmops_operator.domain.workload import Owner, Workload

API_VERSION = "ray.io/v1"
KIND = "RayJob"
SUBMITTER = "ray-job-submitter"
RAYLET = {"httpGet": {"path": "/api/local_raylet_healthz", "port": 52365}, "timeoutSeconds": 5, "periodSeconds": 5}
PROBES = {
    "readinessProbe": {**RAYLET, "failureThreshold": 10},
    "livenessProbe": {**RAYLET, "initialDelaySeconds": 60, "failureThreshold": 60},
}
"""KubeRay's own probes run wget, which a small image does not have: a head without it would never be ready."""


def rayjob_spec(owner: Owner, workload: Workload, config: OperatorConfig) -> dict[str, Any]:
    """The spec of the RayJob. The head schedules nothing, so that `workers` workers are what trains."""
    spec: dict[str, Any] = {
        "entrypoint": f"sh -c '{shell(workload.command)}'",
        "submissionMode": "K8sJobMode",
        "backoffLimit": 0,
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": {
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104 - in its pod
                "template": _ray_pod(owner, _without_gpus(workload), config, "ray-head"),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": workload.workers,
                    "minReplicas": workload.workers,
                    "maxReplicas": workload.workers,
                    "rayStartParams": {},
                    "template": _ray_pod(owner, workload, config, "ray-worker"),
                }
            ],
        },
        "submitterPodTemplate": _submitter(owner, workload, config),
    }
    if workload.deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = workload.deadline_seconds
    return spec


def _without_gpus(workload: Workload) -> Workload:
    return replace(workload, gpus=0, gpu_product=None)


def _ray_pod(owner: Owner, workload: Workload, config: OperatorConfig, name: str) -> dict[str, Any]:
    """KubeRay starts Ray in it: no command of ours."""
    template = pod(owner, workload, config, container={"name": name} | ({} if name == SUBMITTER else PROBES))
    spec = dict(template["spec"])
    spec.pop("restartPolicy", None)
    (container,) = spec["containers"]
    spec["containers"] = [{key: value for key, value in container.items() if key != "command"}]
    return {**template, "spec": spec}


def _submitter(owner: Owner, workload: Workload, config: OperatorConfig) -> dict[str, Any]:
    small = {"resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}}
    template = _ray_pod(owner, _without_gpus(workload), config, SUBMITTER)
    spec = dict(template["spec"])
    (container,) = spec["containers"]
    spec["containers"] = [{**container, **small}]
    return {**template, "spec": {**spec, "restartPolicy": "Never"}}
