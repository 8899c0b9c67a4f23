"""What adding or removing a finalizer makes of an object's finalizers, wherever the object is kept."""

from __future__ import annotations

from collections.abc import Sequence


def changed(before: Sequence[str], finalizer: str, *, present: bool) -> list[str]:
    """The finalizers with or without one; those that are there stay where they are."""
    if present:
        return [*before] if finalizer in before else [*before, finalizer]
    return [one for one in before if one != finalizer]
