"""Bodies of the reading routes as Edge's requests, and what Edge found as Qdrant's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import qdrant_edge as edge

from .errors import invalid, malformed, unsupported
from .filters import MAX_DEPTH, parse_filter, point_id
from .points import check_vector
from .schema import CollectionSchema

_DEFAULT_LIMIT = 10
_DEFAULT_RRF_K = 2
_DEFAULT_MMR_DIVERSITY = 0.5
_FUSIONS = ("rrf", "dbsf")


def limit_of(body: Mapping[str, Any]) -> int:
    """A positive limit; Qdrant answers 422 to 0."""
    limit = body.get("limit")
    if limit is None:
        return _DEFAULT_LIMIT
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise malformed(f"limit: expected a whole number, got {limit!r}")
    if limit < 1:
        raise invalid("limit", f"value {limit} invalid, must be 1 or larger")
    return limit


def with_payload(selector: Any, default: bool) -> Any:
    """A payload selector: a truth value, a list of keys, or `include`/`exclude`."""
    if selector is None:
        return default
    if isinstance(selector, dict):
        if "include" in selector:
            return edge.PayloadSelector.Include(selector["include"])
        if "exclude" in selector:
            return edge.PayloadSelector.Exclude(selector["exclude"])
        raise malformed("with_payload: write true, false, a list of keys, include or exclude")
    return selector


def query_request(schema: CollectionSchema, body: dict[str, Any]) -> edge.QueryRequest:
    """The body of `POST /collections/NAME/points/query`."""
    _refuse(body)
    limit = limit_of(body)
    prefetches = _prefetches(schema, body)
    if prefetches and body.get("query") is None:
        raise malformed("A query is needed to merge the prefetches. Can't have prefetches without defining a query.")
    return edge.QueryRequest(
        limit=limit,
        offset=body.get("offset"),
        query=_query(schema, body, limit),
        prefetches=prefetches,
        filter=parse_filter(body.get("filter")),
        score_threshold=body.get("score_threshold"),
        params=_search_params(body.get("params")),
        with_payload=with_payload(body.get("with_payload"), default=False),
        with_vector=body.get("with_vector", False),
    )


def _prefetches(schema: CollectionSchema, body: dict[str, Any], depth: int = MAX_DEPTH) -> list[edge.Prefetch]:
    if depth == 0:
        raise malformed(f"prefetch: nested more than {MAX_DEPTH} levels deep")
    prefetches = body.get("prefetch") or []
    found = []
    for one in prefetches if isinstance(prefetches, list) else [prefetches]:
        _refuse(one)
        limit = limit_of(one)
        found.append(
            edge.Prefetch(
                limit=limit,
                query=_query(schema, one, limit),
                prefetches=_prefetches(schema, one, depth - 1),
                params=_search_params(one.get("params")),
                filter=parse_filter(one.get("filter")),
                score_threshold=one.get("score_threshold"),
            )
        )
    return found


def _query(schema: CollectionSchema, body: dict[str, Any], limit: int) -> Any:
    query, using = body.get("query"), body.get("using") or ""
    if query is None:
        return None
    if isinstance(query, list) or (isinstance(query, dict) and "indices" in query):
        return edge.Query.Nearest(check_vector(schema, using, query), using)
    if not isinstance(query, dict):
        raise unsupported("a query by the id of a point (retrieve the point and query by its vector)")
    if "nearest" in query:
        nearest = query["nearest"]
        if not isinstance(nearest, list | dict):
            raise unsupported("a query by the id of a point (retrieve the point and query by its vector)")
        vector = check_vector(schema, using, nearest)
        mmr = query.get("mmr")
        if mmr is None:
            return edge.Query.Nearest(vector, using)
        if isinstance(vector, edge.SparseVector):
            raise unsupported("MMR over a sparse vector")
        diversity = mmr.get("diversity")
        diversity = _DEFAULT_MMR_DIVERSITY if diversity is None else diversity
        if not 0 <= diversity <= 1:
            raise invalid("mmr.diversity", f"value {diversity} invalid, must be from 0.0 to 1.0")
        return edge.Mmr(vector, 1.0 - diversity, mmr.get("candidates_limit") or limit, using)
    if "fusion" in query:
        if query["fusion"] not in _FUSIONS:
            raise malformed(f"unknown fusion {query['fusion']!r}, expected one of {', '.join(_FUSIONS)}")
        return edge.Fusion.Dbsf() if query["fusion"] == "dbsf" else edge.Fusion.Rrf(k=_DEFAULT_RRF_K)
    if "rrf" in query:
        rrf = query["rrf"]
        k = _DEFAULT_RRF_K if rrf.get("k") is None else rrf["k"]
        if k < 1:
            raise invalid("rrf.k", f"value {k} invalid, must be 1 or larger")
        return edge.Fusion.Rrf(k=k, weights=rrf.get("weights"))
    if "order_by" in query:
        return order_by(query["order_by"])
    if "sample" in query:
        return edge.Sample.Random
    raise unsupported(f"queries of the kind {', '.join(sorted(query))}")


def order_by(body: Any) -> edge.OrderBy | None:
    """An order by a payload key: the key, or an object with `key`, `direction` and `start_from`."""
    if body is None:
        return None
    if isinstance(body, str):
        return edge.OrderBy(body)
    direction = {"asc": edge.Direction.Asc, "desc": edge.Direction.Desc, None: None}[body.get("direction")]
    return edge.OrderBy(body["key"], direction, body.get("start_from"))


def _search_params(body: Any) -> edge.SearchParams | None:
    """Quantization is left out on purpose: no collection of this store has quantized vectors."""
    if not body:
        return None
    acorn, idf = body.get("acorn"), body.get("idf")
    return edge.SearchParams(
        hnsw_ef=body.get("hnsw_ef"),
        exact=body.get("exact") or False,
        indexed_only=body.get("indexed_only") or False,
        acorn=edge.AcornSearchParams(acorn.get("enable") or False, acorn.get("max_selectivity")) if acorn else None,
        idf=edge.IdfParams(corpus=parse_filter(idf["corpus"])) if isinstance(idf, dict) else None,
    )


def _refuse(body: dict[str, Any]) -> None:
    if body.get("lookup_from") is not None:
        raise unsupported("lookup_from another collection")


def scroll_request(body: dict[str, Any]) -> edge.ScrollRequest:
    """The body of `POST /collections/NAME/points/scroll`."""
    offset = body.get("offset")
    return edge.ScrollRequest(
        offset=None if offset is None else point_id(offset),
        limit=limit_of(body),
        filter=parse_filter(body.get("filter")),
        with_payload=with_payload(body.get("with_payload"), default=True),
        with_vector=body.get("with_vector", False),
        order_by=order_by(body.get("order_by")),
    )


def count_request(body: dict[str, Any]) -> edge.CountRequest:
    """The body of `POST /collections/NAME/points/count`; counts exactly unless told otherwise."""
    exact = body.get("exact")
    return edge.CountRequest(exact=True if exact is None else exact, filter=parse_filter(body.get("filter")))


def facet_request(body: dict[str, Any]) -> edge.FacetRequest:
    """The body of `POST /collections/NAME/facet`."""
    if not isinstance(body.get("key"), str):
        raise malformed("missing field `key`")
    return edge.FacetRequest(
        body["key"], limit=limit_of(body), exact=body.get("exact") or False, filter=parse_filter(body.get("filter"))
    )


def record_json(record: edge.Record | edge.ScoredPoint) -> dict[str, Any]:
    """A point as Qdrant shows it; what was not asked for is left out."""
    found: dict[str, Any] = {"id": record.id}
    if record.payload is not None:
        found["payload"] = record.payload
    if record.vector is not None:
        found["vector"] = _vector_json(record.vector)
    if record.order_value is not None:
        found["order_value"] = record.order_value
    return found


def scored_json(point: edge.ScoredPoint) -> dict[str, Any]:
    """A found point: a record with its version and score."""
    return record_json(point) | {"version": point.version, "score": point.score}


def _vector_json(vector: Any) -> Any:
    if isinstance(vector, dict):
        return {name: _vector_json(value) for name, value in vector.items()}
    if isinstance(vector, edge.SparseVector):
        return {"indices": vector.indices, "values": vector.values}
    return vector
