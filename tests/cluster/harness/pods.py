"""Pods as the tests' namespaces want them: under PodSecurity's level `restricted`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from harness import images
from harness.kubectl import Kubectl


def restricted_namespace(name: str) -> dict[str, Any]:
    """A namespace that takes only pods under the level `restricted`."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def restricted_pod(command: Sequence[str], fragment: Mapping[str, Any], *, name: str = "main") -> dict[str, Any]:
    """The spec of a pod of the toolchain image; `fragment` has its volumes, volumeMounts and env, as a `podTemplate` would."""
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": images.USER,
            "runAsGroup": images.USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [{"name": "tmp", "emptyDir": {}}, *fragment.get("volumes", ())],
        "containers": [
            {
                "name": name,
                "image": images.TOOLCHAIN,
                "command": list(command),
                "env": list(fragment.get("env", ())),
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *fragment.get("volumeMounts", ())],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    }


def run_job(kubectl: Kubectl, namespace: str, name: str, pod: Mapping[str, Any], *, seconds: float = 240) -> str:
    """Run a pod to its end as a Job, and return what it printed; RuntimeError with that when it fails."""
    kubectl.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": {"app": name}}, "spec": dict(pod)}},
        }
    )
    deadline = time.monotonic() + seconds
    while True:
        status = kubectl.get("job", name, "-n", namespace)["status"]
        ended = {c["type"] for c in status.get("conditions", ()) if c["status"] == "True"} & {"Complete", "Failed"}
        if ended or time.monotonic() > deadline:
            break
        time.sleep(1)
    log = kubectl.run("logs", f"job/{name}", "-n", namespace, "--all-containers").stdout
    if ended != {"Complete"}:
        raise RuntimeError(f"Job {name} {'failed' if ended else f'has not ended after {seconds:.0f} s'}:\n{log}")
    return log
