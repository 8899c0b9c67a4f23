"""The status of an object whose manifest got past the schema and is none all the same."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from llmops_api.reasons import Reason
from llmops_operator.domain.timing import timestamp


def refused_status(manifest: Mapping[str, Any], false: tuple[str, ...], message: str, now: datetime) -> dict[str, Any]:
    """The status that the object has, whatever it is, with the conditions `false` False because of `message`."""
    status = dict(manifest.get("status") or {})
    known = status.get("conditions")
    conditions = [one for one in known if isinstance(one, dict)] if isinstance(known, list) else []
    generation = manifest["metadata"].get("generation", 1)
    for type_ in false:
        before = next((one for one in conditions if one.get("type") == type_), None)
        moved = before is None or before.get("status") != "False"
        after = {
            "type": type_,
            "status": "False",
            "reason": Reason.INVALID,
            "message": message,
            "lastTransitionTime": timestamp(now) if moved or before is None else before.get("lastTransitionTime", ""),
            "observedGeneration": generation,
        }
        if before is None:
            conditions.append(after)
        else:
            conditions[conditions.index(before)] = after
    return status | {"conditions": conditions, "observedGeneration": generation}
