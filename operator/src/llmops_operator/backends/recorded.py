"""An event as a store keeps it. A module of its own: the command reads events without what checks and writes objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Something that happened to an object (kind, namespace, name), `count` times between two moments (RFC 3339)."""

    id: int | str
    key: tuple[str, str, str]
    type: str
    reason: str
    message: str
    count: int
    first_time: str
    last_time: str
