"""How one replica is doing, how an ended program is explained, and how several replicas add up to a workload's status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from llmops_api.programs import ExitCode, Failure
from llmops_api.reasons import FailureReason, Reason
from llmops_api.v1alpha1.meta import Progress
from llmops_operator.backends.local.durable import read_json
from llmops_operator.backends.local.replica_folder import Exit, ReplicaFolder
from llmops_operator.domain.workload import State, WorkloadStatus

TOLD = 1500
"""So much of a program's last words goes into a status."""


@dataclass(frozen=True)
class ReplicaStatus:
    """One replica. `reason` stays empty while it only takes its time, and names trouble. `endpoint` is set while it is ready and listens; `report_number` grows with each change of `report`."""

    state: State = State.PENDING
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    started_at: str | None = None
    ended_at: str | None = None
    ready: bool = False
    endpoint: str | None = None
    restarts: int = 0
    progress: Progress | None = None
    result: Mapping[str, Any] | None = None
    report: Mapping[str, Any] | None = None
    report_number: int = 0


@dataclass(frozen=True)
class Cause:
    """Why a program ended badly: a reason for machines, a sentence for people."""

    reason: str
    message: str


LOST = Cause(
    Reason.LOST,
    "the program and its supervisor were killed together, or the machine went down: how far it came is not known",
)


def explain(folder: ReplicaFolder, ended: Exit | None, deadline_seconds: int | None) -> Cause:
    """Why a program that did not end well ended: what it says itself, else its exit code and its last lines."""
    if ended is None:
        return LOST
    last = _last_words(ended.lines)
    if ended.why == "deadline":
        return Cause(Reason.DEADLINE_EXCEEDED, f"it ran longer than {deadline_seconds} s{last}")
    if ended.why == "memory":
        launch = folder.launch()
        used, allowed = ended.memory_used or 0, (launch and launch.memory_bytes) or 0
        return Cause(
            FailureReason.OUT_OF_MEMORY,
            f"it had {_mebibytes(used)} resident and compute.resources.memory allows {_mebibytes(allowed)}: "
            f"raise it, or lower what the work needs (batchSize, maxLength, maxModelLen){last}",
        )
    if (record := read_json(folder.result)) is not None:
        try:
            failure = Failure.model_validate(record)
        except ValidationError:
            pass
        else:
            return Cause(failure.reason, failure.message)
    if ended.out_of_memory or (ended.signal is None and ended.code == ExitCode.OUT_OF_MEMORY):
        return Cause(FailureReason.OUT_OF_MEMORY, f"the kernel ended it because memory ran out{last}")
    if ended.signal is not None:
        return Cause(Reason.KILLED, f"ended by signal {ended.signal}{last}")
    return Cause(Reason.ERROR, f"ended with exit code {ended.code}{last}")


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.0f}Mi"


def _last_words(lines: Sequence[str]) -> str:
    return f": {lines[-1].strip()[:TOLD]}" if lines else " and wrote nothing"


def read_progress(folder: ReplicaFolder) -> Progress | None:
    """The sample in the progress file; None when there is none that can be read."""
    record = read_json(folder.progress)
    try:
        return None if record is None else Progress.model_validate(record)
    except ValidationError:
        return None


def combine(replicas: Sequence[ReplicaStatus]) -> WorkloadStatus:
    """The status of a workload.

    It runs when any of its replicas does. Reason and message are those of the first that is not well. The report is that of
    the ready replica whose report has been the same for longest: when all are to take a change over, it is the last to.
    """
    if not replicas:
        return WorkloadStatus(State.PENDING)
    ready = [replica for replica in replicas if replica.ready]
    unwell = next((replica for replica in replicas if not replica.ready), replicas[0])
    shown = next((replica for replica in replicas if replica.state is State.RUNNING), unwell)
    answering = [replica for replica in ready or replicas if replica.report is not None]
    reporting = min(answering, key=lambda replica: replica.report_number, default=None)
    return WorkloadStatus(
        state=shown.state,
        reason=unwell.reason,
        message=unwell.message,
        exit_code=shown.exit_code,
        started_at=shown.started_at,
        ended_at=shown.ended_at,
        ready_replicas=len(ready),
        endpoints=tuple(replica.endpoint for replica in ready if replica.endpoint),
        restarts=sum(replica.restarts for replica in replicas),
        progress=shown.progress,
        result=shown.result,
        report=reporting.report if reporting else None,
    )
