"""Label selectors as kubectl writes them: `a=b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`, joined by commas."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from llmops_operator.cli.faults import CommandError

_KEY = r"(?P<key>[\w./-]+)"
_FORMS: tuple[tuple[str, Callable[[str | None, set[str]], bool]], ...] = (
    (rf"{_KEY}\s*!=\s*(?P<values>[\w.-]*)", lambda value, wanted: value not in wanted),
    (rf"{_KEY}\s*==?\s*(?P<values>[\w.-]*)", lambda value, wanted: value in wanted),
    (rf"{_KEY}\s+in\s+\((?P<values>[^()]*)\)", lambda value, wanted: value in wanted),
    (rf"{_KEY}\s+notin\s+\((?P<values>[^()]*)\)", lambda value, wanted: value not in wanted),
    (rf"!\s*{_KEY}(?P<values>)", lambda value, _: value is None),
    (rf"{_KEY}(?P<values>)", lambda value, _: value is not None),
)


def parse_selector(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether an object's labels match. Raises `CommandError`."""
    tests = [_parse(part.strip()) for part in re.split(r",(?![^(]*\))", text) if part.strip()]

    def matches(manifest: Mapping[str, Any]) -> bool:
        labels = manifest["metadata"].get("labels") or {}
        return all(test(labels.get(key), wanted) for key, test, wanted in tests)

    return matches


def _parse(part: str) -> tuple[str, Callable[[str | None, set[str]], bool], set[str]]:
    for form, test in _FORMS:
        if match := re.fullmatch(form, part):
            return match["key"], test, {value.strip() for value in match["values"].split(",")}
    raise CommandError(f'"{part}" is no label selector: write key=value, key!=value, key in (a,b) or key')
