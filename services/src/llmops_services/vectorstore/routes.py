"""What each route does: read the request, ask or change a collection, give back the `result` of the envelope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import qdrant_edge as edge
from starlette.requests import Request

from .catalog import Catalog
from .collection import Collection
from .errors import StoreError, malformed, not_found, reading_request
from .filters import point_id
from .payload_indexes import payload_index
from .points import OPERATIONS, batch, points_written
from .queries import count_request, facet_request, query_request, record_json, scored_json, scroll_request, with_payload
from .schema import CollectionSchema, collection_info, parse_schema, update_schema

_MAX_BODY_BYTES = 32 * 2**20

Handler = Callable[[Catalog, Request], Awaitable[Any]]
Body = dict[str, Any]


async def _bytes(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise StoreError(413, f"Payload too large: a body may have {_MAX_BODY_BYTES} bytes; send smaller batches")
    return bytes(body)


def _parsed(body: bytes) -> Body:
    try:
        parsed = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise malformed(str(error)) from error
    if not isinstance(parsed, dict):
        raise malformed("expected an object")
    return parsed


def _collection(catalog: Catalog, request: Request) -> Collection:
    return catalog.resolve(request.path_params["name"])


async def _list_collections(catalog: Catalog, _: Request) -> Any:
    return {"collections": [{"name": name} for name in catalog.collections]}


async def _exists(catalog: Catalog, request: Request) -> Any:
    name = request.path_params["name"]
    return {"exists": name in catalog.collections or name in catalog.aliases}


async def _get_collection(catalog: Catalog, request: Request) -> Any:
    collection = _collection(catalog, request)
    return await collection.read(
        lambda shard: collection_info(collection.schema, shard, optimizing=collection.optimizing)
    )


async def _create_collection(catalog: Catalog, request: Request) -> Any:
    await catalog.create(request.path_params["name"], parse_schema(_parsed(await _bytes(request))))
    return True


async def _update_collection(catalog: Catalog, request: Request) -> Any:
    body = _parsed(await _bytes(request))
    await _collection(catalog, request).change_schema(lambda schema: update_schema(schema, body))
    return True


async def _delete_collection(catalog: Catalog, request: Request) -> Any:
    return await catalog.delete(request.path_params["name"])


async def _list_aliases(catalog: Catalog, _: Request) -> Any:
    return _aliases(catalog.aliases)


async def _collection_aliases(catalog: Catalog, request: Request) -> Any:
    collection = _collection(catalog, request).name
    return _aliases({alias: target for alias, target in catalog.aliases.items() if target == collection})


def _aliases(aliases: dict[str, str]) -> Any:
    return {"aliases": [{"alias_name": alias, "collection_name": target} for alias, target in aliases.items()]}


async def _change_aliases(catalog: Catalog, request: Request) -> Any:
    await catalog.change_aliases(_parsed(await _bytes(request)).get("actions"))
    return True


def _write(build: Callable[[CollectionSchema, Body], list[edge.UpdateOperation]], *, batched: bool = False) -> Handler:
    """A route that changes points or payload indexes. The body is parsed in the writer's thread.

    A `batched` one answers with a result for each of the body's operations.
    """

    async def handler(catalog: Catalog, request: Request) -> Any:
        body = await _bytes(request)
        parts = 1

        def operations(schema: CollectionSchema) -> tuple[list[edge.UpdateOperation], int]:
            nonlocal parts
            parsed = _parsed(body)
            parts = len(parsed["operations"]) if batched else 1
            return build(schema, parsed), points_written(parsed)

        number = await _collection(catalog, request).write(operations, size=len(body))
        status = "completed" if request.query_params.get("wait") == "true" else "acknowledged"
        result = {"operation_id": number, "status": status}
        return [result] * parts if batched else result

    return handler


async def _delete_index(catalog: Catalog, request: Request) -> Any:
    delete = edge.UpdateOperation.delete_field_index(request.path_params["field"])
    return await _write(lambda _schema, _body: [delete])(catalog, request)


def _read(answer: Callable[[CollectionSchema, Body], Callable[[edge.EdgeShard], Any]]) -> Handler:
    """A route that asks. `answer` reads the body and returns what to ask the shard; both run in a thread, as does the encoding
    of the answer: a page of points with vectors is megabytes.
    """

    async def handler(catalog: Catalog, request: Request) -> Any:
        body = await _bytes(request)
        collection = _collection(catalog, request)

        def ask(shard: edge.EdgeShard) -> Any:
            with reading_request():
                asked = answer(collection.schema, _parsed(body))
            return orjson.Fragment(orjson.dumps(asked(shard)))

        return await collection.read(ask)

    return handler


def _retrieve(_: CollectionSchema, body: Body) -> Callable[[edge.EdgeShard], Any]:
    ids = [point_id(value) for value in body["ids"]]
    payload = with_payload(body.get("with_payload"), default=True)
    vector = body.get("with_vector", False)
    return lambda shard: [record_json(record) for record in shard.retrieve(ids, payload, vector)]


async def _retrieve_one(catalog: Catalog, request: Request) -> Any:
    identity = request.path_params["id"]
    wanted = point_id(int(identity) if identity.isdecimal() else identity)
    records = await _collection(catalog, request).read(lambda shard: shard.retrieve([wanted], True, True))
    if not records:
        raise not_found(f"Point with id {identity} does not exists!")
    return record_json(records[0])


def _scroll(_: CollectionSchema, body: Body) -> Callable[[edge.EdgeShard], Any]:
    request = scroll_request(body)

    def ask(shard: edge.EdgeShard) -> Any:
        records, following = shard.scroll(request)
        return {"points": [record_json(record) for record in records], "next_page_offset": following}

    return ask


def _count(_: CollectionSchema, body: Body) -> Callable[[edge.EdgeShard], Any]:
    request = count_request(body)
    return lambda shard: {"count": shard.count(request)}


def _facet(_: CollectionSchema, body: Body) -> Callable[[edge.EdgeShard], Any]:
    request = facet_request(body)
    return lambda shard: {"hits": [{"value": hit.value, "count": hit.count} for hit in shard.facet(request).hits]}


def _query(schema: CollectionSchema, body: Body) -> Callable[[edge.EdgeShard], Any]:
    request = query_request(schema, body)
    return lambda shard: {"points": [scored_json(point) for point in shard.query(request)]}


def _query_batch(schema: CollectionSchema, body: Body) -> Callable[[edge.EdgeShard], Any]:
    request = edge.QueryBatchRequest([query_request(schema, search) for search in body["searches"]])
    return lambda shard: [{"points": [scored_json(point) for point in points]} for points in shard.query_batch(request)]


_COLLECTION = "/collections/{name}"
_POINTS = _COLLECTION + "/points"
ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", _POINTS + "/query", _read(_query)),
    ("POST", _POINTS + "/query/batch", _read(_query_batch)),
    ("PUT", _POINTS, _write(OPERATIONS["upsert"])),
    ("POST", _POINTS, _read(_retrieve)),
    ("POST", _POINTS + "/scroll", _read(_scroll)),
    ("POST", _POINTS + "/count", _read(_count)),
    ("POST", _COLLECTION + "/facet", _read(_facet)),
    ("POST", _POINTS + "/delete", _write(OPERATIONS["delete"])),
    ("POST", _POINTS + "/batch", _write(batch, batched=True)),
    ("POST", _POINTS + "/payload", _write(OPERATIONS["set_payload"])),
    ("PUT", _POINTS + "/payload", _write(OPERATIONS["overwrite_payload"])),
    ("POST", _POINTS + "/payload/delete", _write(OPERATIONS["delete_payload"])),
    ("POST", _POINTS + "/payload/clear", _write(OPERATIONS["clear_payload"])),
    ("PUT", _POINTS + "/vectors", _write(OPERATIONS["update_vectors"])),
    ("POST", _POINTS + "/vectors/delete", _write(OPERATIONS["delete_vectors"])),
    ("GET", _POINTS + "/{id}", _retrieve_one),
    ("PUT", _COLLECTION + "/index", _write(lambda _, body: [payload_index(body)])),
    ("DELETE", _COLLECTION + "/index/{field:path}", _delete_index),
    ("GET", "/aliases", _list_aliases),
    ("GET", _COLLECTION + "/aliases", _collection_aliases),
    ("POST", "/collections/aliases", _change_aliases),
    ("GET", "/collections", _list_collections),
    ("GET", _COLLECTION + "/exists", _exists),
    ("GET", _COLLECTION, _get_collection),
    ("PUT", _COLLECTION, _create_collection),
    ("PATCH", _COLLECTION, _update_collection),
    ("DELETE", _COLLECTION, _delete_collection),
]
"""(method, path, handler), the busy ones first."""
