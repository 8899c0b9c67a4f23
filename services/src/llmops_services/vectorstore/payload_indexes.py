"""Payload indexes: REST bodies as Edge's index parameters, and back."""

from __future__ import annotations

from enum import Enum
from typing import Any

import qdrant_edge as edge

from .errors import malformed, unsupported

_INDEX_PARAMS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "keyword": (edge.KeywordIndexParams, ("is_tenant", "on_disk", "enable_hnsw", "prefix")),
    "integer": (edge.IntegerIndexParams, ("lookup", "range", "is_principal", "on_disk", "enable_hnsw")),
    "float": (edge.FloatIndexParams, ("is_principal", "on_disk", "enable_hnsw")),
    "bool": (edge.BoolIndexParams, ("on_disk", "enable_hnsw")),
    "datetime": (edge.DatetimeIndexParams, ("is_principal", "on_disk", "enable_hnsw")),
    "uuid": (edge.UuidIndexParams, ("is_tenant", "on_disk", "enable_hnsw")),
    "geo": (edge.GeoIndexParams, ("on_disk", "enable_hnsw")),
    "text": (
        edge.TextIndexParams,
        (
            "tokenizer",
            "min_token_len",
            "max_token_len",
            "lowercase",
            "ascii_folding",
            "phrase_matching",
            "on_disk",
            "enable_hnsw",
        ),
    ),
}
_INDEX_TYPES = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
    "geo": edge.PayloadSchemaType.Geo,
    "text": edge.PayloadSchemaType.Text,
    "bool": edge.PayloadSchemaType.Bool,
    "datetime": edge.PayloadSchemaType.Datetime,
    "uuid": edge.PayloadSchemaType.Uuid,
}
_TOKENIZERS = {
    "prefix": edge.TokenizerType.Prefix,
    "whitespace": edge.TokenizerType.Whitespace,
    "word": edge.TokenizerType.Word,
    "multilingual": edge.TokenizerType.Multilingual,
}


def payload_index(body: dict[str, Any]) -> edge.UpdateOperation:
    """The operation of `PUT /collections/NAME/index`."""
    field, wanted = body.get("field_name"), body.get("field_schema")
    if not isinstance(field, str) or not field:
        raise malformed("missing field `field_name`")
    if isinstance(wanted, str):
        if wanted not in _INDEX_TYPES:
            raise malformed(f"field_schema: unknown type {wanted!r}; write one of {', '.join(_INDEX_TYPES)}")
        return edge.UpdateOperation.create_field_index(field, _INDEX_TYPES[wanted])
    if not isinstance(wanted, dict) or wanted.get("type") not in _INDEX_PARAMS:
        raise malformed(f"field_schema: write a type or an object with one: {', '.join(_INDEX_TYPES)}")
    params_type, known = _INDEX_PARAMS[wanted["type"]]
    given = {key: value for key, value in wanted.items() if key != "type" and value is not None}
    if unknown := given.keys() - set(known):
        raise unsupported(f"{', '.join(sorted(unknown))} of a {wanted['type']} index")
    if "tokenizer" in given:
        given["tokenizer"] = _TOKENIZERS[given["tokenizer"]]
    return edge.UpdateOperation.create_field_index(field, params_type(**given))


def index_json(index: edge.PayloadIndexInfo) -> dict[str, Any]:
    """An entry of a collection's `payload_schema`; `params` only where the index was created with some."""
    kind = next(name for name, value in _INDEX_TYPES.items() if value == index.data_type)
    info: dict[str, Any] = {"data_type": kind, "points": index.points}
    if index.params is not None:
        values = {key: getattr(index.params, key) for key in _INDEX_PARAMS[kind][1]}
        info["params"] = {"type": kind} | {key: _plain(value) for key, value in values.items() if value is not None}
    return info


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    name = value.name if isinstance(value, Enum) else str(value).rsplit(".", 1)[-1]
    return name.lower()
