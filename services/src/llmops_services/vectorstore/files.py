"""Files that survive a kill at any moment, and what the disk has left."""

from __future__ import annotations

import asyncio
import os
import shutil
from functools import partial
from pathlib import Path

from .errors import disk_full


def sync_directory(path: Path) -> None:
    """Make renames and removals inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file: a reader, and whoever comes after a crash, sees the old content or the new, never a part."""
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_directory(path.parent)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a folder, keeping holes: the engine's files are mapped at 32 MiB apiece and hold little at first."""

    def copy_file(src: str, dst: str) -> str:
        with open(src, "rb") as reader, open(dst, "wb") as writer:
            size = os.fstat(reader.fileno()).st_size
            writer.truncate(size)
            end = 0
            while end < size:
                try:
                    start = os.lseek(reader.fileno(), end, os.SEEK_DATA)
                except OSError:  # ENXIO: the rest is a hole
                    break
                end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
                position = start
                os.lseek(writer.fileno(), start, os.SEEK_SET)
                while position < end:
                    position += os.sendfile(writer.fileno(), reader.fileno(), position, end - position)
        return dst

    shutil.copytree(source, target, copy_function=copy_file)


def used_bytes(path: Path) -> int:
    """What a folder takes on the disk, holes not counted."""
    return sum(entry.lstat().st_blocks * 512 for entry in path.rglob("*"))


def free_bytes(path: Path) -> int:
    """What may still be written on the disk of `path`."""
    return shutil.disk_usage(path).free


def require_space(folder: Path, needed: int) -> None:
    """Raise 507 where the disk of `folder` has less than `needed` bytes left."""
    if free_bytes(folder) < needed:
        raise disk_full(
            f"the disk of {folder} has less than {needed >> 20} MiB left; free some and send the request again, "
            "nothing is lost and nothing was changed"
        )


def remove_folder(path: Path) -> None:
    """Remove a folder in the background, as far as that goes: what is left is removed when the store starts."""
    remove = partial(shutil.rmtree, path, ignore_errors=True)
    asyncio.get_running_loop().run_in_executor(None, remove)


def move_folder(source: Path, target: Path) -> None:
    """Rename durably."""
    source.rename(target)
    sync_directory(source.parent)
    sync_directory(target.parent)
