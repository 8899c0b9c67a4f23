"""The output of a program in files of bounded size: `out.log` is the current one, `out.log.1` the one before, and so on."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import AsyncIterator
from pathlib import Path

NAME = "out.log"
LIMIT = 10 * 1024 * 1024
FILES = 3
MEMORY = 8192
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
        return _lines(self._last)

    def close(self) -> None:
        """Close the current file."""
        self._file.close()


def _lines(data: bytes) -> list[str]:
    return [line for line in data.decode(errors="replace").splitlines() if line.strip()][-LINES:]


def log_files(folder: Path) -> list[Path]:
    """The files of a log, the oldest first."""
    numbered = (path for path in folder.glob(f"{NAME}.*") if path.suffix[1:].isdigit())
    older = sorted(numbered, key=lambda path: -int(path.suffix[1:]))
    current = folder / NAME
    return [*older, current] if current.exists() else older


def last_lines(folder: Path) -> list[str]:
    """The last lines of a log, empty ones left out; none when it cannot be read."""
    try:
        with (folder / NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - MEMORY))
            return _lines(file.read())
    except OSError:
        return []


async def follow(folder: Path, *, lines: int | None = None, period_seconds: float = 0.2) -> AsyncIterator[str]:
    """The text of a log from its last `lines` lines (None: from its beginning) on, over rotations, until the caller stops."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    data, position = await asyncio.to_thread(_read_on, folder, None)
    if lines is not None:
        data = b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""
    while True:
        if data:
            yield decoder.decode(data)
        await asyncio.sleep(period_seconds)
        data, position = await asyncio.to_thread(_read_on, folder, position)


Position = tuple[int, int] | None
"""The inode of the file that was read last, and how many of its bytes."""


def _read_on(folder: Path, position: Position) -> tuple[bytes, Position]:
    """What came after `position` (None: everything), and the position after it."""
    data = b""
    inode, offset = position or (None, 0)
    files = log_files(folder)
    inodes = [path.stat().st_ino for path in files if path.exists()]
    skip = inodes.index(inode) if inode in inodes else 0
    for path in files[skip:]:
        try:
            with path.open("rb") as file:
                opened = os.fstat(file.fileno()).st_ino
                file.seek(offset if opened == inode else 0)
                data += file.read()
                inode, offset = opened, file.tell()
        except FileNotFoundError:  # rotated away since it was listed
            continue
    return data, None if inode is None else (inode, offset)
