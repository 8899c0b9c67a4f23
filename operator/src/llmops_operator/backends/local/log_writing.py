"""Writes the output of a program into files of bounded size: `out.log` is the current one, `out.log.1` the one before, and so on.

For the supervisor, one of which runs beside each program, and which therefore imports as little as it can.
"""

from __future__ import annotations

from pathlib import Path

NAME = "out.log"
LIMIT = 10 * 1024 * 1024
FILES = 3
MEMORY = 8192
"""So many bytes are looked at for the last lines."""

LINES = 20


class RotatedLog:
    """Appends to the files of `folder`, at most `files` of `limit` bytes; what a full disk does not take is dropped."""

    def __init__(self, folder: Path, *, limit: int = LIMIT, files: int = FILES) -> None:
        self._folder, self._limit, self._files = folder, limit, files
        self._last = b""
        folder.mkdir(parents=True, exist_ok=True)
        self._open()

    def _open(self) -> None:
        self._file = (self._folder / NAME).open("ab", buffering=0)
        self._size = self._file.tell()

    def write(self, data: bytes) -> None:
        """Append, starting a new file first when the current one would grow beyond the limit."""
        self._last = (self._last + data)[-MEMORY:]
        try:
            if self._size and self._size + len(data) > self._limit:
                self._rotate()
            self._size += self._file.write(data)
        except OSError:
            return

    def _rotate(self) -> None:
        self._file.close()
        newest = self._folder / NAME
        for number in range(self._files - 1, 0, -1):
            older = newest if number == 1 else newest.with_name(f"{NAME}.{number - 1}")
            if older.exists():
                older.replace(newest.with_name(f"{NAME}.{number}"))
        if self._files == 1:
            newest.unlink()
        self._open()

    def last_lines(self) -> list[str]:
        """The last lines that were written, empty ones left out."""
        return lines_at_end(self._last)

    def close(self) -> None:
        """Close the current file."""
        self._file.close()


def lines_at_end(data: bytes) -> list[str]:
    """The last lines of a text, empty ones left out."""
    return [line for line in data.decode(errors="replace").splitlines() if line.strip()][-LINES:]
