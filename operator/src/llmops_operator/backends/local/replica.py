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
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from llmops_api.reasons import FailureReason, Reason
from llmops_operator.backends.local.disk import FREE_SOME, says_full
from llmops_operator.backends.local.durable import read_json
from llmops_operator.backends.local.environment import SecretMissing
from llmops_operator.backends.local.free_ports import HOST, NoFreePort
from llmops_operator.backends.local.launching import Launching
from llmops_operator.backends.local.next_launch import Finished, Start, back_off, next_launch
from llmops_operator.backends.local.readiness import PATIENCE, Answer, ask
from llmops_operator.backends.local.replica_folder import Exit, Launch, ReplicaFolder
from llmops_operator.backends.local.replica_status import ReplicaStatus, explain, read_progress
from llmops_operator.backends.local.rotated_log import last_lines
from llmops_operator.backends.local.supervision import Supervision, sweep
from llmops_operator.domain.timing import timestamp
from llmops_operator.domain.workload import Lifecycle, State, Workload

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often progress files, missing secrets and the like are looked at."""

LIVE_FILES_SECONDS = 5.0
"""After which a live file is tried again that could not be written."""

_report_numbers = itertools.count(1)


class Replica:
    """Runs from `run` until `stop`. `changed` is called whenever `status` has."""

    def __init__(
        self,
        folder: ReplicaFolder,
        workload: Workload,
        launching: Launching,
        changed: Callable[[], None],
        others_serve: Callable[[], bool],
    ) -> None:
        self.folder = folder
        self.status = ReplicaStatus()
        self._workload, self._launching, self._changed, self._others_serve = workload, launching, changed, others_serve
        self._stopping = False
        self._wake = asyncio.Event()
        self._waiting_for, self._ended_at = 0, 0.0

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
                self._set(reason=Reason.BACKEND_FAULT, message=f"{type(error).__name__}: {error}; it is tried again")
            if self._stopping:
                return None
            faults += 1
            await self._sleep(back_off(faults))

    async def _keep(self) -> None:
        unbegun = 0
        supervision = await Supervision.find(self.folder)
        if supervision is None:
            await asyncio.to_thread(sweep, self.folder)
        else:
            self._adopt(supervision.launch)
            log.info("%s: adopted", self.folder.root)
        while True:
            if supervision is None:
                supervision = await self._start()
                if supervision is None:
                    return
            launch = supervision.launch
            ended = await self._attend(supervision)
            log.info("%s: %s", self.folder.root, f"ended with exit code {ended.code}" if ended else "is gone")
            if launch.port is not None:
                self._launching.ports.give_back(launch.port)
            supervision = None
            if self._stopping:
                if ended is not None and ended.why is None and self._workload.lifecycle is Lifecycle.COMPLETES:
                    self._finish(ended)
                return
            if self.folder.process(launch.run) is None:
                unbegun += 1
                reason, message = _unbegun(self.folder)
                self._set(state=State.PENDING, reason=reason, message=message)
                await self._sleep(back_off(unbegun))

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
            start = next_launch(self.folder, self._workload, self._launching)
            if isinstance(start, Finished):
                self._finish(start.ended)
                return None
            if (due := self._due(start)) > 0:
                await self._sleep(due)
                continue
            try:
                supervision = await asyncio.to_thread(self._launching.start, self.folder, self._workload, start.launch)
            except SecretMissing as error:
                self._set(state=State.PENDING, reason=Reason.SECRET_MISSING, message=str(error))
                await self._sleep(LOOK_SECONDS)
            except (NoFreePort, OSError) as error:
                reason, message = _cannot_start(error)
                self._set(state=State.PENDING, reason=reason, message=message)
                trouble += 1
                await self._sleep(back_off(trouble))
            else:
                log.info("%s: started", self.folder.root)
                self._set(
                    state=State.RUNNING,
                    started_at=timestamp(datetime.now(UTC)),
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

    def _due(self, start: Start) -> float:
        """Seconds until a launch is to be made. Waiting for it is told; the end of a lost program counts from when it was missed."""
        now = asyncio.get_running_loop().time()
        if self._waiting_for != start.launch.run:
            self._waiting_for, self._ended_at = start.launch.run, now
            if start.ended:
                ago = datetime.now(UTC) - datetime.fromisoformat(start.ended.ended_at)
                self._ended_at -= max(0.0, ago.total_seconds())
        if start.cause:
            self._set(
                state=State.PENDING,
                reason=start.cause.reason,
                message=start.cause.message,
                exit_code=start.ended.code if start.ended else None,
                ended_at=start.ended.ended_at if start.ended else None,
                report=None,
            )
        return self._ended_at + start.delay_seconds - now if start.delay_seconds else 0.0

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
        ended_at = ended.ended_at if ended else (sign := self.folder.last_sign()) and timestamp(sign)
        self._set(
            state=State.FAILED,
            reason=cause.reason,
            message=cause.message,
            exit_code=ended.code if ended else None,
            progress=progress,
            started_at=process.get("started_at"),
            ended_at=ended_at,
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
                if self._stopping or self._outdated(launch):
                    await self._end((waiting, *observing))
                    return await supervision.stop()
                delay = await self._replace_live_files()
                woken = asyncio.create_task(self._wake.wait())
                await asyncio.wait([waiting, woken], timeout=delay, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
            return waiting.result()
        finally:
            await self._end((waiting, *observing))

    def _outdated(self, launch: Launch) -> bool:
        """Whether the program is to be started anew: one that serves only when all others do, so that one of several always does."""
        changed = launch.digest != self._launching.digest(self._workload)
        return changed and (not self.status.ready or self._others_serve())

    async def _end(self, tasks: tuple[asyncio.Task[Any], ...]) -> None:
        for task in tasks:
            task.cancel()
        self._set(ready=False, endpoint=None)
        await asyncio.wait(tasks)

    async def _replace_live_files(self) -> float | None:
        """Replace them where they differ. Seconds after which to try again when that failed."""
        try:
            await asyncio.to_thread(self.folder.write_config, dict(self._workload.live_files))
        except OSError as error:
            reason, message = _cannot_start(error)
            self._set(reason=reason, message=message)
            return LIVE_FILES_SECONDS
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
            self._set(ready=False, endpoint=None, reason=Reason.NOT_ANSWERING, message=answer.message)
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


def _unbegun(folder: ReplicaFolder) -> tuple[str, str]:
    """The supervisor has ended before it started the program."""
    said = folder.supervisor_log()
    if os.strerror(errno.ENOSPC) in said or os.strerror(errno.EDQUOT) in said:
        return FailureReason.DISK_FULL, f"{folder.root}: {FREE_SOME}"
    return (
        Reason.CANNOT_START,
        f"its supervisor ended at once: {said.strip()[-500:] or 'it said nothing'}; it is tried again",
    )


def _cannot_start(error: Exception) -> tuple[str, str]:
    if isinstance(error, NoFreePort):
        return Reason.NO_FREE_PORT, str(error)
    if says_full(error):
        return FailureReason.DISK_FULL, f"{getattr(error, 'filename', None) or 'its folder'}: {FREE_SOME}"
    return Reason.CANNOT_START, f"{error}; it is tried again"
