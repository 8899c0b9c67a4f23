"""A process between the daemon and one program: it outlives the daemon, and knows how the program ended.

    python -m llmops_operator.backends.local.supervisor FOLDER

FOLDER is a replica's folder (see `replica_folder`) with `run/launch.json`. The supervisor starts the launch's command at most once
(whoever is the second to try leaves with `ALREADY_STARTED`), pumps its output into rotated logs, ends it on SIGTERM or at its
deadline (SIGTERM to its process group, grace, SIGKILL to everything below), and leaves `run/exit.json`. While it lives it holds
a lock on `run/lock`, so that "does it still run" is a question to the kernel and not to a process id that may be used again.
When the daemon is gone the work goes on; the next daemon adopts it. Standard library only, so that it is small and starts fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmops_operator.backends.local.durable import read_json, write_json
from llmops_operator.backends.local.flock import try_lock
from llmops_operator.backends.local.log_writing import RotatedLog
from llmops_operator.backends.local.process_table import (
    boot_id,
    descendants,
    memory_at_most,
    memory_of,
    out_of_memory_kills,
    start_ticks,
)

ALREADY_STARTED = 3
"""Another supervisor has or had this launch."""

CANNOT_START = 127
"""The exit code of a command that is not there, as shells have it."""

LOCK_SECONDS = 2.0
"""How long the lock is tried for: a daemon that looks whether it is held holds it for microseconds itself."""

KILL_SECONDS = 10.0
"""How long killed processes may take to vanish; one that hangs in the kernel is left behind."""

MEMORY_SECONDS = 1.0
"""How often it is looked how much memory the program has."""

PR_SET_CHILD_SUBREAPER = 36


def main(folder: Path) -> int:
    """Supervise the launch in `folder` to its end."""
    signals = _listen_to_signals()
    run = folder / "run"
    with (run / "lock").open("a") as lock:
        if not try_lock(lock.fileno(), seconds=LOCK_SECONDS):
            return ALREADY_STARTED
        launch = read_json(run / "launch.json")
        if launch is None:
            raise SystemExit(f"{run / 'launch.json'}: is missing or not a JSON object")
        if (read_json(run / "process.json") or {}).get("run") == launch["run"]:
            return ALREADY_STARTED
        ending = _Program(folder, launch, signals).run()
        _insist(lambda: write_json(run / "exit.json", ending), signals)
    return 0


def _listen_to_signals() -> int:
    """A descriptor from which the numbers of arriving signals can be read. Handlers, unlike SIG_IGN, are not inherited."""
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _plain_pipe()
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return readable


def _plain_pipe() -> tuple[int, int]:
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    return readable, writable


def _insist(write: Callable[[], None], signals: int) -> None:
    """Write in spite of a full disk: try again each second, until told to stop."""
    while True:
        try:
            return write()
        except OSError as error:
            _complain(f"cannot write how the program ended ({error}); trying again")
        time.sleep(1)
        if signal.SIGTERM in _arrived(signals):
            return None


def _complain(text: str) -> None:
    """Say it in `run/supervisor.log`, if the disk takes it."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"{text}\n".encode())


def _arrived(signals: int) -> bytes:
    try:
        return os.read(signals, 1024)
    except BlockingIOError:
        return b""


