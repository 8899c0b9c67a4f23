"""Workloads on an API server without a kubelet: what is written is counted, what pods and Jobs come to is said by hand."""

from __future__ import annotations

import json
from typing import Any

from rendered_workloads import TRAINER

from harness.api_server import ApiServer
from llmops_operator.backends.kubernetes.rendering.names import labels
from llmops_operator.domain.workload import Owner, Workload


class Writes:
    """Counts what is written, as the operator's metrics do."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []

    def wrote(self, verb: str, resource: str, code: int) -> None:
        self.made.append((verb, resource))


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
    patch_status(server, "job", owner.namespace, TRAINER.name, {**counts, "conditions": conditions})
