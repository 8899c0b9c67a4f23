"""Waiting for objects: `llmops wait`, and the wait of `llmops delete`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence

from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.get import not_found
from llmops_operator.cli.kinds import Target
from llmops_operator.cli.places import Key, Object, Place, Reader

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """`30s`, `5m`, `1h30m` in seconds. Raises `CommandError`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise CommandError(f'"{text}" is no length of time: write one like 30s, 5m or 1h')
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def wait_for(
    place: Place,
    namespace: str,
    targets: Sequence[Target],
    what: str,
    *,
    timeout: float,
    say: Callable[[str], None],
) -> None:
    """Return when all `targets` are as `what` says (`condition=Ready`, `delete`, `create`), or raise `CommandError` after
    `timeout` seconds; 0 looks once.
    """
    met, done = _test(what)
    with place.reading() as reader:
        left = {(t.kind.kind, namespace, name): t.kind for t in targets for name in _names(reader, namespace, t)}
        if not left:
            raise CommandError("no matching resources found: name objects that exist")
        if what != "create" and what != "delete":
            for key, kind in left.items():
                if reader.get(key) is None:
                    raise CommandError(not_found(Target(kind, key[2]), namespace))
        for _ in reader.changes(time.monotonic() + timeout):
            for key in [key for key in left if met(reader.get(key))]:
                say(f"{Target(left.pop(key), key[2])} {done}")
            if not left:
                return
        late = [f"{Target(kind, key[2])}: {_why(reader.get(key), place)}" for key, kind in left.items()]
        raise CommandError("\n".join(f"timed out waiting for {what} on {line}" for line in late))


def _names(reader: Reader, namespace: str, target: Target) -> list[str]:
    if target.name is not None:
        return [target.name]
    return [item["metadata"]["name"] for item in reader.all_of(target.kind.kind, namespace)]


def _test(what: str) -> tuple[Callable[[Object | None], bool], str]:
    if what == "delete":
        return (lambda item: item is None), "deleted"
    if what == "create":
        return (lambda item: item is not None), "created"
    word, _, rest = what.partition("=")
    type_, _, status = rest.partition("=")
    if word != "condition" or not type_:
        raise CommandError(f'cannot wait for "{what}": write condition=TYPE, condition=TYPE=STATUS, delete or create')
    wanted = (status or "True").lower()

    def met(item: Object | None) -> bool:
        found = condition(item, type_)
        generation = item["metadata"].get("generation", 0) if item else 0
        return (
            found is not None
            and found["status"].lower() == wanted
            and found.get("observedGeneration", generation) >= generation
        )

    return met, "condition met"


def condition(item: Object | None, type_: str) -> Object | None:
    """A condition of an object, whatever the case of its letters."""
    conditions = ((item or {}).get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"].lower() == type_.lower()), None)


def _why(item: Object | None, place: Place) -> str:
    """What the object itself says about why it is not there yet."""
    if item is None:
        return "it does not exist"
    kind_done = condition(item, "Ready") or condition(item, "Succeeded")
    message = (kind_done or {}).get("message")
    return message or f"no controller has said anything about it: {place.repair}"


def wait_gone(place: Place, keys: Sequence[Key], timeout: float | None, alive: Callable[[], bool]) -> list[Key]:
    """Wait until the objects are gone; those that are still there when the time, or what works on it, has run out."""
    with place.reading() as reader:
        left = list(keys)
        until = None if timeout is None else time.monotonic() + timeout
        for _ in reader.changes(until, alive):
            left = [key for key in left if reader.get(key) is not None]
            if not left:
                break
        return left
