"""Bodies of the writing routes as Edge's update operations.

Everything is checked before it reaches the engine: an operation is logged before it is applied, so that a vector which makes the
engine fail would fail again at every start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import qdrant_edge as edge

from .errors import StoreError, malformed, unsupported, wrong_input
from .filters import MAX_DEPTH, parse_filter, point_id
from .schema import CollectionSchema

_UPDATE_MODES = {
    "upsert": edge.UpdateMode.Upsert,
    "insert_only": edge.UpdateMode.InsertOnly,
    "update_only": edge.UpdateMode.UpdateOnly,
}


def check_vector(schema: CollectionSchema, name: str, value: Any) -> list[float] | edge.SparseVector:
    """A vector of the collection's vector `name`, of the right kind and size. Raises `StoreError` otherwise."""
    if (params := schema.dense.get(name)) is not None:
        if not isinstance(value, list):
            raise _wrong_kind(name, "dense", value)
        if len(value) != params.size:
            raise wrong_input(f"Vector dimension error: expected dim: {params.size}, got {len(value)}")
        return value
    if name in schema.sparse:
        if not isinstance(value, dict) or not {"indices", "values"} <= value.keys():
            raise _wrong_kind(name, "sparse", value)
        return _sparse(value)
    raise wrong_input(f"Not existing vector name error: {name}")


def _wrong_kind(name: str, kind: str, value: Any) -> StoreError:
    if isinstance(value, dict) and "model" in value:
        return unsupported("inference (embed the text and send the vector)")
    return wrong_input(f"the vector {name or 'without a name'!r} is {kind}: send {_KIND_SHAPES[kind]}")


_KIND_SHAPES = {"dense": "a list of numbers", "sparse": "an object with `indices` and `values`"}


def _sparse(value: dict[str, Any]) -> edge.SparseVector:
    indices, values = value["indices"], value["values"]
    if len(indices) != len(values):
        raise StoreError(422, "Validation error in JSON body: [indices: must be the same length as values]")
    if len(set(indices)) != len(indices):
        raise StoreError(422, "Validation error in JSON body: [indices: must be unique]")
    return edge.SparseVector(indices, values)


def _vectors(schema: CollectionSchema, value: Any) -> Any:
    if isinstance(value, list):
        return check_vector(schema, "", value)
    if isinstance(value, dict):
        return {name: check_vector(schema, name, one) for name, one in value.items() if one is not None}
    raise malformed("vector: expected a list of numbers, or an object of vectors by name")


def _upsert(schema: CollectionSchema, body: dict[str, Any]) -> list[edge.UpdateOperation]:
    points = _points(schema, _rows(body))
    mode = body.get("update_mode")
    if mode is not None and mode not in _UPDATE_MODES:
        raise malformed(f"update_mode: unknown variant {mode!r}, expected one of {', '.join(_UPDATE_MODES)}")
    return [
        edge.UpdateOperation.upsert_points(
            points, parse_filter(body.get("update_filter")), _UPDATE_MODES[mode] if mode else None
        )
    ]


def _points(schema: CollectionSchema, rows: Iterable[tuple[Any, Any, Any]]) -> list[edge.Point]:
    points = []
    for identity, vector, payload in rows:
        vectors = _vectors(schema, vector)
        if payload is not None:
            _check_depth(payload, MAX_DEPTH)
        try:
            points.append(edge.Point(point_id(identity), vectors, payload))
        except (TypeError, ValueError, OverflowError) as error:
            raise malformed(
                f"point {identity}: a vector or the payload holds something else than JSON numbers"
            ) from error
    return points


def _check_depth(value: dict[str, Any] | list[Any], left: int) -> None:
    """The engine logs a payload of any depth, and then cannot read its log."""
    if left == 0:
        raise malformed(f"payload: nested more than {MAX_DEPTH} levels deep")
    for one in value.values() if isinstance(value, dict) else value:
        if isinstance(one, dict | list):
            _check_depth(one, left - 1)


def _rows(body: dict[str, Any]) -> Iterable[tuple[Any, Any, Any]]:
    """(id, vector, payload) of a list of points, or of a batch given by columns."""
    if (points := body.get("points")) is not None:
        for point in points:
            if "id" not in point or "vector" not in point:
                raise malformed("points: every point needs `id` and `vector`")
            yield point["id"], point["vector"], point.get("payload")
        return
    if (batch := body.get("batch")) is None:
        raise malformed("missing field `points` or `batch`")
    ids, vectors = batch["ids"], batch["vectors"]
    payloads = batch.get("payloads") or [None] * len(ids)
    by_name = isinstance(vectors, dict)
    lengths = [len(column) for column in vectors.values()] if by_name else [len(vectors)]
    if {len(payloads), *lengths} != {len(ids)}:
        raise StoreError(
            422, "Validation error in JSON body: [batch: ids, vectors and payloads must have the same length]"
        )
    for row, identity in enumerate(ids):
        vector = {name: column[row] for name, column in vectors.items()} if by_name else vectors[row]
        yield identity, vector, payloads[row]


