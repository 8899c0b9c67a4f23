"""Whether a live object still says what was rendered. Fields that others set (defaults, an autoscaler, a mesh) do not count."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

_QUANTITY = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>m|k|Ki|M|Mi|G|Gi|T|Ti)?")
_UNITS: dict[str | None, Decimal] = {
    None: Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGT", 1)},
    **{f"{unit.upper()}i": Decimal(1024) ** power for power, unit in enumerate("kMGT", 1)},
}
KEYS = ("name", "mountPath", "containerPort", "uid", "key")
"""What tells entries of a list apart, in the order in which it is looked for."""


def holds(rendered: Any, live: Any) -> bool:
    """Whether everything of `rendered` stands in `live`, too. Quantities are compared as numbers, entries of lists by their key."""
    if rendered == live:
        return True
    if isinstance(rendered, Mapping):
        if not rendered:
            return live is not None
        return isinstance(live, Mapping) and all(holds(value, live.get(key)) for key, value in rendered.items())
    if isinstance(rendered, Sequence) and not isinstance(rendered, str):
        return isinstance(live, Sequence) and not isinstance(live, str) and _list_holds(rendered, live)
    return _amount(rendered) == _amount(live) is not None


def _list_holds(rendered: Sequence[Any], live: Sequence[Any]) -> bool:
    key = _key_of(rendered)
    if key is None:
        return len(rendered) == len(live) and all(holds(*pair) for pair in zip(rendered, live, strict=True))
    found = {one.get(key): one for one in live if isinstance(one, Mapping)}
    return all(one[key] in found and holds(one, found[one[key]]) for one in rendered)


def _key_of(entries: Sequence[Any]) -> str | None:
    if not entries or not all(isinstance(one, Mapping) for one in entries):
        return None
    for key in KEYS:
        values = [one.get(key) for one in entries]
        if None not in values and len(set(map(str, values))) == len(values):
            return key
    return None


def _amount(value: Any) -> Decimal | None:
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    return Decimal(match["number"]) * _UNITS[match["unit"]] if match else None
