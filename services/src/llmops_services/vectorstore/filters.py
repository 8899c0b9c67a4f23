"""Qdrant's filter JSON as Edge's filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import numpy as np
import qdrant_edge as edge

from .errors import malformed, unsupported

MAX_DEPTH = 64
"""How deep a filter or a payload may be nested. The engine's log cannot be read again from about 120 levels on, and its stack
ends at some thousands; a Qdrant server refuses bodies from 128 levels on."""
_CLAUSES = ("must", "should", "must_not", "min_should")


PointId = int | UUID | str


def point_id(value: Any) -> PointId:
    """A point id: an unsigned integer or a UUID in any of its spellings."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64:
        return value
    if isinstance(value, str):
        try:
            return UUID(value)
        except ValueError:
            pass
    raise malformed(f"value {value!r} is not a valid point ID, valid values are either an unsigned integer or a UUID")


def parse_filter(body: Any, depth: int = MAX_DEPTH) -> edge.Filter | None:
    """A filter, or None where there is none. Raises `StoreError` that names the faulty part."""
    if body is None:
        return None
    if depth == 0:
        raise malformed(f"filter: nested more than {MAX_DEPTH} levels deep")
    if not isinstance(body, dict):
        raise malformed("filter: expected an object")
    if unknown := body.keys() - set(_CLAUSES):
        raise malformed(f"filter: unknown field {min(unknown)!r}, expected one of {', '.join(_CLAUSES)}")
    minimum = body.get("min_should")
    return edge.Filter(
        must=_conditions(body.get("must"), depth),
        should=_conditions(body.get("should"), depth),
        must_not=_conditions(body.get("must_not"), depth),
        min_should=edge.MinShould(_conditions(minimum["conditions"], depth) or [], minimum["min_count"])
        if minimum
        else None,
    )


def _conditions(body: Any, depth: int) -> list[Any] | None:
    if body is None:
        return None
    return [_condition(one, depth - 1) for one in (body if isinstance(body, list) else [body])]


def _condition(body: Any, depth: int) -> Any:
    if not isinstance(body, dict):
        raise malformed("filter: a condition must be an object")
    if "key" in body:
        return _field_condition(body)
    if "has_id" in body:
        return edge.HasIdCondition({point_id(value) for value in body["has_id"]})
    if "is_empty" in body:
        return edge.IsEmptyCondition(body["is_empty"]["key"])
    if "is_null" in body:
        return edge.IsNullCondition(body["is_null"]["key"])
    if "has_vector" in body:
        return edge.HasVectorCondition(body["has_vector"])
    if "nested" in body:
        nested = parse_filter(body["nested"]["filter"], depth) or edge.Filter()
        return edge.NestedCondition(body["nested"]["key"], nested)
    if body.keys() <= set(_CLAUSES):
        return parse_filter(body, depth)
    raise unsupported(f"the filter condition {min(body)!r}")


def _field_condition(body: dict[str, Any]) -> edge.FieldCondition:
    """Qdrant drops conditions set to null; one without any condition is an error."""
    given = {name: value for name, value in body.items() if value is not None and name != "key"}
    if unknown := given.keys() - _FIELD_CONDITIONS.keys():
        raise malformed(f"filter on {body['key']!r}: unknown field {min(unknown)!r}")
    if not given:
        raise malformed(f"filter on {body['key']!r}: at least one field condition must be specified")
    return edge.FieldCondition(body["key"], **{name: _FIELD_CONDITIONS[name](value) for name, value in given.items()})


def _match_value(value: Any) -> edge.MatchValue:
    """Edge reads a Python truth value as the integer that it also is, and one of numpy as the truth value."""
    return edge.MatchValue(np.bool_(value) if isinstance(value, bool) else value)  # type: ignore[arg-type]


_MATCHES: dict[str, Callable[[Any], Any]] = {
    "value": _match_value,
    "any": edge.MatchAny,
    "except": edge.MatchExcept,
    "text": edge.MatchText,
    "text_any": edge.MatchTextAny,
    "phrase": edge.MatchPhrase,
    "prefix": edge.MatchPrefix,
    "substring": edge.MatchSubstring,
}


def _match(body: Any) -> Any:
    if isinstance(body, dict):
        for name, build in _MATCHES.items():
            if name in body:
                return build(body[name])
    raise malformed(f"filter: match must have one of {', '.join(_MATCHES)}")


def _range(body: dict[str, Any]) -> Any:
    bounds = {name: value for name, value in body.items() if value is not None}
    if any(isinstance(value, str) for value in bounds.values()):
        return edge.RangeDateTime(**bounds)
    return edge.RangeFloat(**bounds)


def _geo_point(body: dict[str, float]) -> edge.GeoPoint:
    return edge.GeoPoint(body["lon"], body["lat"])


def _ring(body: dict[str, Any]) -> list[edge.GeoPoint]:
    return [_geo_point(point) for point in body["points"]]


_FIELD_CONDITIONS: dict[str, Callable[[Any], Any]] = {
    "match": _match,
    "range": _range,
    "values_count": lambda body: edge.ValuesCount(**body),
    "is_empty": bool,
    "is_null": bool,
    "geo_bounding_box": lambda body: edge.GeoBoundingBox(
        _geo_point(body["top_left"]), _geo_point(body["bottom_right"])
    ),
    "geo_radius": lambda body: edge.GeoRadius(_geo_point(body["center"]), body["radius"]),
    "geo_polygon": lambda body: edge.GeoPolygon(
        _ring(body["exterior"]), [_ring(r) for r in body.get("interiors") or []]
    ),
}
