"""The cache folder: filled once by one program while the others wait, and never half."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from llmops_api.programs import Env
from llmops_api.reasons import FailureReason
from llmops_services.program import TryAgain

log = logging.getLogger(__name__)

LOCK_SECONDS = 3600
"""How long one program waits for another that is downloading or converting the same model."""


def cache_dir() -> Path:
    """The folder for downloaded and converted models."""
    return Path(os.environ.get(Env.CACHE_DIR) or Path.home() / ".cache" / "llmops")


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256, in hex, over the relative names and contents of all files below `folder`; a file's own digest if it is one."""
    if folder.is_file():
        return file_digest(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = (f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """A block in which no other program makes `target`. Raises `TryAgain` when another takes too long over it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{target}.lock")
    try:
        with suppress(Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked:
            log.info("waiting for another program that is making %s", target)
            lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise TryAgain(
            FailureReason.CACHE_LOCKED, f"{target} has been in the making elsewhere for {LOCK_SECONDS} s; still waiting"
        ) from error
    try:
        yield
    finally:
        lock.release()


def cached(key: str, fill: Callable[[Path], None]) -> Path:
    """The cache entry `key`; made by `fill(folder)` when there is none. One process makes it, the others wait."""
    target = cache_dir() / "models" / key
    if target.exists():
        return target
    with one_at_a_time(target):
        if not target.exists():
            aside = empty_folder(target.with_name(f"{key}.new"))  # only the holder of the lock writes here
            fill(aside)
            aside.rename(target)
    return target


def empty_folder(folder: Path) -> Path:
    """The folder, without what a killed program has left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
