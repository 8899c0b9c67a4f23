"""`llmops describe`: everything about one object that a person needs to know what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.get import find
from llmops_operator.cli.kinds import BY_KIND, Target
from llmops_operator.cli.places import Event, Object, Place, Program
from llmops_operator.cli.tables import age, lines, phase

SEPARATE = ("conditions", "attempts", "phase", "observedGeneration")
"""What of the status is shown in a way of its own."""


def describe_all(place: Place, namespace: str, targets: Sequence[Target]) -> str:
    """The text of all objects that `targets` mean. Raises `CommandError`."""
    with place.reading() as reader:
        found = find(reader, namespace, targets)
        if not found:
            raise CommandError(f"no resources found in {namespace} namespace: `llmops get all -A` lists what exists")
        texts = []
        for item in found:
            key = (item["kind"], namespace, item["metadata"]["name"])
            texts.append(describe(item, reader.events(key), place.programs(key)))
        return "\n\n\n".join(texts)


def describe(manifest: Object, events: Sequence[Event], started: Sequence[Program]) -> str:
    """The text, many lines. `started` are the programs of the object, whose logs are named."""
    return "\n".join(_lines(manifest, events, started))


def _lines(manifest: Object, events: Sequence[Event], started: Sequence[Program]) -> Iterator[str]:
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    head = [
        ("Name:", metadata["name"]),
        ("Namespace:", metadata["namespace"]),
        ("Kind:", manifest["kind"]),
        ("Phase:", phase(manifest)),
        ("Labels:", _pairs(metadata.get("labels"))),
        ("Annotations:", _pairs(metadata.get("annotations"))),
        ("Created:", f"{metadata.get('creationTimestamp', '-')} ({age(metadata.get('creationTimestamp'))} ago)"),
        (
            "Generation:",
            f"{metadata.get('generation')} (seen by the controller: {status.get('observedGeneration', 0)})",
        ),
        ("UID:", metadata.get("uid", "-")),
    ]
    if deleted := metadata.get("deletionTimestamp"):
        head.append(
            ("Deleting:", f"since {deleted} ({age(deleted)}), waits for: {', '.join(metadata.get('finalizers') or ())}")
        )
    yield from lines(head)
    yield "Spec:"
    yield from _tree(manifest.get("spec") or {}, 1)
    yield "Status:"
    yield from (
        _tree({name: value for name, value in status.items() if name not in SEPARATE}, 1)
        if status
        else ("  <none yet>",)
    )
    yield from _section("Conditions:", ("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"), _conditions(status))
    yield from _section("Attempts:", ("NUMBER", "STARTED", "ENDED", "EXIT", "REASON", "MESSAGE"), _attempts(status))
    where = [(program.workload, program.role, program.where) for program in started]
    yield from _section("Logs:", ("PROGRAM", "ROLE", "FOLDER"), where)
    if where:
        yield f"  Read them with: llmops logs {BY_KIND[manifest['kind']].short}/{metadata['name']}"
    rows = [(e.type, e.reason, _seen(e), e.message) for e in events]
    yield from _section("Events:", ("TYPE", "REASON", "AGE", "MESSAGE"), rows)


def _conditions(status: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for c in status.get("conditions") or ():
        yield c["type"], c["status"], c.get("reason", ""), age(c.get("lastTransitionTime")), c.get("message", "")


def _attempts(status: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for a in status.get("attempts") or ():
        code = a.get("exitCode")
        ended = a.get("endTime") or "running"
        yield (
            str(a["number"]),
            a["startTime"],
            ended,
            "-" if code is None else str(code),
            a.get("reason", ""),
            a.get("message", ""),
        )


def _section(title: str, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    cells = [tuple(" ".join(cell.split()) for cell in row) for row in rows]
    if not cells:
        if title == "Events:":
            yield f"{title}  <none>"
        return
    yield title
    yield from (f"  {line}" for line in lines([heads, *cells]))


def _seen(event: Event) -> str:
    last = age(event.last_time)
    return last if event.count == 1 else f"{last} (x{event.count} over {age(event.first_time)})"


def _pairs(pairs: Mapping[str, str] | None) -> str:
    return ", ".join(f"{key}={value}" for key, value in (pairs or {}).items()) or "<none>"


def _tree(value: Any, depth: int) -> Iterator[str]:
    """Nested mappings and lists as YAML has them, without its quotes."""
    indent = "  " * depth
    if isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(item, Mapping | list) and item:
                yield f"{indent}{name}:"
                yield from _tree(item, depth + 1)
            else:
                shown = "<none>" if item in (None, "", [], {}) else str(item).rstrip().replace("\n", f"\n{indent}  ")
                yield f"{indent}{name}: {shown}"
        return
    for item in value:
        if isinstance(item, Mapping | list):
            first, *rest = _tree(item, depth + 1)
            yield f"{indent}- {first.lstrip()}"
            yield from rest
        else:
            yield f"{indent}- {item}"
