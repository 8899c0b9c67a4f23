"""What is to be done next with a replica, read from the records in its folder: another launch, or nothing any more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from llmops_api.reasons import Reason
from llmops_operator.backends.local.launching import Launching
from llmops_operator.backends.local.replica_folder import Exit, Launch, ReplicaFolder
from llmops_operator.backends.local.replica_status import Cause, explain
from llmops_operator.domain.workload import Lifecycle, Workload

FIRST_DELAY_SECONDS = 1.0
LAST_DELAY_SECONDS = 60.0
RAN_WELL_SECONDS = 60.0
"""A program that ran this long before it ended is started anew as if it had never failed."""


@dataclass(frozen=True)
class Start:
    """Make this launch, `delay_seconds` after the end of the one before, which ended badly because of `cause`, if of anything."""

    launch: Launch
    delay_seconds: float = 0.0
    cause: Cause | None = None
    ended: Exit | None = None


@dataclass(frozen=True)
class Finished:
    """A program that completes has ended. None when it was killed together with its supervisor."""

    ended: Exit | None


def next_launch(folder: ReplicaFolder, workload: Workload, launching: Launching) -> Start | Finished:
    """What is to be done next, while nothing runs."""
    digest = launching.digest(workload)
    last = folder.launch()
    if last is None:
        return Start(launching.launch(workload, run=1))
    again = launching.launch(workload, run=last.run + 1, after=last)
    if folder.process(last.run) is None:
        # It was decided on, and perhaps not begun. The same number again: it begins once at most.
        return Start(last if last.digest == digest else again)
    ended = folder.exit(last.run)
    stopped = ended is not None and ended.why == "stopped"
    if workload.lifecycle is Lifecycle.COMPLETES:
        # One that was stopped while it worked goes on: the daemon was stopped, or its files have changed.
        return Start(again) if stopped and ended is not None and ended.code != 0 else Finished(ended)
    if stopped or last.digest != digest:
        return Start(again)
    return _restart(folder, again, last, ended)


def back_off(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(LAST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 30))


def _restart(folder: ReplicaFolder, again: Launch, last: Launch, ended: Exit | None) -> Start:
    """A long-running program has ended by itself: again, the later the more often it has in a row."""
    failures = 1 if ended and _seconds(ended) >= RAN_WELL_SECONDS else last.failures + 1
    again = replace(again, restarts=last.restarts + 1, failures=failures)
    if ended and any("address already in use" in line.lower() for line in ended.lines):
        again = replace(again, port=None)
    cause = explain(folder, ended, last.deadline_seconds)
    reason = Reason.CRASH_LOOP_BACK_OFF if cause.reason == Reason.ERROR else cause.reason
    delay = back_off(failures)
    told = f"{cause.message} (restart {again.restarts} comes {delay:g} s after that)"
    return Start(again, delay, Cause(reason, told), ended)


def _seconds(ended: Exit) -> float:
    return (datetime.fromisoformat(ended.ended_at) - datetime.fromisoformat(ended.started_at)).total_seconds()
