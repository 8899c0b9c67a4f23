"""One replica of a workload, kept as it is wanted: started, adopted, watched, started anew, stopped.

What to do next is read from the records in its folder and not remembered, so that a daemon that was killed at any point is
followed by one that goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from llmops_operator.backends.local.durable import read_json
from llmops_operator.backends.local.environment import SecretMissing
from llmops_operator.backends.local.free_ports import HOST, NoFreePort
from llmops_operator.backends.local.launching import Launching
from llmops_operator.backends.local.readiness import PATIENCE, Answer, ask
from llmops_operator.backends.local.replica_folder import Exit, Launch, ReplicaFolder
from llmops_operator.backends.local.replica_status import ReplicaStatus, explain, read_progress
from llmops_operator.backends.local.rotated_log import last_lines
from llmops_operator.backends.local.supervision import Supervision, sweep
from llmops_operator.domain.workload import Lifecycle, State, Workload

log = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 1.0
LAST_DELAY_SECONDS = 60.0
RAN_WELL_SECONDS = 60.0
"""A program that ran this long before it ended is started anew as if it had never failed."""

LOOK_SECONDS = 0.5
"""How often progress files, missing secrets and the like are looked at."""

_report_numbers = itertools.count(1)


@dataclass(frozen=True)
class Start:
    """What to do next: this launch, after so many seconds."""

    launch: Launch
    delay_seconds: float = 0.0


class Replica:
    """Runs from `run` until `stop`. `changed` is called whenever `status` has."""

    def __init__(
        self, folder: ReplicaFolder, workload: Workload, launching: Launching, changed: Callable[[], None]
    ) -> None:
        self.folder = folder
        self.status = ReplicaStatus()
        self._workload, self._launching, self._changed = workload, launching, changed
        self._stopping = False
        self._wake = asyncio.Event()

    def update(self, workload: Workload) -> None:
        """Take over what is wanted now."""
        self._workload = workload
        self._wake.set()

    def wake(self) -> None:
        """Look again at everything."""
        self._wake.set()

    def stop(self) -> None:
        """Have `run` end the program and return."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Keep the replica as it is wanted until it is stopped or, when it completes, has ended."""
        faults = 0
        while True:
            try:
                return await self._keep()
            except Exception as error:  # a fault of ours, or a folder that cannot be read: the others go on
                log.exception("%s", self.folder.root)
                self._set(reason="BackendFault", message=f"{type(error).__name__}: {error}; it is tried again")
            if self._stopping:
                return None
            await self._sleep(_delay(faults))
            faults += 1

    async def _keep(self) -> None:
        supervision = await Supervision.find(self.folder)
        if supervision is None:
            await asyncio.to_thread(sweep, self.folder)
        else:
            self._adopt(supervision.launch)
        while True:
            if supervision is None:
                supervision = await self._start()
                if supervision is None:
                    return
            ended = await self._attend(supervision)
            if supervision.launch.port is not None:
                self._launching.ports.give_back(supervision.launch.port)
            supervision = None
            if self._stopping:
                if ended is not None and ended.why is None and self._workload.lifecycle is Lifecycle.COMPLETES:
                    self._finish(ended)
                return

    def _adopt(self, launch: Launch) -> None:
        if launch.port is not None:
            self._launching.ports.keep(launch.port)
        process = self.folder.process(launch.run) or {}
        self._set(state=State.RUNNING, started_at=process.get("started_at"), restarts=launch.restarts)

    # Starting

    async def _start(self) -> Supervision | None:
        """Start what is to be started next, when it is time and as soon as it can be. None when nothing is (any more)."""
        trouble = 0
        while not self._stopping:
            self._wake.clear()
            start = self._next()
            if start is None:
                return None
            if start.delay_seconds > 0:
                await self._sleep(start.delay_seconds)
                continue
            try:
                supervision = await asyncio.to_thread(self._launching.start, self.folder, self._workload, start.launch)
            except SecretMissing as error:
                self._set(state=State.PENDING, reason="SecretMissing", message=str(error))
                await self._sleep(LOOK_SECONDS)
            except (NoFreePort, OSError) as error:
                reason, message = _cannot_start(error)
                self._set(state=State.PENDING, reason=reason, message=message)
                await self._sleep(_delay(trouble))
                trouble += 1
            else:
                self._set(
                    state=State.RUNNING,
                    started_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                    ended_at=None,
                    exit_code=None,
                    progress=None,
                    result=None,
                    report=None,
                    restarts=supervision.launch.restarts,
                    reason=self.status.reason if supervision.launch.failures else "",
                    message=self.status.message if supervision.launch.failures else "",
                )
                return supervision
        return None

    def _next(self) -> Start | None:
        """What the records say is to be done; None when the work is done, and `status` says how it ended."""
        digest = self._launching.digest(self._workload)
        last = self.folder.launch()
        if last is None:
            return Start(self._launching.launch(self._workload, run=1))
        again = self._launching.launch(self._workload, run=last.run + 1, after=last)
        if self.folder.process(last.run) is None:
            # It was decided on, and perhaps not begun. The same number again: it begins once at most.
            return Start(last if last.digest == digest else again)
        ended = self.folder.exit(last.run)
        stopped = ended is not None and ended.why == "stopped"
        if self._workload.lifecycle is Lifecycle.COMPLETES:
            if stopped and ended is not None and ended.code != 0:
                return Start(again)  # the daemon was stopped while it worked, or something has changed: it goes on
            self._finish(ended)
            return None
        if stopped or last.digest != digest:
            return Start(again)
        return self._restart(again, last, ended)

    def _restart(self, again: Launch, last: Launch, ended: Exit | None) -> Start:
        """A long-running program has ended by itself: again, the later the more often it has in a row."""
        failures = 1 if ended and _seconds(ended.started_at, ended.ended_at) >= RAN_WELL_SECONDS else last.failures + 1
        again = replace(again, restarts=last.restarts + 1, failures=failures)
        if ended and any("address already in use" in line.lower() for line in ended.lines):
            again = replace(again, port=None)
        delay = _delay(failures - 1)
        if ended:
            delay -= _seconds(ended.ended_at, datetime.now(UTC).isoformat())
        cause = explain(self.folder, ended, last.deadline_seconds)
        self._set(
            state=State.PENDING,
            reason="CrashLoopBackOff" if cause.reason == "Error" else cause.reason,
            message=f"{cause.message}; it is started anew for the {again.restarts}. time, {_delay(failures - 1):g} s after it ended",
            exit_code=ended.code if ended else None,
            ended_at=ended.ended_at if ended else None,
            ready=False,
            endpoint=None,
            restarts=last.restarts,
        )
        return Start(again, max(0.0, delay))

    def _finish(self, ended: Exit | None) -> None:
        result = read_json(self.folder.result)
        progress = read_progress(self.folder)
        if ended is not None and ended.code == 0:
            self._set(
                state=State.SUCCEEDED, reason="", message="", exit_code=0, result=result, progress=progress,
                started_at=ended.started_at, ended_at=ended.ended_at, ready=False,
            )  # fmt: skip
            return
        last = self.folder.launch()
        cause = explain(self.folder, ended, last.deadline_seconds if last else None)
        process = (self.folder.process(last.run) if last else None) or {}
        self._set(
            state=State.FAILED,
            reason=cause.reason,
            message=cause.message,
            exit_code=ended.code if ended else None,
            progress=progress,
            started_at=process.get("started_at"),
            ended_at=ended.ended_at if ended else None,
            ready=False,
        )

    # Watching

    async def _attend(self, supervision: Supervision) -> Exit | None:
        """Watch the program to its end, which comes by itself, or because it is not wanted (so) any more."""
        launch = supervision.launch
        waiting = asyncio.create_task(supervision.wait())
        observing = [asyncio.create_task(self._watch_progress()), asyncio.create_task(self._watch_readiness(launch))]
        try:
            while not waiting.done():
                self._wake.clear()
                if self._stopping or launch.digest != self._launching.digest(self._workload):
                    waiting.cancel()
                    await asyncio.wait([waiting])
                    return await supervision.stop()
                delay = await self._replace_live_files()
                woken = asyncio.create_task(self._wake.wait())
                await asyncio.wait([waiting, woken], timeout=delay, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
            return waiting.result()
        finally:
            for task in (waiting, *observing):
                task.cancel()
            await asyncio.gather(waiting, *observing, return_exceptions=True)
            self._set(ready=False, endpoint=None)

    async def _replace_live_files(self) -> float | None:
        """Replace them where they differ. Seconds after which to try again when that failed."""
        try:
            await asyncio.to_thread(self.folder.write_config, dict(self._workload.live_files))
        except OSError as error:
            reason, message = _cannot_start(error)
            self._set(reason=reason, message=message)
            return LAST_DELAY_SECONDS / 10
        return None

    async def _watch_progress(self) -> None:
        """Files have no portable notification: a look at two numbers of the file's entry, twice a second."""
        seen = None
        while True:
            with contextlib.suppress(OSError):
                entry = self.folder.progress.stat()
                if (entry.st_ino, entry.st_mtime_ns) != seen:
                    seen = (entry.st_ino, entry.st_mtime_ns)
                    self._set(progress=read_progress(self.folder) or self.status.progress)
            await asyncio.sleep(LOOK_SECONDS)

    async def _watch_readiness(self, launch: Launch) -> None:
        if self._workload.lifecycle is Lifecycle.COMPLETES:
            return
        base_url = None if launch.port is None else f"http://{HOST}:{launch.port}"
        unanswered = 0
        while True:
            readiness = self._workload.readiness
            if readiness is None or base_url is None:
                self._set(state=State.RUNNING, ready=True, endpoint=base_url, reason="", message="")
                return
            answer = await ask(self._launching.http, base_url, readiness)
            unanswered = 0 if answer.answered else unanswered + 1
            self._take(answer, base_url, patient=unanswered < PATIENCE)
            await asyncio.sleep(readiness.period_seconds)

    def _take(self, answer: Answer, base_url: str, *, patient: bool) -> None:
        if answer.ready:
            self._set(state=State.RUNNING, ready=True, endpoint=base_url, reason="", message="", report=answer.report)
        elif answer.answered:
            self._set(
                state=State.RUNNING, ready=False, endpoint=None, reason="", message=answer.message, report=answer.report
            )
        elif self.status.ready and not patient:
            self._set(ready=False, endpoint=None, reason="NotAnswering", message=answer.message)
        elif not self.status.ready and not self.status.reason:
            lines = last_lines(self.folder.log)
            self._set(
                message=f"{answer.message}; it last wrote: {lines[-1].strip()[:500]}" if lines else answer.message
            )

    def _set(self, **changes: object) -> None:
        status = replace(self.status, **changes)  # type: ignore[arg-type]
        if status.report != self.status.report:
            status = replace(status, report_number=next(_report_numbers))
        if status != self.status:
            self.status = status
            self._changed()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)


def _delay(failures: int) -> float:
    return min(LAST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(failures, 30))


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _cannot_start(error: Exception) -> tuple[str, str]:
    if isinstance(error, NoFreePort):
        return "NoFreePort", str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "its folder"
        return "DiskFull", f"{where}: no space left on the disk; free some, it goes on by itself"
    return "CannotStart", f"{error}; it is tried again"
