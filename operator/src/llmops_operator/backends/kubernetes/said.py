"""Lines of a log that a program means for the control plane."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmops_api.programs import Said


def last_said(what: Said, text: str) -> dict[str, Any] | None:
    """The JSON object of the last line of this sort in a log. A line that was cut off counts as none."""
    for line in reversed(text.splitlines()):
        said = what.of(line)
        if said is not None:
            try:
                found = json.loads(said)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return None


def failure_in(said: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """(reason, message) of what a program said when that is `llmops_api.programs.Failure`."""
    if said and set(said) == {"reason", "message"}:
        return str(said["reason"]), str(said["message"])
    return None
