"""What lies in the working folder of one replica, and what the daemon and its supervisor tell one another in it."""

from __future__ import annotations

import fcntl
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmops_operator.backends.local.durable import read_json, write_json, write_text
from llmops_operator.backends.local.log_writing import NAME

MARK = "LLMOPS_REPLICA"
"""Environment variable of every process of a replica: its folder. By it stray processes are found."""


@dataclass(frozen=True)
class Launch:
    """One start of the program. `run` counts them; `digest` is of everything that asks for another start when it changes.

    `restarts` counts starts after the program ended by itself, `failures` those in a row, which the back-off grows with.
    """

    run: int
    digest: str
    command: tuple[str, ...]
    grace_seconds: float
    deadline_seconds: int | None
    log_bytes: int
    log_files: int
    port: int | None = None
    memory_bytes: int | None = None
    """What the program and all that it starts may have resident together."""
    restarts: int = 0
    failures: int = 0


@dataclass(frozen=True)
class Exit:
    """How the program of a launch ended. `why` is "stopped", "deadline" or "memory" when it was made to; 128 + n is signal n."""

    code: int
    started_at: str
    ended_at: str
    why: str | None = None
    signal: int | None = None
    out_of_memory: bool = False
    memory_used: int | None = None
    """What it had resident when it was ended for that, in bytes."""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReplicaFolder:
    """Paths below a replica's working folder, and the records in `run/`."""

    root: Path

    @property
    def config(self) -> Path:
        """The workload's config files."""
        return self.root / "config"

    @property
    def run(self) -> Path:
        """The records of the daemon and the supervisor."""
        return self.root / "run"

    @property
    def log(self) -> Path:
        """The folder of the rotated log."""
        return self.root / "log"

    @property
    def result(self) -> Path:
        """Written by the program at its end."""
        return self.root / "result.json"

    @property
    def progress(self) -> Path:
        """Written by the program as it goes."""
        return self.root / "progress.json"

    @property
    def mark(self) -> str:
        """The environment entry that every process of the replica carries."""
        return f"{MARK}={self.root}"

    def launch(self) -> Launch | None:
        """The last launch that was decided on, whether it came to a start or not."""
        record = read_json(self.run / "launch.json")
        return None if record is None else Launch(**record | {"command": tuple(record["command"])})

    def write_launch(self, launch: Launch) -> None:
        """Decide on a launch. Raises `OSError`."""
        write_json(self.run / "launch.json", asdict(launch))

    def process(self, run: int) -> dict[str, Any] | None:
        """What the supervisor of a launch says about itself and its child; None when it has not begun."""
        record = read_json(self.run / "process.json")
        return record if record is not None and record.get("run") == run else None

    def exit(self, run: int) -> Exit | None:
        """How a launch ended; None when it has not, or when its supervisor was killed before it could say."""
        record = read_json(self.run / "exit.json")
        if record is None or record.get("run") != run:
            return None
        return Exit(
            code=record["code"],
            started_at=record["started_at"],
            ended_at=record["ended_at"],
            why=record.get("why"),
            signal=record.get("signal"),
            out_of_memory=bool(record.get("out_of_memory")),
            memory_used=record.get("memory_used"),
            lines=tuple(record.get("lines", ())),
        )

    def last_sign(self) -> datetime | None:
        """When the program wrote its log or its progress last; None when it never has."""
        written = (path.stat().st_mtime for path in (self.progress, self.log / NAME) if path.exists())
        latest = max(written, default=None)
        return None if latest is None else datetime.fromtimestamp(latest, UTC)

    def supervisor_log(self) -> str:
        """What the last supervisor said, which it does when it cannot work."""
        try:
            return (self.run / "supervisor.log").read_text(errors="replace")
        except OSError:
            return ""

    def is_locked(self) -> bool:
        """Whether a supervisor lives here."""
        try:
            descriptor = os.open(self.run / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def write_config(self, files: dict[str, str]) -> bool:
        """Replace those config files that differ, each atomically. True when any did. Raises `OSError`."""
        changed = False
        for name, text in files.items():
            path = self.config / name
            try:
                same = path.read_text(encoding="utf-8") == text
            except (FileNotFoundError, UnicodeDecodeError):
                same = False
            if not same:
                write_text(path, text)
                changed = True
        return changed

    def prepare(self, files: dict[str, str]) -> None:
        """Make ready for a start: these config files and no others, nothing that an earlier start has left. Raises `OSError`."""
        for folder in (self.config, self.run):
            folder.mkdir(parents=True, exist_ok=True)
        for stale in (self.result, self.progress):
            stale.unlink(missing_ok=True)
        for path in self.config.rglob("*"):
            if path.is_file() and str(path.relative_to(self.config)) not in files:
                path.unlink()
        self.write_config(files)
