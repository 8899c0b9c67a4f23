"""Folders that hold the state of what runs, and that are found again when the one who made them was killed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import psutil

from harness.processes import Processes

_PREFIX = "llmops-test-"


def make_temporary(what: str) -> Path:
    """A new folder that belongs to this process, after those whose owner is gone were cleaned away, with their processes."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{what}-*"):
        if not owner_lives(folder):
            remove(folder)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{what}-"))
    own(folder)
    return folder


def remove(folder: Path) -> None:
    """End the processes whose state is in the folder, undo mounts in it, and remove it."""
    Processes(folder).stop_all()
    unmount_below(folder)
    shutil.rmtree(folder, ignore_errors=True)


def unmount_below(folder: Path) -> None:
    """Undo the mounts in a folder, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):
        if point.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


def own(folder: Path) -> None:
    """Write down that this process is the owner of the folder."""
    (folder / "owner.json").write_text(json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time()}))


def owner_lives(folder: Path) -> bool:
    """Whether the process that owns the folder still runs."""
    try:
        owner = json.loads((folder / "owner.json").read_text())
        return psutil.Process(owner["pid"]).create_time() == float(owner["started"])
    except FileNotFoundError:
        # Made this very moment, and not marked yet; or not ours to judge.
        return True
    except psutil.NoSuchProcess:
        return False


def free_ports(number: int) -> list[int]:
    """That many TCP ports of 127.0.0.1 which nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
