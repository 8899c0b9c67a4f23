"""The vector store as a child process on a free port: for tests and measurements, and for whoever runs one beside a program."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from .config import VectorStoreConfig

_START_S = 60.0
_STOP_S = 30.0


class StoreProcess:
    """A running store over `folder`. A context manager that stops it; `kill` ends it as a crash would.

    Attributes: `url`, `pid`. Raises RuntimeError when the program does not come up (its words are on standard error).
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "config.json"
        config.write_text(VectorStoreConfig(port=0, folder=folder / "store").model_dump_json(by_alias=True))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __package__, str(config)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _START_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.kill()
            raise RuntimeError(f"the vector store over {folder} did not start")
        self.url = line.split()[2]
        self.pid = self._process.pid

    def stop(self) -> int:
        """End it with SIGTERM and wait; returns the exit code."""
        self._process.terminate()
        return self._wait()

    def kill(self) -> None:
        """End it with SIGKILL and wait."""
        self._process.kill()
        self._wait()

    def _wait(self) -> int:
        try:
            return self._process.wait(_STOP_S)
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.stop()