class _Program:
    """The program of one launch, from its start to its end."""

    def __init__(self, folder: Path, launch: dict[str, Any], signals: int) -> None:
        self._folder, self._launch, self._signals = folder, launch, signals
        self._log = RotatedLog(folder / "log", limit=launch["log_bytes"], files=launch["log_files"])
        self._why: str | None = None  # "stopped", "deadline" or "memory" once it is to end
        self._memory_used: int | None = None
        self._kill_at: float | None = None
        self._killed = False

    def run(self) -> dict[str, Any]:
        """Start it, wait for its end, and say how it ended."""
        _become_subreaper()
        started_at, kills = _now(), out_of_memory_kills()
        identity = {"run": self._launch["run"], "supervisor": os.getpid(), "boot": boot_id(), "started_at": started_at}
        # On disk before the program starts: a launch is started at most once, whenever anything is killed.
        write_json(self._folder / "run" / "process.json", identity)
        output, its_output = _plain_pipe()
        os.set_blocking(its_output, True)
        try:
            child = subprocess.Popen(
                self._launch["command"],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=its_output,
                stderr=its_output,
                start_new_session=True,
            )
        except OSError as error:
            line = f"cannot start {self._launch['command'][0]}: {error.strerror}"
            self._log.write(f"{line}\n".encode())
            return identity | {"code": CANNOT_START, "ended_at": _now(), "why": None, "lines": [line]}
        os.close(its_output)
        self._record(identity | {"child": child.pid, "ticks": start_ticks(child.pid)})
        self._attend(child.pid, output)
        code = self._reap(child.pid)
        while _pump(output, self._log):
            pass
        self._log.close()
        return identity | {
            "code": code if code >= 0 else 128 - code,
            "signal": -code if code < 0 else None,
            "ended_at": _now(),
            "why": self._why,
            "out_of_memory": code == -signal.SIGKILL and not self._killed and out_of_memory_kills() > kills,
            "memory_used": self._memory_used,
            "lines": self._log.last_lines(),
        }

    def _record(self, identity: dict[str, Any]) -> None:
        try:
            write_json(self._folder / "run" / "process.json", identity)
        except OSError as error:
            _complain(f"cannot write the program's process id ({error})")

    def _attend(self, child: int, output: int) -> None:
        """Pump and obey until the child has ended. It is left unreaped, so that its group's id cannot be given to others yet."""
        seconds = self._launch["deadline_seconds"]
        deadline = None if seconds is None else time.monotonic() + seconds
        limit = self._launch.get("memory_bytes")  # a launch of an older version has none
        look_at = None if limit is None else time.monotonic()
        selector = selectors.DefaultSelector()
        selector.register(self._signals, selectors.EVENT_READ)
        selector.register(output, selectors.EVENT_READ)
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                deadline = None
                self._end(child, "deadline")
            if self._kill_at is not None and now >= self._kill_at:
                self._kill_at, self._killed = None, True
                self._kill(child)
            if look_at is not None and limit is not None and now >= look_at:
                look_at = now + MEMORY_SECONDS
                self._keep_within(child, limit)
            times = [at for at in (deadline, self._kill_at, look_at) if at is not None]
            for key, _ in selector.select(max(0.0, min(times) - now) if times else None):
                if key.fd == self._signals:
                    if signal.SIGTERM in _arrived(self._signals):
                        self._end(child, "stopped")
                    _reap_adopted(but=child)
                elif _pump(output, self._log) is None:
                    selector.unregister(output)
        selector.close()

    def _end(self, child: int, why: str) -> None:
        if self._why is None:
            self._why = why
            self._kill_at = time.monotonic() + self._launch["grace_seconds"]
            _signal_group(child, signal.SIGTERM)

    def _keep_within(self, child: int, limit: int) -> None:
        """Kill the program when it has more memory than it may have, without a warning, as a container would be."""
        below = descendants(os.getpid())
        if self._why is None and memory_at_most(below) > limit and (used := memory_of(below)) > limit:
            self._why, self._memory_used, self._killed = "memory", used, True
            self._kill(child)

    def _kill(self, child: int) -> None:
        _signal_group(child, signal.SIGKILL)
        _kill_descendants()

    def _reap(self, child: int) -> int:
        """Kill what the child has left behind, as the end of a container would; then its exit code, negative for a signal."""
        self._kill(child)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        give_up = time.monotonic() + KILL_SECONDS
        while time.monotonic() < give_up:
            _kill_descendants()
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                time.sleep(0.01)
        return code


def _kill_descendants() -> None:
    for pid in descendants(os.getpid()):
        _signal(pid, signal.SIGKILL)


def _become_subreaper() -> None:
    """Orphans among the program's descendants become this process's children (Linux), so that none gets out of sight."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap_adopted(*, but: int) -> None:
    """Reap adopted orphans that have ended. Stops at the child itself, whose end is looked at elsewhere."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid == but:
            return
        os.waitpid(ended.si_pid, 0)


def _pump(output: int, log: RotatedLog) -> int | None:
    """Move what is there into the log. The number of bytes; None at the end of the output."""
    try:
        data = os.read(output, 65536)
    except BlockingIOError:
        return 0
    if not data:
        return None
    log.write(data)
    return len(data)


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _now() -> str:
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
