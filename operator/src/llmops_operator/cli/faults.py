"""What is wrong with what a person wrote or asked for, and where. `main` turns these into lines on stderr and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class CommandError(Exception):
    """The command cannot do what was asked; the message says why and what to do. Exit code 1."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `line` counts from 1; `path` is the field, like spec.sources[0].uri."""

    file: str
    line: int | None
    path: str
    message: str

    def __str__(self) -> str:
        where = "stdin" if self.file == "-" else self.file
        return ": ".join(filter(None, (f"{where}:{self.line}" if self.line else where, self.path, self.message)))


class Faults(CommandError):
    """Everything that is wrong with some files."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = tuple(faults)
