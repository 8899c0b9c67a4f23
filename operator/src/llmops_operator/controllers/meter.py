"""What the control plane tells about its own work, to whoever counts it."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class Result(StrEnum):
    """How a look at an object ended."""

    DONE = "done"
    AGAIN = "again"
    """It has changed meanwhile, or something is under way: looked at again soon."""
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    ERROR = "error"


class Meter(Protocol):
    """Is told about each look at an object."""

    def looked(self, kind: str, result: Result, seconds: float) -> None:
        """An object of `kind` was looked at for `seconds`."""


class NoMeter:
    """Nobody counts."""

    def looked(self, kind: str, result: Result, seconds: float) -> None:
        """Nothing is counted."""
