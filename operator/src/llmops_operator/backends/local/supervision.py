"""The daemon's side of a supervisor: start one, find one that an earlier daemon has started, wait for its end, stop it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from llmops_operator.backends.local.process_table import boot_id, carrying, members, start_ticks
from llmops_operator.backends.local.replica_folder import Exit, Launch, ReplicaFolder
from llmops_operator.backends.local.supervisor import ALREADY_STARTED

POLL_SECONDS = 0.1
BEGIN_SECONDS = 30.0
"""How long a supervisor may take from its lock to its first record."""

SWEEP_SECONDS = 10.0
STOP_MARGIN_SECONDS = 15.0
"""What a supervisor may take beyond the grace to kill, reap and write."""


class Supervision:
    """A supervisor that lives, own child or not. One at a time waits for it or stops it."""

    def __init__(self, folder: ReplicaFolder, launch: Launch, pid: int, child: subprocess.Popen[bytes] | None) -> None:
        self.launch = launch
        self._folder, self._pid, self._child = folder, pid, child
        self._stopping = False

    @classmethod
    def start(cls, folder: ReplicaFolder, launch: Launch, env: Mapping[str, str]) -> Supervision:
        """Start a launch that has been written. Raises `OSError`."""
        with (folder.run / "supervisor.log").open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "llmops_operator.backends.local.supervisor", str(folder.root)],
                cwd=folder.root,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return cls(folder, launch, child.pid, child)

    @classmethod
    async def find(cls, folder: ReplicaFolder) -> Supervision | None:
        """The supervisor that lives in the folder, if any. One that has only just begun is waited for."""
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                while folder.is_locked() or await asyncio.to_thread(_begins, folder):
                    launch = folder.launch()
                    process = folder.process(launch.run) if launch else None
                    if launch and process:
                        return cls(folder, launch, process["supervisor"], None)
                    await asyncio.sleep(POLL_SECONDS / 10)
        except TimeoutError:
            await asyncio.to_thread(sweep, folder)
        return None

    async def wait(self) -> Exit | None:
        """Wait for the end of the launch. None when the supervisor was killed: nobody knows, and `sweep` has cleaned up."""
        while True:
            await self._gone()
            if self._child is None or self._child.returncode != ALREADY_STARTED:
                break
            other = await Supervision.find(self._folder)
            if other is None:
                break
            self._pid, self._child = other._pid, None
            if self._stopping:
                self._signal(signal.SIGTERM)
        ended = self._folder.exit(self.launch.run)
        if ended is None:
            await asyncio.to_thread(sweep, self._folder)
        return ended

    async def stop(self) -> Exit | None:
        """Have the program ended: signal, grace, kill. Returns when all its processes are gone, as `wait` does."""
        self._stopping = True
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.launch.grace_seconds + STOP_MARGIN_SECONDS):
                return await self.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            return await self.wait()

    def _signal(self, number: int) -> None:
        if self._child is not None:
            self._child.send_signal(number)
        elif self._folder.is_locked():
            os.kill(self._pid, number)

    async def _gone(self) -> None:
        """Wait for the end of the supervisor process: the kernel tells by a pidfd where it can, else by asking again and again."""
        descriptor = _watch(self._pid)
        if descriptor is None:
            while self._lives():  # noqa: ASYNC110  (nothing tells us)
                await asyncio.sleep(POLL_SECONDS)
        else:
            try:
                # An adopted supervisor's id could be another process's by now; while the lock is held it is not.
                if self._lives():
                    await _readable(descriptor)
            finally:
                os.close(descriptor)
        if self._child is not None:
            self._child.wait()

    def _lives(self) -> bool:
        return self._folder.is_locked() if self._child is None else self._child.poll() is None


def _begins(folder: ReplicaFolder) -> bool:
    """Whether a supervisor has been started and has not come as far as its lock."""
    launch = folder.launch()
    return launch is not None and folder.process(launch.run) is None and bool(carrying(folder.mark))


def _watch(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)


def sweep(folder: ReplicaFolder) -> list[int]:
    """Kill every process that a killed supervisor has left: by the mark in its environment and by the program's process group.

    Both, because programs that set their title overwrite what the kernel shows of their environment, and because a
    program's helpers may have left its group. Returns when they are gone, with the ids of what was killed.
    """
    killed: set[int] = set()
    give_up = time.monotonic() + SWEEP_SECONDS
    while (stray := _stray(folder)) and time.monotonic() < give_up:
        for pid in stray - killed:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed |= stray
        time.sleep(0.02)
    return sorted(killed)


def _stray(folder: ReplicaFolder) -> set[int]:
    stray = set(carrying(folder.mark))
    launch = folder.launch()
    process = folder.process(launch.run) if launch else None
    if process and process.get("child") and process["boot"] == boot_id():
        leader = process["child"]
        if start_ticks(leader) in (None, process["ticks"]):
            stray |= set(members(leader))
    return stray - {os.getpid()}
