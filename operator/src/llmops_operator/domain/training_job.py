"""A TrainingJob: attempts at one run until it is trained, registered and judged, or cannot be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from llmops_api.programs import TrainingConfig, TrainingResult
from llmops_api.reasons import Reason
from llmops_api.v1alpha1.meta import Attempt, ConditionStatus
from llmops_api.v1alpha1.training_job import TrainingJob, TrainingJobCondition, TrainingJobSpec, TrainingJobStatus
from llmops_operator.domain import attempts as tries_of
from llmops_operator.domain.attempts import Tries
from llmops_operator.domain.conditions import (
    Aspect,
    fails,
    holds,
    is_true,
    open_yet,
    reported,
    updated,
    waits,
)
from llmops_operator.domain.decision import Decision, Event, normal, object_id, owner_of, transitions, warning, without
from llmops_operator.domain.files import CACHE, STATE, config_file, program
from llmops_operator.domain.fingerprint import workload_name
from llmops_operator.domain.lineage import EndRecord, Recorded, RecordState, RunEnd, RunRecord, lineage_aspect
from llmops_operator.domain.placement import asked, placed
from llmops_operator.domain.timing import Timing, parse_timestamp, timestamp
from llmops_operator.domain.workload import Lifecycle, Role, State, Workload, WorkloadStatus

KIND = "TrainingJob"
MAX_SUSPENSIONS = 16
"""So many suspensions are kept among the attempts; older ones are forgotten."""

WHAT_TO_LOWER = (
    "in another TrainingJob lower hyperparameters.batchSize (and raise gradientAccumulationSteps by the same factor) or "
    "data.maxLength, or raise compute.resources.memory"
)
On = TrainingJobCondition


@dataclass(frozen=True)
class TrainingInput:
    """Everything that decides about a TrainingJob. `manifest` writes the object as the user did, as YAML; `run_url` makes the
    address of a run from experiment and run id.
    """

    job: TrainingJob
    now: datetime
    manifest: Callable[[], str] = str
    workloads: Mapping[str, WorkloadStatus] = field(default_factory=dict)
    records: RecordState = field(default_factory=RecordState)
    timing: Timing = field(default_factory=Timing)
    run_url: Callable[[str, str], str | None] = lambda experiment_id, run_id: None


def decide(i: TrainingInput) -> Decision[TrainingJobStatus]:
    """What is to be done about a TrainingJob now."""
    job, old = i.job, i.job.status
    if job.metadata.deletion_timestamp:
        return Decision(old, remove=tuple(sorted(i.workloads)), discard_volumes=True)
    if old.completion_time:
        return _finished(i, old, ())
    tries = tries_of.look(
        old.attempts,
        i.workloads,
        i.now,
        name=lambda number: trainer_name(job, number),
        parse=TrainingResult.model_validate,
        lower=WHAT_TO_LOWER,
    )
    if tries.result is not None:
        return _succeeded(i, tries, tries.result)
    events = (_ended_event(tries.ended),) if tries.ended else ()
    gave_up = _gave_up(i, tries)
    if gave_up:
        return _failed(i, tries, gave_up, events)
    if job.spec.suspend:
        return _suspended(i, tries, events)
    return _goes_on(i, tries, events)


def trainer_name(job: TrainingJob, number: int) -> str:
    """The workload of an attempt."""
    return workload_name(job.metadata.name, f"train-{number}", workers=job.spec.compute.workers)


def trainer(job: TrainingJob, number: int, manifest: str, deadline: int | None) -> Workload:
    """The workload of attempt `number`. Nothing in it changes when the job is suspended and goes on."""
    spec = job.spec.model_copy(update={"suspend": False, "pod_template": None})
    config = TrainingConfig(object=object_id(KIND, job.metadata), spec=spec, manifest=manifest)
    return Workload(
        name=trainer_name(job, number),
        role=Role.TRAINER,
        lifecycle=Lifecycle.COMPLETES,
        command=program("training"),
        files={"training.json": config_file(config)},
        workers=spec.compute.workers,
        **asked(spec.compute),
        **placed(job.metadata, job.spec.pod_template, spec.reads()),
        volumes=(STATE, CACHE),
        grace_seconds=30.0,
        deadline_seconds=deadline,
    )


def _failures(attempts: tuple[Attempt, ...]) -> list[Attempt]:
    return [attempt for attempt in attempts if tries_of.failed(attempt)]


def _time_left(spec: TrainingJobSpec, attempts: tuple[Attempt, ...]) -> float | None:
    """Seconds of activeDeadlineSeconds that the ended attempts have left over; the one that runs is ended by its workload's deadline."""
    if spec.active_deadline_seconds is None:
        return None
    return spec.active_deadline_seconds - sum(tries_of.seconds(attempt) for attempt in attempts)


