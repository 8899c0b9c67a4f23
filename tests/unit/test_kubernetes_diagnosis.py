"""What a status says is told in words that say what to do; how a program ended is read from what it left."""

from __future__ import annotations

from typing import Any

import pytest

from llmops_operator.backends.kubernetes.diagnosis import OK, diagnose
from llmops_operator.backends.kubernetes.rendering.names import RESULT, ROLE, WORKLOAD
from llmops_operator.backends.kubernetes.status import Heard, status_of
from llmops_operator.domain.workload import State

GAVE_UP = 'llmops-result: {"reason": "ModelNotFound", "message": "no such model: correct the uri"}'
NOTHING = Heard()


def main(kind: str = "Job", *, result: str | None = None, role: str = "trainer", **status: Any) -> dict[str, Any]:
    annotations = {RESULT: result} if result is not None else {}
    metadata = {
        "name": "w",
        "namespace": "n",
        "labels": {WORKLOAD: "w", ROLE: role},
        "annotations": annotations,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return {"kind": kind, "metadata": metadata, "spec": {}, "status": status}


def pod(
    phase: str = "Pending", *, limits: dict[str, str] | None = None, role: str = "trainer", **status: Any
) -> dict[str, Any]:
    container = status.pop("container", None)
    if container:
        status["containerStatuses"] = [{"name": "c", "image": "engine:1", "restartCount": 0} | container]
    return {
        "kind": "Pod",
        "metadata": {"name": "w-1", "labels": {WORKLOAD: "w", ROLE: role}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "c", "resources": {"limits": limits or {}}}]},
        "status": {"phase": phase, **status},
    }


def unscheduled(message: str, **more: Any) -> dict[str, Any]:
    return pod(
        conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}], **more
    )


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return pod(container={"state": {"waiting": {"reason": reason, "message": message}}, **more})


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    terminated = {"exitCode": code, "message": message, "reason": reason, "finishedAt": "2026-01-01T00:01:00Z"}
    return pod("Failed", container={"state": {"terminated": terminated}})


FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}

