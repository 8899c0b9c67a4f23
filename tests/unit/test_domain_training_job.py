"""What is decided about a TrainingJob, situation by situation."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import decisions
import pytest
from decisions import NOW, ago, running, said

from llmops_api.v1alpha1 import TrainingJob, TrainingJobStatus
from llmops_api.v1alpha1.meta import Attempt, Condition, ConditionStatus, Progress
from llmops_operator.domain.decision import Decision
from llmops_operator.domain.lineage import Recorded, RecordState, Unrecorded
from llmops_operator.domain.timing import Timing, timestamp
from llmops_operator.domain.training_job import MAX_SUSPENSIONS, TrainingInput, decide
from llmops_operator.domain.workload import State, WorkloadStatus

over = partial(decisions.over, code=75)


def job(status: TrainingJobStatus | None = None, metadata: dict[str, Any] | None = None, **spec: Any) -> TrainingJob:
    base = {
        "baseModel": {"uri": "pkg://llm/base.gguf"},
        "data": {"train": {"uri": "file:///train.jsonl"}},
        "hyperparameters": {"maxSteps": 5},
        "output": {"model": "assistant"},
    }
    made = TrainingJob.model_validate(
        {"metadata": {"name": "assistant", "uid": "u", "generation": 4, **(metadata or {})}, "spec": base | spec}
    )
    return made.model_copy(update={"status": status or TrainingJobStatus()})


def look(
    *attempts: Attempt, workloads: dict[str, WorkloadStatus] | None = None, **spec: Any
) -> Decision[TrainingJobStatus]:
    made = job(TrainingJobStatus(attempts=attempts), **spec)
    return decide(TrainingInput(made, NOW, workloads=workloads or {}))


def ended(code: int | None, reason: str = "", message: str = "") -> WorkloadStatus:
    return WorkloadStatus(State.FAILED, exit_code=code, reason=reason, message=message)


def test_a_new_job_starts_its_first_attempt() -> None:
    decision = look()
    assert [one.name for one in decision.workloads] == ["assistant-train-1"]
    assert decision.status.attempts == (Attempt(number=1, start_time=timestamp(NOW)),)
    assert decision.status.start_time == timestamp(NOW)
    assert [event.reason for event in decision.events] == ["AttemptStarted"]
    assert said(decision, "Succeeded")[:2] == ("Unknown", "Starting")
    assert decision.status.observed_generation == 4


def test_resources_and_workers_are_those_of_the_spec() -> None:
    [workload] = look(compute={"workers": 2, "resources": {"cpu": "2", "memory": "4Gi"}}).workloads
    assert (workload.workers, workload.cpu, workload.memory) == (2, "2", "4Gi")
    assert {(one.env, one.scope) for one in workload.volumes} == {
        ("LLMOPS_STATE_DIR", "Object"),
        ("LLMOPS_CACHE_DIR", "Shared"),
    }


def test_a_running_attempt_goes_on_with_the_very_same_workload() -> None:
    first = look().workloads
    decision = look(running(), workloads={"assistant-train-1": WorkloadStatus(State.RUNNING)})
    assert decision.workloads == first
    assert said(decision, "Trained") == ("False", "Training", "the training runs")
    assert (decision.status.phase, decision.events) == ("Training", ())


def test_a_workload_that_is_there_and_does_not_run_yet_is_no_training() -> None:
    first = look()
    job_then = job(first.status)
    decision = decide(TrainingInput(job_then, NOW, workloads={"assistant-train-1": WorkloadStatus(State.PENDING)}))
    assert decision.status == first.status
    assert decision.events == ()


def test_that_a_spec_which_was_refused_is_valid_now_is_told() -> None:
    refused = Condition(
        type="Accepted", status=ConditionStatus.FALSE, reason="Invalid", last_transition_time=timestamp(NOW)
    )
    made = job(TrainingJobStatus(conditions=(refused,)))
    assert "Accepted" in [event.reason for event in decide(TrainingInput(made, NOW)).events]


def test_why_a_workload_does_not_start_is_said() -> None:
    stuck = WorkloadStatus(State.PENDING, reason="Unschedulable", message="no node has 80 GB of memory")
    decision = look(running(), workloads={"assistant-train-1": stuck})
    assert said(decision, "Trained") == ("False", "Unschedulable", "no node has 80 GB of memory")
    assert decision.status.phase == "Pending"


ENDINGS: dict[str, tuple[WorkloadStatus, str, str]] = {
    "try again": (ended(75, "LostWorker", "a worker went away"), "LostWorker", "a worker went away"),
    "a bug": (ended(1, "Error", "KeyError: 'x'"), "Error", "KeyError: 'x'"),
    "a bug without a word": (ended(3), "Exit3", "the program ended with exit code 3 and said nothing: read its log"),
    "memory, by the kernel": (ended(137, "Error", "last line"), "OutOfMemory", "killed (SIGKILL), most often because memory ran out"),
    "memory, as Python tells it": (ended(-9), "OutOfMemory", "lower hyperparameters.batchSize"),
    "no result": (WorkloadStatus(State.SUCCEEDED, exit_code=0), "NoResult", "left no readable result"),
}  # fmt: skip


@pytest.mark.parametrize(("status", "reason", "message"), ENDINGS.values(), ids=ENDINGS)
def test_an_attempt_that_can_be_repeated_waits_for_the_next(status: WorkloadStatus, reason: str, message: str) -> None:
    decision = look(running(), workloads={"assistant-train-1": status})
    [attempt] = decision.status.attempts
    assert (attempt.reason, attempt.end_time) == (reason, timestamp(NOW))
    assert message in attempt.message
    assert decision.workloads == ()
    assert decision.requeue_after == 10
    assert decision.status.phase == "Retrying"
    assert said(decision, "Succeeded")[0] == "Unknown"
    assert decision.events[0].reason == "AttemptFailed"


@pytest.mark.parametrize(("failures", "pause"), [(1, 10), (2, 20), (3, 40)])
def test_the_pause_doubles_with_each_failure(failures: int, pause: float) -> None:
    attempts = [over(number + 1, "Error", ended=pause - 1) for number in range(failures)]
    assert look(*attempts).requeue_after == pytest.approx(1)
    attempts[-1] = attempts[-1].model_copy(update={"end_time": ago(pause)})
    decision = look(*attempts)
    assert [one.name for one in decision.workloads] == [f"assistant-train-{failures + 1}"]


FINAL: dict[str, tuple[tuple[Attempt, ...], dict[str, WorkloadStatus], dict[str, Any], str, str]] = {
    "the user's mistake": (
        (running(),), {"assistant-train-1": ended(64, "BadData", "train.jsonl:17 is not JSON")}, {},
        "BadData", "train.jsonl:17 is not JSON"),
    "no further attempt is left": (
        (over(1, "Error"), running(2)), {"assistant-train-2": ended(1, "Error", "boom")}, {"backoffLimit": 1},
        "BackoffLimitExceeded", "gave up after 2 attempts (backoffLimit 1); the last ended with Error: boom"),
    "a single attempt is allowed": (
        (running(),), {"assistant-train-1": ended(75, "Lost", "lost")}, {"backoffLimit": 0},
        "BackoffLimitExceeded", "gave up after one attempt (backoffLimit 0)"),
    "the backend's deadline": (
        (running(),), {"assistant-train-1": ended(137, "DeadlineExceeded", "ran for 60 s")}, {"activeDeadlineSeconds": 60},
        "DeadlineExceeded", "in another TrainingJob raise it; attempt 1: ran for 60 s"),
    "the deadline over all attempts": (
        (over(1, "Error", began=200, ended=160), over(2, "Error", began=120, ended=100)), {}, {"activeDeadlineSeconds": 60},
        "DeadlineExceeded", "not done after 60 s of work"),
}  # fmt: skip


@pytest.mark.parametrize(("attempts", "workloads", "spec", "reason", "message"), FINAL.values(), ids=FINAL)
def test_a_job_fails_for_good(
    attempts: tuple[Attempt, ...], workloads: dict[str, WorkloadStatus], spec: dict[str, Any], reason: str, message: str
) -> None:
    decision = look(*attempts, workloads=workloads, **spec)
    status, said_reason, said_message = said(decision, "Succeeded")
    assert (status, said_reason) == ("False", reason)
    assert message in said_message
    assert said(decision, "Trained")[:2] == ("False", reason)
    assert (decision.status.phase, decision.status.completion_time) == ("Failed", timestamp(NOW))
    assert decision.workloads == ()
    assert all(attempt.end_time for attempt in decision.status.attempts)
    assert decision.record is not None
    assert decision.record.key == "end:FAILED"
    again = decide(TrainingInput(job(decision.status, **spec), NOW + timedelta(days=1), workloads=workloads))
    assert (again.workloads, again.status) == ((), decision.status)


def test_time_spent_suspended_does_not_count_towards_the_deadline() -> None:
    stopped = over(1, "Suspended", code=None, began=1000, ended=980)
    decision = look(stopped, activeDeadlineSeconds=60)
    assert decision.workloads[0].deadline_seconds == 40


QUEUED = WorkloadStatus(State.PENDING, reason="Queued", message="the Job is suspended by whoever queues it")
LATE: dict[str, WorkloadStatus] = {
    "queued for hours": QUEUED,
    "not seen yet": None,  # type: ignore[dict-item]
    "queued for hours, then started": WorkloadStatus(State.RUNNING, started_at=ago(30)),
    "stopped with its daemon, started anew the next day": WorkloadStatus(State.RUNNING, started_at=ago(1)),
}


@pytest.mark.parametrize("seen", LATE.values(), ids=LATE)
def test_time_in_which_nothing_ran_does_not_count_towards_the_deadline(seen: WorkloadStatus | None) -> None:
    """The backend ends the attempt that runs, by the deadline of its workload."""
    workloads = {"assistant-train-1": seen} if seen else {}
    decision = look(running(since=80_000), workloads=workloads, activeDeadlineSeconds=60)
    assert said(decision, "Succeeded")[0] == "Unknown"
    assert [one.deadline_seconds for one in decision.workloads] == [60]
    assert decision.workloads == look(activeDeadlineSeconds=60).workloads, "or a program would be started anew"


def test_an_attempt_begins_when_its_program_does() -> None:
    """Clocks of a cluster tell whole seconds, so that what is told may lie before the attempt."""
    for told, begins in ((ago(30), ago(30)), (ago(61), ago(60))):
        seen = WorkloadStatus(State.RUNNING, started_at=told)
        assert look(running(since=60), workloads={"assistant-train-1": seen}).status.attempts[0].start_time == begins


ENDED_LONG_AGO = WorkloadStatus(State.FAILED, exit_code=75, reason="Lost", started_at=ago(5000), ended_at=ago(4980))


def test_an_attempt_that_ended_while_nobody_looked_has_worked_until_it_ended() -> None:
    decision = look(running(since=9000), workloads={"assistant-train-1": ENDED_LONG_AGO}, activeDeadlineSeconds=60)
    first = decision.status.attempts[0]
    assert (first.start_time, first.end_time) == (ago(5000), ago(4980))
    assert [(one.name, one.deadline_seconds) for one in decision.workloads] == [("assistant-train-2", 40)]


@pytest.mark.parametrize("workloads", [{}, {"assistant-train-1": QUEUED}], ids=["unseen", "queued"])
def test_an_attempt_that_is_suspended_while_it_waits_has_not_worked(workloads: dict[str, WorkloadStatus]) -> None:
    suspended = look(running(since=80_000), workloads=workloads, suspend=True, activeDeadlineSeconds=60).status
    on = look(*suspended.attempts, activeDeadlineSeconds=60)
    assert [one.deadline_seconds for one in on.workloads] == [60]


def test_a_job_that_is_created_suspended_starts_nothing() -> None:
    decision = look(suspend=True)
    assert (decision.workloads, decision.status.phase) == ((), "Suspended")
    assert said(decision, "Suspended")[0] == "True"
    assert said(decision, "Succeeded")[:2] == ("Unknown", "Suspended")


def test_a_job_that_ends_as_it_is_suspended_has_succeeded() -> None:
    result = {
        "runId": "r",
        "experimentId": "1",
        "steps": 5,
        "model": {"name": "m", "version": "3", "alias": "champion"},
    }
    finished = WorkloadStatus(State.SUCCEEDED, exit_code=0, result=result)
    decision = look(running(), workloads={"assistant-train-1": finished}, suspend=True)
    assert said(decision, "Succeeded") == ("True", "Succeeded", "m version 3 is registered; its gate has passed")
    assert said(decision, "Registered") == ("True", "Registered", "m version 3, alias champion")
    assert decision.record is None


SCORES = {"examples": 4, "loss": "2", "perplexity": "7.4", "tokenF1": "0.3"}
TABLES = {"before": {"domain": SCORES}, "after": {"domain": SCORES}}


@pytest.mark.parametrize(
    ("passed", "reason", "type_"), [(True, "GatePassed", "Normal"), (False, "GateNotPassed", "Warning")]
)
def test_a_job_has_succeeded_whatever_its_gate_decides(passed: bool, reason: str, type_: str) -> None:
    evaluation = {**TABLES, "gatePassed": passed, "gateMessage": "Loss 2.1 to 1.9"}
    result = {
        "runId": "r",
        "experimentId": "1",
        "steps": 5,
        "evaluation": evaluation,
        "model": {"name": "m", "version": "3"},
    }
    finished = WorkloadStatus(State.SUCCEEDED, exit_code=0, result=result)
    decision = look(running(), workloads={"assistant-train-1": finished})
    assert said(decision, "GatePassed") == (str(passed), reason, "Loss 2.1 to 1.9")
    assert said(decision, "Succeeded")[0] == "True"
    assert said(decision, "Succeeded")[2].endswith("its gate has passed" if passed else "its gate has not passed")
    assert type_ in [event.type_ for event in decision.events if event.reason == reason]


def test_suspending_keeps_the_logs_of_what_failed_and_removes_what_runs() -> None:
    workloads = {"assistant-train-1": ended(1), "assistant-train-2": WorkloadStatus(State.RUNNING)}
    decision = look(over(1, "Error"), running(2), workloads=workloads, suspend=True)
    assert decision.remove == ("assistant-train-2",)


def test_of_very_many_suspensions_only_the_last_are_kept() -> None:
    many = [over(1, "Suspended", code=None) for _ in range(MAX_SUSPENSIONS + 5)]
    decision = look(over(1, "Error"), *many, running(2), suspend=True)
    assert [one.reason for one in decision.status.attempts].count("Suspended") <= MAX_SUSPENSIONS
    assert decision.status.attempts[0].reason == "Error"


def test_the_logs_of_the_last_two_attempts_stay() -> None:
    workloads = {f"assistant-train-{number}": ended(1) for number in (1, 2)}
    decision = look(over(1, "Error"), over(2, "Error", ended=1000), running(3), workloads=workloads)
    assert decision.remove == ("assistant-train-1",)


def test_a_job_that_is_being_deleted_leaves_nothing_behind() -> None:
    gone = job(metadata={"deletionTimestamp": timestamp(NOW)})
    decision = decide(TrainingInput(gone, NOW, workloads={"assistant-train-1": WorkloadStatus(State.RUNNING)}))
    assert (decision.remove, decision.discard_volumes, decision.workloads) == (("assistant-train-1",), True, ())


LINEAGE: dict[str, tuple[RecordState, tuple[str, str], bool]] = {
    "waiting": (RecordState(), ("Unknown", "Recording"), True),
    "away": (RecordState(by_key={"end:FAILED": Unrecorded("refused", "noon")}), ("False", "MLflowUnavailable"), True),
    "written": (RecordState(by_key={"end:FAILED": Recorded("run-9", "http://run-9")}), ("True", "Recorded"), False),
    "no run was begun": (RecordState(by_key={"end:FAILED": Recorded(None)}), ("True", "Recorded"), False),
    "no MLflow": (RecordState(enabled=False), ("Unknown", "Disabled"), True),
}


@pytest.mark.parametrize(("records", "expected", "asked"), LINEAGE.values(), ids=LINEAGE)
def test_the_run_of_a_failed_job_is_ended(records: RecordState, expected: tuple[str, str], asked: bool) -> None:
    failed = look(running(), workloads={"assistant-train-1": ended(64, "BadData", "bad")}).status
    decision = decide(TrainingInput(job(failed), NOW, records=records))
    assert said(decision, "LineageRecorded")[:2] == expected
    assert (decision.record is not None) == asked
    state = records.of("end:FAILED")
    assert decision.status.run_id == (state.run_id if isinstance(state, Recorded) else None)


RUN = RecordState(by_key={"run": Recorded("run-7", "http://run-7")})


def test_a_training_shows_its_run_as_soon_as_that_is_open() -> None:
    def at(percent: int, status: TrainingJobStatus, records: RecordState) -> Decision[TrainingJobStatus]:
        seen = WorkloadStatus(State.RUNNING, progress=Progress(percent=percent))
        return decide(TrainingInput(job(status), NOW, workloads={"assistant-train-1": seen}, records=records))

    loading = at(0, TrainingJobStatus(attempts=(running(),)), RecordState())
    assert (loading.record, loading.status.run_id) == (None, None)
    training = at(5, loading.status, RecordState())
    assert training.record is not None
    assert (training.record.key, training.status.run_id) == ("run", None)
    found = at(20, training.status, RUN)
    assert (found.record, found.status.run_id, found.status.run_url) == (None, "run-7", "http://run-7")
    later = at(30, found.status, RecordState())  # another control plane, which remembers nothing
    assert (later.record, later.status.run_id) == (None, "run-7")


def test_a_finished_job_stays_as_it_is_whatever_happens_to_its_workloads() -> None:
    done = look(running(), workloads={"assistant-train-1": ended(64, "BadData", "bad")}).status
    state = RecordState(by_key={"end:FAILED": Recorded(None)})
    finished = decide(TrainingInput(job(done), NOW, records=state)).status
    later = TrainingInput(job(finished), NOW + timedelta(days=9), timing=Timing(retry_first=1))
    for changed in (later, replace(later, job=job(finished, suspend=True))):
        decision = decide(changed)
        assert (decision.status, decision.workloads, decision.record) == (finished, (), None)
