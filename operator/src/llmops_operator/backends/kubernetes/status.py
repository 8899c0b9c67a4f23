"""From the children of a workload to its `WorkloadStatus`. Pure: what was read over the network comes in `Heard`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmops_api.programs import Said
from llmops_api.reasons import FailureReason, Reason
from llmops_api.v1alpha1.meta import Progress
from llmops_operator.backends.kubernetes.diagnosis import OK, diagnose, exit_code, last_words, refused
from llmops_operator.backends.kubernetes.rendering.names import ENGINE_PORT, GATEWAY_PORT, RESULT, ROLE, WORKLOAD
from llmops_operator.backends.kubernetes.rendering.rayjob import KIND as RAYJOB
from llmops_operator.backends.kubernetes.rendering.rayjob import SUBMITTER
from llmops_operator.backends.kubernetes.said import failure_in, last_said
from llmops_operator.domain.workload import Role, State, WorkloadStatus

Manifest = Mapping[str, Any]
MAINS = ("Deployment", "Job", RAYJOB)
"""The kinds of children that run a workload."""
_EXIT = re.compile(r"exit code (\d+)")


@dataclass(frozen=True)
class Heard:
    """What a program said itself. A result that is `overdue` is waited for no longer."""

    progress: Progress | None = None
    report: Mapping[str, Any] | None = None
    unasked: bool = False
    overdue: bool = False
    warning: str = ""
    """What an event says of what cannot begin."""


def status_of(main: Manifest, pods: Sequence[Manifest], heard: Heard) -> WorkloadStatus:
    """How the workload of a Deployment, a Job or a RayJob is doing."""
    found = _status_of(main, pods, heard)
    if found.reason or not heard.warning or found.state in (State.SUCCEEDED, State.FAILED) or found.ready_replicas:
        return found
    reason, message = refused(heard.warning)
    return replace(found, reason=reason, message=message)


def _status_of(main: Manifest, pods: Sequence[Manifest], heard: Heard) -> WorkloadStatus:
    match main["kind"]:
        case "Deployment":
            return _running(main, pods, heard)
        case "Job":
            return _job(main, pods, heard.progress, overdue=heard.overdue)
        case _:
            return _rayjob(main, pods, heard.progress, overdue=heard.overdue)


def is_main(child: Manifest) -> bool:
    """Whether a child is the one that runs its workload."""
    return child["kind"] in MAINS


def pods_of(children: Sequence[Manifest], main: Manifest) -> list[Manifest]:
    """The pods of a workload among the children of its object."""
    name = main["metadata"]["name"]
    return [one for one in children if one["kind"] == "Pod" and one["metadata"]["labels"].get(WORKLOAD) == name]


def speaker(main: Manifest, pods: Sequence[Manifest]) -> Manifest | None:
    """The pod whose log says what the program says: for a RayJob the one that submits it and follows it."""
    if main["kind"] == RAYJOB:
        pods = [pod for pod in pods if any(one["name"] == SUBMITTER for one in pod["spec"]["containers"])]
    return max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)


def ended_at(main: Manifest) -> str | None:
    """When a Job or RayJob ended; None while it runs."""
    status, created = main.get("status") or {}, main["metadata"].get("creationTimestamp")
    if main["kind"] == RAYJOB:
        done = status.get("jobDeploymentStatus") in ("Complete", "Failed")
        return str(status.get("endTime") or created) if done else None
    ended = _end_of(status)
    return str(ended.get("lastTransitionTime") or created) if ended and main["kind"] == "Job" else None


def _end_of(status: Manifest) -> Manifest | None:
    conditions = status.get("conditions") or ()
    return next((one for one in conditions if one["type"] in ("Complete", "Failed") and one["status"] == "True"), None)


def _running(main: Manifest, pods: Sequence[Manifest], heard: Heard) -> WorkloadStatus:
    status = main.get("status") or {}
    metadata = main["metadata"]
    serving = sorted(pod["status"]["podIP"] for pod in pods if _ready(pod))
    gateway = metadata["labels"].get(ROLE) == Role.GATEWAY
    url = f"http://{metadata['name']}.{metadata['namespace']}.svc:{GATEWAY_PORT}"
    endpoints = ((url,) if serving else ()) if gateway else tuple(f"http://{ip}:{ENGINE_PORT}" for ip in serving)
    selector = main["spec"]["selector"]["matchLabels"]
    reason, message = diagnose(pods)
    if (reason, message) == OK:
        reason, message = _refused(status.get("conditions") or (), "ReplicaFailure")
    return WorkloadStatus(
        State.RUNNING if pods else State.PENDING,
        reason=reason,
        message=message,
        started_at=metadata.get("creationTimestamp"),
        ready_replicas=len(serving),
        endpoints=endpoints,
        restarts=sum(one.get("restartCount", 0) for pod in pods for one in _containers(pod)),
        progress=heard.progress,
        report=heard.report,
        unasked=gateway and heard.unasked,
        selector=",".join(f"{label}={value}" for label, value in sorted(selector.items())),
    )


def _job(main: Manifest, pods: Sequence[Manifest], progress: Progress | None, *, overdue: bool) -> WorkloadStatus:
    status = main.get("status") or {}
    started = status.get("startTime")
    ended = _end_of(status)
    reason, message = diagnose(pods)
    if ended is None:
        if (main.get("spec") or {}).get("suspend"):
            reason, message = Reason.QUEUED, "the Job is suspended by whoever queues it, and goes on when there is room"
        running = any((pod.get("status") or {}).get("phase") == "Running" for pod in pods)
        return WorkloadStatus(
            State.RUNNING if running else State.PENDING,
            reason=reason,
            message=message,
            started_at=started,
            progress=progress,
        )
    result = _result(main)
    if (
        result is None
        and not overdue
        and not (ended["type"] == "Failed" and ended.get("reason") == Reason.DEADLINE_EXCEEDED)
    ):
        return WorkloadStatus(State.RUNNING, reason=reason, message=message, started_at=started, progress=progress)
    end = status.get("completionTime") or ended.get("lastTransitionTime")
    if ended["type"] == "Complete":
        return WorkloadStatus(State.SUCCEEDED, exit_code=0, started_at=started, ended_at=end, result=result)
    why = failure_in(result) or ((reason, message) if reason else None) or _job_failure(ended, pods)
    code = (
        None
        if why[0] == Reason.DEADLINE_EXCEEDED
        else 137
        if why[0] == FailureReason.OUT_OF_MEMORY
        else exit_code(pods)
    )
    return WorkloadStatus(
        State.FAILED, reason=why[0], message=why[1], exit_code=code, started_at=started, ended_at=end, result=result
    )


def _job_failure(ended: Manifest, pods: Sequence[Manifest]) -> tuple[str, str]:
    if ended.get("reason") == Reason.DEADLINE_EXCEEDED:
        return Reason.DEADLINE_EXCEEDED, "it ran for longer than activeDeadlineSeconds"
    code = exit_code(pods)
    if code is None:
        return (
            Reason.POD_LOST,
            "its pod is gone and nobody knows how it ended: a node was drained or lost, or somebody deleted it",
        )
    return "", last_words(pods)


def _rayjob(main: Manifest, pods: Sequence[Manifest], progress: Progress | None, *, overdue: bool) -> WorkloadStatus:
    """RayJobs have two axes: how the cluster for the job stands (jobDeploymentStatus), and the job itself (jobStatus)."""
    status = main.get("status") or {}
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    started, end = status.get("startTime"), status.get("endTime")
    said = status.get("message") or ""
    reason, message = diagnose(pods)
    if deployment in ("Suspended", "Suspending"):
        message = "the RayJob is suspended by whoever queues it, and goes on when there is room"
        return WorkloadStatus(State.PENDING, reason=Reason.QUEUED, message=message)  # startTime is stale
    if deployment not in ("Complete", "Failed"):
        state = State.RUNNING if job == "RUNNING" else State.PENDING
        return WorkloadStatus(state, reason=reason, message=message, started_at=started, progress=progress)
    result = _result(main)
    if result is None and not overdue and status.get("reason") != Reason.DEADLINE_EXCEEDED:
        return WorkloadStatus(State.RUNNING, reason=reason, message=message, started_at=started, progress=progress)
    if deployment == "Complete" and job == "SUCCEEDED":
        return WorkloadStatus(State.SUCCEEDED, exit_code=0, started_at=started, ended_at=end, result=result)
    # The message holds the last lines of the program, should its log be gone.
    told = failure_in(result) or failure_in(last_said(Said.RESULT, said))
    why = told or ((reason, message) if reason else (status.get("reason") or Reason.RAY_JOB_FAILED, said[-3000:]))
    found = _EXIT.search(said)
    code = 137 if why[0] == FailureReason.OUT_OF_MEMORY else int(found[1]) if found else None
    return WorkloadStatus(
        State.FAILED, reason=why[0], message=why[1], exit_code=code, started_at=started, ended_at=end, result=result
    )


def _result(main: Manifest) -> Mapping[str, Any] | None:
    text = (main["metadata"].get("annotations") or {}).get(RESULT)
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _refused(conditions: Sequence[Manifest], type_: str) -> tuple[str, str]:
    """Pods that the API server did not take: a quota, a webhook, the pod security level."""
    found = next((one for one in conditions if one["type"] == type_ and one["status"] == "True"), None)
    return refused(found.get("message", "")) if found else OK


def _containers(pod: Manifest) -> Sequence[Manifest]:
    return (pod.get("status") or {}).get("containerStatuses") or ()


def _ready(pod: Manifest) -> bool:
    status = pod.get("status") or {}
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or ())
    return ready and bool(status.get("podIP")) and not pod["metadata"].get("deletionTimestamp")
