"""`llmops get`: objects as a table, once or again whenever one changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmops_operator.cli import tables
from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.kinds import KINDS, Kind, Target
from llmops_operator.cli.places import Object, Place, Reader

FORMS = ("wide", "yaml", "json", "name")


def get(
    place: Place,
    namespace: str | None,
    targets: Sequence[Target],
    *,
    form: str | None,
    watch: bool,
    matches: Callable[[Object], bool],
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Print objects; `namespace` None is all of them. With `watch` it goes on until interrupted. Raises `CommandError`."""
    if form not in (None, *FORMS):
        raise CommandError(f'there is no output "{form}": write one of {", ".join(FORMS)}')
    with place.reading() as reader:
        found = [item for item in find(reader, namespace, targets) if matches(item)]
        if found and form in (None, "wide") and (note := place.note()):
            warn(note)
        if not found and not watch:
            where = f"in {namespace} namespace" if namespace else "in any namespace"
            if form in ("json", "yaml"):
                say(tables.serialised([], form, single=False))
            else:
                warn(f"No resources found {where}.")
            return
        if watch:
            _watch(reader, namespace, targets, matches, form, say)
        else:
            single = len(targets) == 1 and targets[0].name is not None
            _print(found, form, single, namespace is None, len({item["kind"] for item in found}) > 1, say)


def find(reader: Reader, namespace: str | None, targets: Sequence[Target]) -> list[Object]:
    """The objects that `targets` mean, all of a kind where no name is given. Raises `CommandError` for a name that is not there."""
    found: list[Object] = []
    for target in targets:
        if target.name is None:
            found.extend(reader.all_of(target.kind.kind, namespace))
            continue
        item = reader.get((target.kind.kind, namespace or "default", target.name))
        if item is None:
            raise CommandError(not_found(target, namespace))
        found.append(item)
    return found


def not_found(target: Target, namespace: str | None) -> str:
    """The sentence for an object that is not there."""
    return (
        f'{target.kind.plural}.llmops.dev "{target.name}" not found in namespace {namespace or "default"}: '
        f"`llmops get {target.kind.short} -A` lists those that exist"
    )


def _print(
    found: Sequence[Object],
    form: str | None,
    single: bool,
    all_namespaces: bool,
    mixed: bool,
    say: Callable[[str], None],
) -> None:
    if form in ("json", "yaml"):
        say(tables.serialised(found, form, single=single))
        return
    if form == "name":
        for item in found:
            say(_name(item))
        return
    groups = [(kind, [item for item in found if item["kind"] == kind.kind]) for kind in KINDS]
    blocks = []
    for kind, items in groups:
        if items:
            rows = tables.table(items, kind, wide=form == "wide", all_namespaces=all_namespaces, prefixed=mixed)
            blocks.append("\n".join(tables.lines(rows)))
    say("\n\n".join(blocks))


def _name(item: Object) -> str:
    kind = next(kind for kind in KINDS if kind.kind == item["kind"])
    return str(Target(kind, item["metadata"]["name"]))


def _watch(
    reader: Reader,
    namespace: str | None,
    targets: Sequence[Target],
    matches: Callable[[Object], bool],
    form: str | None,
    say: Callable[[str], None],
) -> None:
    """A row for every object, and another one for each of its changes. A column keeps the width that it once needed."""
    shown: dict[tuple[Any, ...], Object] = {}
    widths: dict[Kind, list[int]] = {}
    mixed = len({target.kind for target in targets}) > 1
    wanted = {target.name for target in targets if target.name}
    for _ in reader.changes():
        now: dict[tuple[Any, ...], Object] = {}
        for kind in dict.fromkeys(target.kind for target in targets):
            for item in reader.all_of(kind.kind, namespace):
                if matches(item) and (not wanted or item["metadata"]["name"] in wanted):
                    now[kind.kind, item["metadata"]["uid"]] = item
        changed = [item for key, item in now.items() if shown.get(key) != item]
        gone = [
            {**item, "status": {**(item.get("status") or {}), "phase": "Deleted"}}
            for key, item in shown.items()
            if key not in now
        ]
        shown = now
        for item in (*changed, *gone):
            if form in ("json", "yaml"):
                say(tables.serialised([item], form, single=True) + ("\n---" if form == "yaml" else ""))
            elif form == "name":
                say(_name(item))
            else:
                kind = next(kind for kind in KINDS if kind.kind == item["kind"])
                rows = tables.table([item], kind, wide=form == "wide", all_namespaces=namespace is None, prefixed=mixed)
                first = kind not in widths
                known = widths.setdefault(kind, [0] * len(rows[0]))
                widths[kind] = known = [max(width, *(len(row[i]) for row in rows)) for i, width in enumerate(known)]
                for row in rows if first else rows[1:]:
                    say("   ".join(cell.ljust(width) for cell, width in zip(row, known, strict=True)).rstrip())