TROUBLES = {
    "an image that cannot be pulled": (waiting("ImagePullBackOff", 'Back-off pulling image "x": 403'), "ImagePullBackOff", "imagePullSecrets"),
    "an image whose name is none": (waiting("InvalidImageName", "couldn't parse"), "InvalidImageName", "engine:1"),
    "a missing secret": (waiting("CreateContainerConfigError", 'secret "keys" not found'), "CreateContainerConfigError", "there is no secret keys: create it"),
    "a missing key": (
        waiting("CreateContainerConfigError", "couldn't find key apiKey in Secret n/keys"), "CreateContainerConfigError", "has no key apiKey: add it"),
    "too little memory": (unscheduled("0/1 nodes are available: 1 Insufficient memory."), "Unschedulable", "no node has enough memory"),
    "too few GPUs": (
        unscheduled("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.", limits={"nvidia.com/gpu": "4"}), "Unschedulable",
        "nvidia.com/gpu (each pod asks for 4)"),
    "a taint": (unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint {a: b}."), "Unschedulable", "podTemplate.tolerations"),
    "a claim that is not there": (
        unscheduled('0/1 nodes are available: persistentvolumeclaim "documents" not found.'), "VolumeNotBound", "kubectl describe pvc"),
    "a crash loop": (
        waiting("CrashLoopBackOff", restartCount=3, lastState={"terminated": {"exitCode": 1, "message": "a\nKeyError: 'x'\n"}}),
        "CrashLoopBackOff", "it ends with exit code 1 (restarts: 3): KeyError: 'x'"),
    "a crash loop of a program that says why": (
        waiting("CrashLoopBackOff", restartCount=3, lastState={"terminated": {"exitCode": 64, "message": f"a\n{GAVE_UP}\n"}}),
        "ModelNotFound", "correct the uri"),
    "a crash loop for want of memory": (
        waiting("CrashLoopBackOff", lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), "OutOfMemory", "raise spec.compute.resources.memory"),
    "an evicted pod": (pod("Failed", reason="Evicted", message="The node was low on resource: memory."), "Evicted", "low on resource"),
}  # fmt: skip


@pytest.mark.parametrize(("one", "reason", "words"), TROUBLES.values(), ids=TROUBLES)
def test_trouble_is_told_with_what_to_do(one: dict[str, Any], reason: str, words: str) -> None:
    found = diagnose([one])
    assert found[0] == reason
    assert words in found[1]
    if one["status"]["phase"] == "Pending":
        status = status_of(main(), [one], NOTHING)
        assert (status.state, status.reason) == (State.PENDING, reason)


@pytest.mark.parametrize(
    ("role", "helps"),
    [
        ("trainer", "raise spec.compute.resources.memory"),
        (
            "engine",
            "raise spec.compute.resources.memory, lower spec.engine.maxModelLen, or serve a smaller base model",
        ),
        (
            "gateway",
            "raise the memory that a LimitRange of the namespace gives it, or its node has (spec.compute is the engine's), "
            "or take a smaller embedding model for the indexes",
        ),
    ],
)
def test_too_little_memory_is_told_with_what_helps_that_program(role: str, helps: str) -> None:
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    one = pod(role=role, container={"state": killed, "resources": {"limits": {"memory": "2Gi"}}})
    assert diagnose([one]) == ("OutOfMemory", f"pod w-1 used more than its memory of 2Gi and was killed: {helps}")


def test_a_claim_without_a_volume_is_told_when_an_event_tells_it() -> None:
    message = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    one = unscheduled(message)
    assert status_of(main(), [one], NOTHING).reason == "", "it may be bound in a moment"
    told = status_of(main(), [one], Heard(warning=message))
    assert (told.state, told.reason) == (State.PENDING, "VolumeNotBound")
    assert "storage class" in told.message


def test_a_pod_that_runs_well_has_no_trouble() -> None:
    well = pod("Running", container={"state": {"running": {}}})
    assert diagnose([well]) == OK
    assert status_of(main(startTime="t"), [well], NOTHING).state is State.RUNNING


@pytest.mark.parametrize("one", [main(**FAILED), main("RayJob", jobDeploymentStatus="Failed", jobStatus="FAILED")])
def test_why_a_program_was_ended_is_told_while_its_result_may_still_come(one: dict[str, Any]) -> None:
    found = status_of(one, [ended(137, reason="OOMKilled")], NOTHING)
    assert (found.state, found.reason) == (State.RUNNING, "OutOfMemory")
    assert "used more than its memory" in found.message


def test_a_job_that_has_ended_is_said_to_have_when_its_result_is_kept_or_overdue() -> None:
    complete = {"conditions": [{"type": "Complete", "status": "True"}], "completionTime": "t"}
    assert status_of(main(**complete), [], NOTHING).state is State.RUNNING
    assert status_of(main(**complete), [], Heard(overdue=True)).state is State.SUCCEEDED
    kept = status_of(main(result='{"steps": 3}', **complete), [], NOTHING)
    assert (kept.state, kept.exit_code, kept.result) == (State.SUCCEEDED, 0, {"steps": 3})


ENDINGS = {
    "the program's own words": (
        main(result='{"reason": "DataInvalid", "message": "line 17"}', **FAILED), [ended(64)], (64, "DataInvalid", "line 17")),
    "its last line": (main(**FAILED), [ended(1, "x\nboom\n")], (1, "", "boom")),
    "memory": (main(**FAILED), [ended(137, reason="OOMKilled")], (137, "OutOfMemory", "pod w-1 used more than its memory")),
    "a pod that is gone": (main(**FAILED), [], (None, "PodLost", "its pod is gone")),
    "the deadline": (
        main(conditions=[{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]), [], (None, "DeadlineExceeded", "it ran for longer")),
    "a RayJob by the exit code in its message": (
        main("RayJob", jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message=f"failed with exit code 64, last logs: \n{GAVE_UP}\n"),
        [], (64, "ModelNotFound", "no such model")),
    "a RayJob that says nothing": (
        main("RayJob", jobDeploymentStatus="Failed", jobStatus="FAILED", message="the head died"), [], (None, "RayJobFailed", "the head died")),
}  # fmt: skip


@pytest.mark.parametrize(("one", "pods", "told"), ENDINGS.values(), ids=ENDINGS)
def test_what_ended_badly_says_why(
    one: dict[str, Any], pods: list[dict[str, Any]], told: tuple[int | None, str, str]
) -> None:
    found = status_of(one, pods, Heard(overdue=True))
    assert found.state is State.FAILED
    assert (found.exit_code, found.reason) == told[:2]
    assert found.message.startswith(told[2])


@pytest.mark.parametrize(
    ("deployed", "job", "state", "reason"),
    [
        ("", "", State.PENDING, ""),
        ("Initializing", "", State.PENDING, ""),
        ("Running", "RUNNING", State.RUNNING, ""),
        ("Suspended", "", State.PENDING, "Queued"),
        ("Complete", "SUCCEEDED", State.RUNNING, ""),  # its result is still to be read
    ],
)
def test_both_axes_of_a_rayjob_are_one_state(deployed: str, job: str, state: State, reason: str) -> None:
    found = status_of(main("RayJob", jobDeploymentStatus=deployed, jobStatus=job), [], NOTHING)
    assert (found.state, found.reason) == (state, reason)


def test_a_job_that_somebody_queues_says_so_and_has_not_started() -> None:
    queued = main()
    queued["spec"]["suspend"] = True
    preempted = main("RayJob", jobDeploymentStatus="Suspended", startTime="2026-11-23T12:00:00Z")
    for one in (queued, preempted):
        found = status_of(one, [], NOTHING)
        assert (found.reason, found.started_at) == ("Queued", None)


def test_an_annotation_that_somebody_broke_is_no_result() -> None:
    complete = {"conditions": [{"type": "Complete", "status": "True"}]}
    for broken in ("{", "[]", '"text"'):
        assert status_of(main(result=broken, **complete), [], NOTHING).state is State.RUNNING
