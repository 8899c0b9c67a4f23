"""Processes that outlive the one that started them: each is known by a file, and ended by its own pid."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


class Processes:
    """The processes of one cluster, by name. What is written in `folder` is enough for another process to end them.

    A pid alone is no identity, because pids are used again: the time at which the process started is kept beside it.
    """

    def __init__(self, folder: Path) -> None:
        self._records = folder / "run"
        self._logs = folder / "log"

    def start(self, name: str, argv: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """Start `argv` in a session of its own; what it prints is appended to its log."""
        self._records.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        arguments = [str(argument) for argument in argv]
        executable = shutil.which(arguments[0])
        if executable is None:
            raise FileNotFoundError(f"{arguments[0]} is not on this machine")
        log = os.open(self.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            # Not Popen: it complains when it is forgotten while its process runs, which is what is meant here.
            pid = os.posix_spawn(
                executable,
                arguments,
                {**os.environ, **(environment or {})},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
            )
        finally:
            os.close(log)
        record = {
            "order": time.monotonic_ns(),
            "pid": pid,
            "started": psutil.Process(pid).create_time(),
            "argv": arguments,
            "environment": dict(environment or {}),
        }
        self._record(name).write_text(json.dumps(record))

    def running(self, name: str) -> bool:
        """Whether the process that was started under this name still runs."""
        return self._find(name) is not None

    def pid(self, name: str) -> int:
        """The pid of the process that was started under this name."""
        return int(json.loads(self._record(name).read_text())["pid"])

    def check(self, name: str) -> None:
        """Raise, with the end of its log, when the process has ended."""
        if not self.running(name):
            raise RuntimeError(f"{name} ended by itself. The end of {self.log(name)}:\n{self.tail(name)}")

    def names(self) -> list[str]:
        """The names of all that were started and not stopped since, oldest first."""
        records = {path.stem: json.loads(path.read_text())["order"] for path in self._records.glob("*.json")}
        return sorted(records, key=records.__getitem__)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM, seconds: float = 20) -> None:
        """Send the signal, wait, and kill what has not gone after that many seconds."""
        process = self._find(name)
        if process is not None:
            try:
                process.send_signal(number)
                try:
                    process.wait(seconds)
                except psutil.TimeoutExpired:
                    process.kill()
                    process.wait(seconds)
            except psutil.NoSuchProcess:
                pass
        self._record(name).unlink(missing_ok=True)

    def restart(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it and start it again with the same arguments."""
        record = json.loads(self._record(name).read_text())
        self.stop(name, number)
        self.start(name, record["argv"], record["environment"])

    def stop_all(self) -> None:
        """Stop all of them, the youngest first."""
        for name in reversed(self.names()):
            self.stop(name)

    def log(self, name: str) -> Path:
        """The file with what the process has printed."""
        return self._logs / f"{name}.log"

    def tail(self, name: str, lines: int = 30) -> str:
        """The last lines of its log."""
        if not self.log(name).exists():
            return ""
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])

    def _record(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def _find(self, name: str) -> psutil.Process | None:
        try:
            record = json.loads(self._record(name).read_text())
            process = psutil.Process(record["pid"])
            if process.create_time() != record["started"] or process.status() == psutil.STATUS_ZOMBIE:
                return None
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process
