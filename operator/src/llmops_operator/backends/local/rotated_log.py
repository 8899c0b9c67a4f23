"""Reads what `log_writing` has written: all of it, its last lines, or on and on."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import AsyncIterator
from pathlib import Path

from llmops_operator.backends.local.log_writing import MEMORY, NAME, lines_at_end


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
            return lines_at_end(file.read())
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