def _gave_up(i: TrainingInput, tries: Tries) -> tuple[str, str] | None:
    """Why there will be no further attempt."""
    failures = _failures(tries.attempts)
    last = tries.attempts[-1] if tries.attempts else None
    seconds = i.job.spec.active_deadline_seconds
    late = f"not done after {seconds} s of work (activeDeadlineSeconds): in another TrainingJob raise it"
    if last and last in failures and tries_of.final(last):
        if last.reason == tries_of.DEADLINE_EXCEEDED:
            return last.reason, f"{late}; attempt {last.number}: {last.message}"
        return last.reason, last.message
    if len(failures) > i.job.spec.backoff_limit:
        count = f"{len(failures)} attempts" if len(failures) > 1 else "one attempt"
        why = f"gave up after {count} (backoffLimit {i.job.spec.backoff_limit}); the last ended with {failures[-1].reason}"
        return Reason.BACKOFF_LIMIT_EXCEEDED, f"{why}: {failures[-1].message}"
    left = _time_left(i.job.spec, tries.attempts)
    if left is not None and left <= 0:
        return tries_of.DEADLINE_EXCEEDED, late
    return None


def _ended_event(attempt: Attempt) -> Event:
    return warning(Reason.ATTEMPT_FAILED, f"attempt {attempt.number} ended with {attempt.reason}: {attempt.message}")


def _decision(
    i: TrainingInput,
    status: TrainingJobStatus,
    aspects: dict[str, Aspect],
    events: tuple[Event, ...],
    *,
    keep: tuple[str, ...] = (),
    **rest: object,
) -> Decision[TrainingJobStatus]:
    generation, now = i.job.metadata.generation, timestamp(i.now)
    conditions = updated(i.job.status.conditions, aspects, On, generation=generation, now=now)
    status = status.model_copy(update={"conditions": conditions, "observed_generation": generation})
    told = (*events, *transitions(i.job.status.conditions, aspects))
    return Decision(status, remove=without(i.workloads, keep), events=told, **rest)  # type: ignore[arg-type]


def _logs_of(i: TrainingInput, attempts: tuple[Attempt, ...]) -> tuple[str, ...]:
    """The last two attempts' workloads stay, so that their logs can be read."""
    return tuple(trainer_name(i.job, attempt.number) for attempt in attempts[-2:])


def _accepted(spec: TrainingJobSpec) -> dict[str, Aspect]:
    suspended = (
        holds(Reason.SUSPENDED, "spec.suspend is set: set it to false to go on")
        if spec.suspend
        else waits(Reason.ACTIVE)
    )
    return {On.ACCEPTED: holds(Reason.ACCEPTED, "the spec is valid"), On.SUSPENDED: suspended}


def _succeeded(i: TrainingInput, tries: Tries, result: TrainingResult) -> Decision[TrainingJobStatus]:
    model, evaluation = result.model, result.evaluation
    if evaluation is None:
        gate = holds(Reason.NO_GATE, "nothing is evaluated: the version passes as it is")
    elif evaluation.gate_passed:
        gate = holds(Reason.GATE_PASSED, evaluation.gate_message)
    else:
        gate = fails(Reason.GATE_NOT_PASSED, evaluation.gate_message)
    version = f"{model.name} version {model.version}"
    aspects = {
        **_accepted(i.job.spec),
        On.SUSPENDED: waits(Reason.FINISHED),
        On.TRAINED: holds(Reason.TRAINED, f"{result.steps} steps"),
        On.GATE_PASSED: gate,
        On.REGISTERED: holds(Reason.REGISTERED, f"{version}{f', alias {model.alias}' if model.alias else ''}"),
        On.LINEAGE_RECORDED: holds(Reason.RECORDED, f"run {result.run_id} in MLflow"),
        On.SUCCEEDED: holds(Reason.SUCCEEDED, f"{version} is registered; its gate has {'' if gate.status == 'True' else 'not '}passed"),
    }  # fmt: skip
    status = i.job.status.model_copy(
        update={
            "phase": "Succeeded",
            "attempts": tries.attempts,
            "completion_time": timestamp(i.now),
            "progress": None,
            "run_id": result.run_id,
            "run_url": i.run_url(result.experiment_id, result.run_id),
            "evaluation": evaluation,
            "model": model,
        }
    )
    return _decision(i, status, aspects, (), keep=_logs_of(i, tries.attempts))


def _failed(
    i: TrainingInput, tries: Tries, why: tuple[str, str], events: tuple[Event, ...]
) -> Decision[TrainingJobStatus]:
    reason, message = why
    if tries.open:
        tries = tries_of.stopped(tries, i.now, reason, message)
    trouble = reported(reason, message)
    aspects = {
        **_accepted(i.job.spec),
        On.SUSPENDED: waits(Reason.FINISHED),
        On.TRAINED: trouble,
        On.GATE_PASSED: waits(Reason.NOT_TRAINED),
        On.REGISTERED: waits(Reason.NOT_TRAINED),
        On.SUCCEEDED: trouble,
    }
    update = {
        "phase": "Failed",
        "attempts": tries.attempts,
        "completion_time": timestamp(i.now),
        "progress": None,
    }
    return _finished(i, i.job.status.model_copy(update=update), events, aspects)


