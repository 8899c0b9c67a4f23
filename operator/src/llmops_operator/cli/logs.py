"""`llmops logs`: what the programs of an object have written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops_operator.backends.local.durable import read_json
from llmops_operator.backends.local.replica_folder import ReplicaFolder
from llmops_operator.backends.local.rotated_log import follow, log_files
from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.kinds import Target
from llmops_operator.cli.reading import Key, reading

ENDING = ("trainer", "indexer")
LIVES_SECONDS = 0.5


@dataclass(frozen=True)
class Program:
    """A replica's folder, and what runs or ran in it."""

    role: str
    workload: str
    folder: Path

    @property
    def replica(self) -> ReplicaFolder:
        """The paths and records in the folder."""
        return ReplicaFolder(self.folder)

    @property
    def log(self) -> Path:
        """The folder of the rotated log."""
        return self.replica.log


def programs(home: Path, key: Key) -> list[Program]:
    """The programs of an object that have a folder, the one that was started last at the end."""
    found = [
        Program(record["workload"]["role"], folder.name, replica)
        for folder in (home / "workloads" / key[1]).glob("*")
        if (record := read_json(folder / "workload.json")) and _owned(record, key)
        for replica in folder.glob("*")
        if (replica / "run" / "launch.json").exists()
    ]
    return sorted(found, key=lambda program: _started(program.folder))


def _owned(record: dict[str, Any], key: Key) -> bool:
    owner = record["owner"]
    return bool((owner["kind"], owner["namespace"], owner["name"]) == key)


def _started(folder: Path) -> int:
    try:
        return (folder / "run" / "launch.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def show(
    home: Path,
    namespace: str,
    target: Target,
    *,
    role: str | None,
    tail: int,
    follow_on: bool,
    previous: bool,
    write: Callable[[str], None],
) -> None:
    """Print the logs of an object's programs (`tail` -1: from the beginning); of several each line says whose it is.

    `previous` is the attempt before the last. Raises `CommandError`.
    """
    key = (target.kind.kind, namespace, target.name or "")
    found = programs(home, key)
    if not found:
        with reading(home) as reader:
            there = reader.get(key) is not None
        raise CommandError(
            f"{target} has not started a program yet: `llmops describe {target.kind.short}/{target.name}` says what it waits for"
            if there
            else f"{target} not found in namespace {namespace}"
        )
    chosen = _choose(found, role, previous)
    sources = [(f"{p.role}{_number(p, chosen)} | " if len(chosen) > 1 else "", p) for p in chosen]
    if follow_on:
        asyncio.run(_follow_all(sources, tail, write))
        return
    for prefix, program in sources:
        for line in _last(program.log, tail):
            write(f"{prefix}{line}\n")


def _choose(found: Sequence[Program], role: str | None, previous: bool) -> list[Program]:
    roles = list(dict.fromkeys(program.role for program in found))
    if role is not None and role not in roles:
        raise CommandError(f'there is no program with the role "{role}": it has {", ".join(roles)}')
    chosen = []
    for wanted in roles if role is None else [role]:
        of_role = [program for program in found if program.role == wanted]
        workloads = list(dict.fromkeys(program.workload for program in of_role))
        if not previous:
            chosen += [program for program in of_role if program.workload == workloads[-1]]
        elif len(workloads) > 1:
            chosen += [program for program in of_role if program.workload == workloads[-2]]
    if not chosen:
        raise CommandError("there was no attempt before this one: leave out --previous")
    return chosen


def _number(program: Program, chosen: Sequence[Program]) -> str:
    several = sum(other.role == program.role for other in chosen) > 1
    return f"-{program.folder.name}" if several else ""


def _last(folder: Path, tail: int) -> list[str]:
    lines = [
        line for path in log_files(folder) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    return lines if tail < 0 else lines[len(lines) - min(tail, len(lines)) :]


async def _follow_all(sources: Sequence[tuple[str, Program]], tail: int, write: Callable[[str], None]) -> None:
    async with asyncio.TaskGroup() as group:
        for prefix, program in sources:
            group.create_task(_follow(prefix, program, tail, write))


async def _follow(prefix: str, program: Program, tail: int, write: Callable[[str], None]) -> None:
    """Until the program has ended, if it is one that ends."""

    async def copy() -> None:
        rest = ""
        async for text in follow(program.log, lines=None if tail < 0 else tail):
            *whole, rest = (rest + text).split("\n")
            for line in whole:
                write(f"{prefix}{line}\n")

    task = asyncio.create_task(copy())
    if program.role in ENDING:
        while await asyncio.to_thread(program.replica.is_locked):
            await asyncio.wait([task], timeout=LIVES_SECONDS)
        # What it wrote last is in the file by now; one more round reads it.
        await asyncio.wait([task], timeout=LIVES_SECONDS)
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
