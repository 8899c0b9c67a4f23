"""The journal: what a worker says while it trains, a JSON object a line, appended to a file that the driver follows.

It stands between the training and MLflow. A worker only appends to it, so that nothing outside slows the training; what is in it
outlives both; and the driver reads as fast as MLflow takes it, a bounded piece at a time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from llmops_api.v1alpha1.meta import Model

PIECE = 1 << 20
"""Bytes that are read at once."""


class Entry(Model):
    """Progress, and the metrics of `step` where there are any. `time` is in milliseconds since 1970."""

    doing: str
    step: int = 0
    total: int = 0
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    seconds_left: int | None = None
    metrics: Annotated[dict[str, float], Field(default_factory=dict)]
    time: int


class JournalWriter:
    """Appends. A line that a killed writer left half done is closed first, so that it spoils no other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.exists():
            self._append(b"\n")

    def write(
        self,
        doing: str,
        *,
        step: int = 0,
        total: int = 0,
        percent: int = 0,
        seconds_left: int | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Append an entry."""
        entry = Entry(
            doing=doing,
            step=step,
            total=total,
            percent=percent,
            seconds_left=seconds_left,
            metrics=metrics or {},
            time=int(time.time() * 1000),
        )
        self._append(json.dumps(entry.dump()).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            file.write(line)


class JournalReader:
    """Reads what has been appended since the last call. The file need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[Entry]:
        """The next whole entries, at most `PIECE` bytes of them."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                piece = file.read(PIECE)
        except FileNotFoundError:
            return
        whole = piece[: piece.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                if line:
                    yield Entry.model_validate_json(line)
            except ValidationError:  # torn by a kill
                continue