def _delete(_: CollectionSchema, body: dict[str, Any]) -> list[edge.UpdateOperation]:
    if (ids := _ids(body)) is not None:
        return [edge.UpdateOperation.delete_points(ids)]
    return [edge.UpdateOperation.delete_points_by_filter(_filter(body))]


def _ids(body: dict[str, Any]) -> list[Any] | None:
    points = body.get("points")
    return None if points is None else [point_id(value) for value in points]


def _filter(body: dict[str, Any]) -> edge.Filter:
    if (found := parse_filter(body.get("filter"))) is None:
        raise malformed("select points by `points` (ids) or by `filter`")
    return found


def _set_payload(_: CollectionSchema, body: dict[str, Any]) -> list[edge.UpdateOperation]:
    payload, key = _payload(body), body.get("key")
    if (ids := _ids(body)) is not None:
        return [edge.UpdateOperation.set_payload(ids, payload, key)]
    return [edge.UpdateOperation.set_payload_by_filter(_filter(body), payload, key)]


def _overwrite_payload(_: CollectionSchema, body: dict[str, Any]) -> list[edge.UpdateOperation]:
    payload, key = _payload(body), body.get("key")
    if (ids := _ids(body)) is not None:
        return [edge.UpdateOperation.overwrite_payload(ids, payload, key)]
    return [edge.UpdateOperation.overwrite_payload_by_filter(_filter(body), payload, key)]


def _payload(body: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(body.get("payload"), dict):
        raise malformed("missing field `payload`")
    payload: dict[str, Any] = body["payload"]
    _check_depth(payload, MAX_DEPTH)
    return payload


def _delete_payload(_: CollectionSchema, body: dict[str, Any]) -> list[edge.UpdateOperation]:
    if not isinstance(keys := body.get("keys"), list):
        raise malformed("missing field `keys`")
    if (ids := _ids(body)) is not None:
        return [edge.UpdateOperation.delete_payload(ids, keys)]
    return [edge.UpdateOperation.delete_payload_by_filter(_filter(body), keys)]


def _clear_payload(_: CollectionSchema, body: dict[str, Any]) -> list[edge.UpdateOperation]:
    if (ids := _ids(body)) is not None:
        return [edge.UpdateOperation.clear_payload(ids)]
    return [edge.UpdateOperation.clear_payload_by_filter(_filter(body))]


def _update_vectors(schema: CollectionSchema, body: dict[str, Any]) -> list[edge.UpdateOperation]:
    points = [
        edge.PointVectors(point_id(point["id"]), _vectors(schema, point["vector"]))
        for point in body.get("points") or []
    ]
    return [edge.UpdateOperation.update_vectors(points, parse_filter(body.get("update_filter")))]


def _delete_vectors(schema: CollectionSchema, body: dict[str, Any]) -> list[edge.UpdateOperation]:
    if not isinstance(names := body.get("vector"), list):
        raise malformed("missing field `vector`")
    for name in names:
        if name not in schema.dense and name not in schema.sparse:
            raise wrong_input(f"Not existing vector name error: {name}")
    if (ids := _ids(body)) is not None:
        return [edge.UpdateOperation.delete_vectors(ids, names)]
    return [edge.UpdateOperation.delete_vectors_by_filter(_filter(body), names)]


OPERATIONS: dict[str, Callable[[CollectionSchema, dict[str, Any]], list[edge.UpdateOperation]]] = {
    "upsert": _upsert,
    "delete": _delete,
    "set_payload": _set_payload,
    "overwrite_payload": _overwrite_payload,
    "delete_payload": _delete_payload,
    "clear_payload": _clear_payload,
    "update_vectors": _update_vectors,
    "delete_vectors": _delete_vectors,
}
"""Writes by the names that `POST /collections/NAME/points/batch` gives them: (schema, body) -> operations of the engine."""


def batch(schema: CollectionSchema, body: dict[str, Any]) -> list[edge.UpdateOperation]:
    """The operations of one `points/batch`, in order."""
    operations = []
    for entry in body.get("operations") or []:
        if len(entry) != 1 or (kind := next(iter(entry))) not in OPERATIONS:
            raise malformed(f"operations: expected an object with one of {', '.join(OPERATIONS)}")
        operations += OPERATIONS[kind](schema, entry[kind])
    return operations


def points_written(body: dict[str, Any]) -> int:
    """How many points the body of an upsert, a vector update or a batch of them sends."""
    if (operations := body.get("operations")) is not None:
        return sum(points_written(value) for entry in operations for value in entry.values())
    if (batched := body.get("batch")) is not None:
        return len(batched["ids"])
    points = body.get("points") or ()
    return len(points) if points and isinstance(points[0], dict) else 0
