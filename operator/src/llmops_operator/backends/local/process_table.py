"""Questions to the kernel about processes. On Linux from /proc; elsewhere the answers are empty, and less is cleaned up."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def boot_id() -> str:
    """Names this boot of the machine: process ids written under another one mean nothing any more."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since the boot: with its id, its identity. None when there is no such process."""
    fields = _stat(str(pid))
    return int(fields[19]) if fields else None


def descendants(ancestor: int) -> list[int]:
    """The children, grandchildren and so on of a process, the dead but unreaped included."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        fields = _stat(pid)
        if fields:
            children.setdefault(int(fields[1]), []).append(int(pid))
    found, ahead = [], [ancestor]
    while ahead:
        for child in children.get(ahead.pop(), ()):
            found.append(child)
            ahead.append(child)
    return found


def members(group: int) -> list[int]:
    """The processes of a process group."""
    return [int(pid) for pid in _pids() if (fields := _stat(pid)) and int(fields[2]) == group and fields[0] != "Z"]


def carrying(entry: str) -> list[int]:
    """The processes that were started with `entry` (NAME=value) in their environment, this one left out."""
    wanted = entry.encode()
    return [int(pid) for pid in _pids() if wanted in _environment(pid) and int(pid) != os.getpid()]


def memory_of(pids: list[int]) -> int:
    """Resident bytes of some processes, each shared page counted once. 0 where the kernel does not tell."""
    return sum(_proportional(pid) for pid in pids)


def memory_at_most(pids: list[int]) -> int:
    """Resident bytes of some processes, shared pages counted for each of them: more than `memory_of`, and much cheaper to ask."""
    return sum(_resident(pid) for pid in pids)


def _proportional(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:  # gone meanwhile, or a kernel before 4.14
        return _resident(pid)
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _resident(pid: int) -> int:
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed because memory ran out, since the boot."""
    try:
        lines = (PROC / "vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _pids() -> list[str]:
    try:
        return [name for name in os.listdir(PROC) if name.isdigit()]
    except OSError:
        return []


def _stat(pid: str) -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on; the second, in parentheses, may hold anything."""
    try:
        return (PROC / pid / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _environment(pid: str) -> list[bytes]:
    try:
        return (PROC / pid / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