def _finished(
    i: TrainingInput, status: TrainingJobStatus, events: tuple[Event, ...], aspects: dict[str, Aspect] | None = None
) -> Decision[TrainingJobStatus]:
    """What is left to do for a job that never runs again: the run of one that failed is ended in MLflow."""
    aspects = aspects or {}
    record = None
    if status.model is None and not is_true(status.conditions, On.LINEAGE_RECORDED):
        record = EndRecord(owner_of(KIND, i.job.metadata), RunEnd.FAILED)
        state = i.records.of(record.key)
        aspects[On.LINEAGE_RECORDED] = lineage_aspect(i.records, record.key)
        if isinstance(state, Recorded):
            record = None
            status = status.model_copy(update={"run_id": state.run_id, "run_url": state.run_url})
    return _decision(i, status, aspects, events, keep=_logs_of(i, status.attempts), record=record)


def _suspended(i: TrainingInput, tries: Tries, events: tuple[Event, ...]) -> Decision[TrainingJobStatus]:
    if tries.open:
        tries = tries_of.stopped(tries, i.now, tries_of.SUSPENDED, "goes on from its last checkpoint")
    on_hold = waits(Reason.SUSPENDED, "spec.suspend is set: set it to false to go on")
    aspects = {**_accepted(i.job.spec), On.TRAINED: on_hold, On.SUCCEEDED: open_yet(on_hold)}
    status = i.job.status.model_copy(
        update={"phase": "Suspended", "attempts": _bounded(tries.attempts), "progress": None}
    )
    keep = tuple(trainer_name(i.job, attempt.number) for attempt in _failures(tries.attempts)[-2:])
    return _decision(i, status, aspects, events, keep=keep)


def _bounded(attempts: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    forgotten = [attempt for attempt in attempts if attempt.reason == tries_of.SUSPENDED][:-MAX_SUSPENSIONS]
    return tuple(attempt for attempt in attempts if attempt not in forgotten)


def _goes_on(i: TrainingInput, tries: Tries, events: tuple[Event, ...]) -> Decision[TrainingJobStatus]:
    failures = _failures(tries.attempts)
    last = tries.attempts[-1] if tries.attempts else None
    if tries.open is None and last in failures:
        due = parse_timestamp(str(failures[-1].end_time)).timestamp() + i.timing.retry_delay(len(failures))
        wait = due - i.now.timestamp()
        if wait > 0:
            return _waits_to_retry(i, tries, failures[-1], wait, events)
    if tries.open is None:
        tries = tries_of.begun(tries.attempts, len(failures) + 1, i.now)
        events = (
            *events,
            normal(Reason.ATTEMPT_STARTED, f"attempt {len(failures) + 1} of at most {i.job.spec.backoff_limit + 1}"),
        )
    assert tries.open is not None
    left = _time_left(i.job.spec, tries.attempts)
    seen = tries.seen
    trained = _running(seen)
    aspects = {**_accepted(i.job.spec), On.TRAINED: trained, On.SUCCEEDED: open_yet(trained)}
    status = i.job.status.model_copy(
        update={
            "phase": "Training" if seen and seen.state is State.RUNNING else "Pending",
            "attempts": tries.attempts,
            "start_time": i.job.status.start_time or timestamp(i.now),
            "progress": seen.progress if seen else None,
        }
    )
    record = None
    # with something done it has loaded its model, and opened its run before
    if status.run_id is None and status.progress and status.progress.percent:
        record = RunRecord(owner_of(KIND, i.job.metadata))
        state = i.records.of(record.key)
        if isinstance(state, Recorded):
            record = None
            status = status.model_copy(update={"run_id": state.run_id, "run_url": state.run_url})
    workload = trainer(i.job, tries.open.number, i.manifest(), None if left is None else max(1, int(left)))
    keep = _logs_of(i, tries.attempts)
    return _decision(i, status, aspects, events, keep=keep, workloads=(workload,), record=record)


def _running(seen: WorkloadStatus | None) -> Aspect:
    if seen is not None and seen.reason:
        return reported(seen.reason, seen.message)
    if seen is None or seen.state is State.PENDING:
        return waits(Reason.STARTING, "the training is being started")
    return waits(Reason.TRAINING, "the training runs")


def _waits_to_retry(
    i: TrainingInput, tries: Tries, last: Attempt, wait: float, events: tuple[Event, ...]
) -> Decision[TrainingJobStatus]:
    left = f"attempt {last.number} of at most {i.job.spec.backoff_limit + 1} ended with {last.reason}: {last.message}"
    trained = Aspect(ConditionStatus.FALSE, last.reason, left)
    aspects = {**_accepted(i.job.spec), On.TRAINED: trained, On.SUCCEEDED: open_yet(trained)}
    update = {"phase": "Retrying", "attempts": tries.attempts, "progress": None}
    status = i.job.status.model_copy(update=update)
    return _decision(i, status, aspects, events, keep=_logs_of(i, tries.attempts), requeue_after=wait)
