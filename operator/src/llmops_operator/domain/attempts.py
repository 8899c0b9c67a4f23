"""How tries at a piece of work end, and what that means: done, the user's mistake, or another try."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llmops_api.programs import ExitCode
from llmops_api.reasons import FailureReason, Reason
from llmops_api.v1alpha1.meta import Attempt
from llmops_operator.domain.timing import parse_timestamp, timestamp
from llmops_operator.domain.workload import State, WorkloadStatus

COMPLETED = Reason.COMPLETED
SUSPENDED = Reason.SUSPENDED
SPEC_CHANGED = Reason.SPEC_CHANGED
DEADLINE_EXCEEDED = Reason.DEADLINE_EXCEEDED
OUT_OF_MEMORY = FailureReason.OUT_OF_MEMORY
NO_RESULT = Reason.NO_RESULT

STOPPED_BY_US = (SUSPENDED, SPEC_CHANGED)
KILLED = (ExitCode.OUT_OF_MEMORY, -9)
"""SIGKILL, as a shell and as Python tell it."""


def failed(attempt: Attempt) -> bool:
    """Whether an attempt ended badly by itself."""
    return attempt.end_time is not None and attempt.reason not in (COMPLETED, *STOPPED_BY_US)


def final(attempt: Attempt) -> bool:
    """Whether another attempt at the same would end the same."""
    return attempt.exit_code == ExitCode.USER_ERROR or attempt.reason == DEADLINE_EXCEEDED


def seconds(attempt: Attempt) -> float:
    """How long an attempt has worked; one that goes on has not been counted yet."""
    if attempt.end_time is None:
        return 0.0
    return (parse_timestamp(attempt.end_time) - parse_timestamp(attempt.start_time)).total_seconds()


def closed(attempt: Attempt, end: datetime, reason: str, message: str = "", *, exit_code: int | None = None) -> Attempt:
    """The attempt, ended."""
    end = max(end, parse_timestamp(attempt.start_time))  # a cluster's clocks differ, and tell whole seconds
    return attempt.model_copy(
        update={"end_time": timestamp(end), "reason": reason, "message": message[:4096], "exit_code": exit_code}
    )


@dataclass(frozen=True)
class Tries:
    """The attempts of an object after a look at the workloads.

    `open` is the one that runs (the last of `attempts`) and `seen` its workload, `ended` the one that was just found ended, and
    `result` what it left.
    """

    attempts: tuple[Attempt, ...]
    open: Attempt | None = None
    seen: WorkloadStatus | None = None
    ended: Attempt | None = None
    result: Any = None


def look(
    attempts: tuple[Attempt, ...],
    workloads: Mapping[str, WorkloadStatus],
    now: datetime,
    *,
    name: Callable[[int], str],
    parse: Callable[[Mapping[str, Any]], Any],
    lower: str,
) -> Tries:
    """Close the open attempt when its workload has ended. It began when its program was started, and started last: neither
    waiting in a queue nor a daemon that was stopped is work. `parse` reads a result and raises `ValueError`; `lower` says
    what needs less memory.
    """
    if not attempts or attempts[-1].end_time is not None:
        return Tries(attempts)
    running = attempts[-1]
    seen = workloads.get(name(running.number))
    if seen is not None and seen.started_at is not None:
        running = _began(running, parse_timestamp(seen.started_at))
    if seen is None or seen.state in (State.PENDING, State.RUNNING):
        return Tries((*attempts[:-1], running), running, seen)
    if seen.ended_at is not None:
        now = parse_timestamp(seen.ended_at)
    result = None
    code = seen.exit_code
    if seen.state is State.SUCCEEDED:
        try:
            result = parse(seen.result or {})
            ended = closed(running, now, COMPLETED, exit_code=ExitCode.DONE)
        except ValueError as error:
            ended = closed(running, now, NO_RESULT, f"the program ended well but left no readable result: {error}")
    elif code in KILLED and seen.reason != DEADLINE_EXCEEDED:
        message = f"killed (SIGKILL), most often because memory ran out: {lower}. {seen.message}".strip()
        ended = closed(running, now, OUT_OF_MEMORY, message, exit_code=code)
    else:
        told = seen.message or f"the program ended with exit code {code} and said nothing: read its log"
        ended = closed(running, now, seen.reason or f"Exit{code}", told, exit_code=code)
    return Tries((*attempts[:-1], ended), ended=ended, result=result)


def stopped(tries: Tries, now: datetime, reason: str, message: str = "") -> Tries:
    """The open attempt, ended by us."""
    assert tries.open is not None
    waited = tries.seen is None or tries.seen.started_at is None
    ended = closed(_began(tries.open, now) if waited else tries.open, now, reason, message)
    return Tries((*tries.attempts[:-1], ended), ended=ended)


def _began(attempt: Attempt, moment: datetime) -> Attempt:
    start = max(moment, parse_timestamp(attempt.start_time))
    return attempt.model_copy(update={"start_time": timestamp(start)})


def begun(attempts: tuple[Attempt, ...], number: int, now: datetime) -> Tries:
    """With one attempt more, which runs from now on."""
    attempt = Attempt(number=number, start_time=timestamp(now))
    return Tries((*attempts, attempt), open=attempt)
