"""Why a pod does not go on, in words that say what to do: from what Kubernetes says about pods, Jobs and Deployments. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmops_api.programs import Said
from llmops_api.reasons import FailureReason, Reason
from llmops_operator.backends.kubernetes.rendering.names import ROLE
from llmops_operator.backends.kubernetes.said import failure_in, last_said
from llmops_operator.domain.workload import Role

Manifest = Mapping[str, Any]
Finding = tuple[str, str]
"""(reason, message)"""

OK: Finding = ("", "")
OOM_KILLED = "OOMKilled"
_PULL = (
    Reason.ERR_IMAGE_PULL,
    Reason.IMAGE_PULL_BACK_OFF,
    Reason.INVALID_IMAGE_NAME,
    Reason.ERR_IMAGE_NEVER_PULL,
    Reason.IMAGE_INSPECT_ERROR,
)
_MISSING = re.compile(r"(?P<kind>secret|configmap) \"(?P<name>[^\"]+)\" not found")
_KEY = re.compile(r"couldn't find key (?P<key>\S+) in Secret (?P<where>\S+)")
_UNBOUND, _CLAIM = "unbound immediate PersistentVolumeClaims", "persistentvolumeclaim"
_MEMORY_HELPS = {
    Role.ENGINE: "raise spec.compute.resources.memory, lower spec.engine.maxModelLen, or serve a smaller base model",
    Role.GATEWAY: "raise the memory that a LimitRange of the namespace gives it, or its node has (spec.compute is the engine's), or take a "
    "smaller embedding model for the indexes",
}
"""What to do about too little of it; what a program that completes can lower is said where its attempts are closed."""
_LACKS = re.compile(r"Insufficient (?P<what>[\w/-]+(?:\.[\w/-]+)*)")


def diagnose(pods: Iterable[Manifest]) -> Finding:
    """The first thing that keeps one of the pods from running well; `OK` when there is none."""
    for pod in sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or "", reverse=True):
        found = _of_pod(pod)
        if found != OK:
            return found
    return OK


def refused(message: str) -> Finding:
    """What an event says of a pod that cannot be made, or cannot begin."""
    if "exceeded quota" in message:
        return Reason.QUOTA_EXCEEDED, f"{message}: raise the namespace's ResourceQuota, or ask for less in spec.compute"
    if "PodSecurity" in message:
        return (
            Reason.POD_SECURITY_REFUSED,
            f"{message}: change spec.podTemplate, or the namespace's pod-security labels",
        )
    if _UNBOUND in message or _CLAIM in message:
        return _without_volume(message)
    if "admission webhook" in message:
        return Reason.WEBHOOK_REFUSED, f"{message}: an admission webhook of this cluster refuses the pod"
    return Reason.CANNOT_START, message


def _of_pod(pod: Manifest) -> Finding:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if status.get("reason") in (Reason.EVICTED, Reason.NODE_LOST, Reason.PREEMPTING):
        return status["reason"], f"pod {name}: {status.get('message') or status['reason']}"
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = condition.get("message", "")
            # Most claims are bound a moment later; of those that are not, an event tells.
            return OK if _UNBOUND in message else _unscheduled(message, pod)
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        found = _of_container(pod, container)
        if found != OK:
            return found
    return OK


def _without_volume(message: str) -> Finding:
    return (
        Reason.VOLUME_NOT_BOUND,
        f"{message}; look at the claim (kubectl describe pvc), its storage class and its size",
    )


def _unscheduled(message: str, pod: Manifest) -> Finding:
    if _CLAIM in message:
        return _without_volume(message)
    lacks = sorted(set(_LACKS.findall(message)))
    if lacks:
        asked = _asked(pod)
        wishes = ", ".join(f"{what} (each pod asks for {asked[what]})" if what in asked else what for what in lacks)
        return Reason.UNSCHEDULABLE, f"no node has enough {wishes}: lower spec.compute, or add nodes. {message}"
    if "taint" in message or "didn't match" in message:
        return (
            Reason.UNSCHEDULABLE,
            f"{message}. Set spec.podTemplate.tolerations or nodeSelector, or spec.compute.gpus.product",
        )
    return Reason.UNSCHEDULABLE, message


def _asked(pod: Manifest) -> dict[str, str]:
    found: dict[str, str] = {}
    for container in pod["spec"]["containers"]:
        resources = container.get("resources") or {}
        found |= {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return found


def _of_container(pod: Manifest, container: Manifest) -> Finding:
    name = pod["metadata"]["name"]
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL:
        what = f"the image {container.get('image')} cannot be had: {message or reason}"
        return (
            reason,
            f"{what}. Check its name, and the pull secrets (spec.podTemplate.imagePullSecrets or the chart's)",
        )
    if reason == Reason.CREATE_CONTAINER_CONFIG_ERROR:
        return reason, _config_error(message)
    if reason == Reason.CRASH_LOOP_BACK_OFF:
        last = (container.get("lastState") or {}).get("terminated") or {}
        if last.get("reason") == OOM_KILLED:
            return _out_of_memory(pod, container)
        told = failure_in(last_said(Said.RESULT, last.get("message", "")))
        if told:
            return told
        said = _last_line(last.get("message", ""))
        ended = f"it ends with exit code {last.get('exitCode')} (restarts: {container.get('restartCount', 0)})"
        return reason, f"{ended}{f': {said}' if said else f': read kubectl logs {name} --previous'}"
    if reason in (Reason.CREATE_CONTAINER_ERROR, Reason.RUN_CONTAINER_ERROR):
        return reason, f"pod {name}: {message}"
    terminated = state.get("terminated") or {}
    if terminated.get("reason") == OOM_KILLED:
        return _out_of_memory(pod, container)
    return OK


def _out_of_memory(pod: Manifest, container: Manifest) -> Finding:
    metadata = pod["metadata"]
    limit = ((container.get("resources") or {}).get("limits") or {}).get("memory")
    more = f" of {limit}" if limit else ""
    helps = _MEMORY_HELPS.get(metadata["labels"].get(ROLE), "raise spec.compute.resources.memory")
    return (
        FailureReason.OUT_OF_MEMORY,
        f"pod {metadata['name']} used more than its memory{more} and was killed: {helps}",
    )


def _config_error(message: str) -> str:
    if match := _MISSING.search(message):
        return f"there is no {match['kind']} {match['name']}: create it in this namespace, it goes on by itself"
    if match := _KEY.search(message):
        return f"Secret {match['where']} has no key {match['key']}: add it, it goes on by itself"
    return message


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("llmops-")]
    return lines[-1][:1000] if lines else ""


def exit_code(pods: Iterable[Manifest]) -> int | None:
    """The exit code of the container that ended last; out of memory is 137, as everywhere."""
    ended = [
        (terminated.get("finishedAt") or "", terminated)
        for pod in pods
        for container in (pod.get("status") or {}).get("containerStatuses") or ()
        if (terminated := (container.get("state") or {}).get("terminated"))
    ]
    if not ended:
        return None
    _, last = max(ended, key=lambda one: one[0])
    return 137 if last.get("reason") == OOM_KILLED else int(last["exitCode"])


def last_words(pods: Iterable[Manifest]) -> str:
    """The last line that a container wrote before it ended badly."""
    for pod in pods:
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            terminated = (container.get("state") or {}).get("terminated") or {}
            if said := _last_line(terminated.get("message", "")):
                return said
    return ""
