"""`llmops logs`: what the programs of an object have written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.kinds import Target
from llmops_operator.cli.places import Place, Program


def show(
    place: Place,
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
    found = place.programs(key)
    if not found:
        with place.reading() as reader:
            there = reader.get(key) is not None
        raise CommandError(
            f"{target} has not started a program yet: `llmops describe {target.kind.short}/{target.name}` says what it waits for"
            if there
            else f"{target} not found in namespace {namespace}"
        )
    chosen = _choose(found, role, previous)
    sources = [(f"{p.role}{_number(p, chosen)} | " if len(chosen) > 1 else "", p) for p in chosen]
    if follow_on:
        _follow_all(sources, tail, write)
        return
    for prefix, program in sources:
        for line in program.last(tail):
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
    return f"-{program.number}" if several else ""


def _follow_all(sources: Sequence[tuple[str, Program]], tail: int, write: Callable[[str], None]) -> None:
    """Each in a thread of its own, because each waits for its own log; Ctrl-C leaves them behind."""
    failed: list[CommandError] = []

    def copy(prefix: str, program: Program) -> None:
        try:
            program.follow(tail, lambda line: write(f"{prefix}{line}\n"))
        except CommandError as error:
            failed.append(error)

    threads = [threading.Thread(target=copy, args=source, daemon=True) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
