"""`llmops events`: what happened, the latest last."""

from __future__ import annotations

from collections.abc import Callable

from llmops_operator.cli.kinds import BY_KIND, Target
from llmops_operator.cli.places import Event, Place
from llmops_operator.cli.tables import age, lines

HEADS = ("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE")


def show(
    place: Place,
    namespace: str | None,
    target: Target | None,
    *,
    watch: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Print events of an object, a namespace, or (None) all; with `watch` go on until interrupted. Raises `CommandError`."""
    key = (target.kind.kind, namespace or "default", target.name) if target and target.name else None
    with place.reading() as reader:
        found = reader.events(key, namespace)
        if not found and not watch:
            warn("No events found.")
            return
        rows = [_row(event, namespace is None) for event in found]
        heads = ("NAMESPACE", *HEADS) if namespace is None else HEADS
        for line in lines([heads, *rows]):
            say(line)
        if not watch:
            return
        seen = {event.id: event.count for event in found}
        for _ in reader.changes():
            for event in reader.events(key, namespace):
                if seen.get(event.id) != event.count:
                    seen[event.id] = event.count
                    say("   ".join(_row(event, namespace is None)))


def _row(event: Event, all_namespaces: bool) -> tuple[str, ...]:
    kind, namespace, name = event.key
    message = " ".join(event.message.split()) + (f" (x{event.count})" if event.count > 1 else "")
    row = (age(event.last_time), event.type, event.reason, f"{BY_KIND[kind].singular}/{name}", message)
    return (namespace, *row) if all_namespaces else row
