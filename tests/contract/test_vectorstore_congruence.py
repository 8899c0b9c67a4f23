"""The embedded store answers as Qdrant does: one set of calls, on it and on the server that QDRANT_URL names (if any)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from either_store import DENSE, DIMENSIONS, SERVER, SPARSE
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.version_check import get_server_version, is_compatible
from qdrant_client.http.exceptions import UnexpectedResponse


def status_of(call: Callable[[], Any]) -> int:
    with pytest.raises(UnexpectedResponse) as caught:
        call()
    assert caught.value.status_code is not None
    assert b'"error"' in caught.value.content
    return caught.value.status_code


def test_speaks_a_version_that_the_client_accepts_without_a_warning(url: str) -> None:
    version = get_server_version(url, {}, None, 5)
    assert is_compatible("1.20.0", version)


def test_a_collection_is_created_described_changed_and_deleted(client: QdrantClient) -> None:
    name = f"congruence-{uuid4().hex}"
    metadata = {"llmops": {"fingerprint": "f00", "sparse": True, "nothing": None}}
    assert client.collection_exists(name) is False
    assert client.create_collection(
        name, vectors_config={"dense": DENSE}, sparse_vectors_config={"bm25": SPARSE}, metadata=metadata
    )
    assert client.collection_exists(name) is True
    assert name in [one.name for one in client.get_collections().collections]
    info = client.get_collection(name)
    assert (info.points_count, info.status) == (0, models.CollectionStatus.GREEN)
    assert info.config.params.vectors["dense"].size == DIMENSIONS
    assert info.config.params.vectors["dense"].distance == models.Distance.COSINE
    assert info.config.params.sparse_vectors["bm25"].modifier == models.Modifier.IDF
    assert info.config.metadata == metadata
    assert info.payload_schema == {}
    assert status_of(lambda: client.create_collection(name, vectors_config={"dense": DENSE})) == 409

    client.update_collection(name, metadata={"note": "new", "llmops": {"fingerprint": "ba4"}})
    assert client.get_collection(name).config.metadata == {"note": "new", "llmops": {"fingerprint": "ba4"}}
    client.update_collection(name, metadata={"note": None})
    assert client.get_collection(name).config.metadata == {"llmops": {"fingerprint": "ba4"}}

    assert client.delete_collection(name) is True
    assert client.delete_collection(name) is False
    assert client.collection_exists(name) is False
    assert status_of(lambda: client.get_collection(name)) == 404
    assert status_of(lambda: client.count(name)) == 404


def test_a_collection_with_one_unnamed_vector_works_without_names(client: QdrantClient) -> None:
    name = f"congruence-{uuid4().hex}"
    client.create_collection(name, vectors_config=models.VectorParams(size=2, distance=models.Distance.EUCLID))
    points = [models.PointStruct(id=i, vector=[float(i), 0.0]) for i in range(5)]
    client.upsert(name, points)
    found = client.query_points(name, query=[3.2, 0.0], limit=2, with_vectors=True).points
    assert [(point.id, point.vector) for point in found] == [(3, [3.0, 0.0]), (4, [4.0, 0.0])]
    assert [point.score for point in found] == pytest.approx([0.2, 0.8], abs=1e-4)
    client.delete_collection(name)


def test_aliases_stand_for_collections_and_are_switched_together(client: QdrantClient, name: str) -> None:
    other, blue, green = (f"congruence-{uuid4().hex}" for _ in range(3))
    client.create_collection(other, vectors_config={"dense": DENSE})
    client.upsert(name, [models.PointStruct(id=1, vector={})])

    def create(collection: str, alias: str) -> models.CreateAliasOperation:
        return models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)
        )

    def delete(alias: str) -> models.DeleteAliasOperation:
        return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))

    def rename(old: str, new: str) -> models.RenameAliasOperation:
        return models.RenameAliasOperation(rename_alias=models.RenameAlias(old_alias_name=old, new_alias_name=new))

    def aliases() -> dict[str, str]:
        return {one.alias_name: one.collection_name for one in client.get_aliases().aliases}

    assert client.update_collection_aliases([create(name, blue)])
    assert aliases()[blue] == name
    assert [one.alias_name for one in client.get_collection_aliases(name).aliases] == [blue]
    assert client.count(blue).count == 1
    assert client.collection_exists(blue) is True
    assert client.get_collection(blue).points_count == 1

    client.update_collection_aliases([delete(blue), create(other, blue), create(name, green)])
    assert (aliases()[blue], aliases()[green]) == (other, name)
    assert client.count(blue).count == 0
    client.update_collection_aliases([create(name, blue)])
    assert aliases()[blue] == name
    client.update_collection_aliases([delete(green), rename(blue, green)])
    assert aliases()[green] == name
    assert blue not in aliases()

    assert status_of(lambda: client.update_collection_aliases([create("congruence-none", blue)])) == 404
    assert status_of(lambda: client.update_collection_aliases([rename("congruence-none", blue)])) == 404
    assert status_of(lambda: client.update_collection_aliases([create(other, name)])) == 409
    assert status_of(lambda: client.create_collection(green, vectors_config={"dense": DENSE})) == 400
    assert client.update_collection_aliases([delete("congruence-none")])

    client.update_collection_aliases([create(other, blue)])
    client.delete_collection(other)
    assert blue not in aliases()
    assert status_of(lambda: client.count(blue)) == 404


def test_points_are_written_read_and_deleted(client: QdrantClient, name: str) -> None:
    key = str(uuid4())
    unit = [1.0] + [0.0] * (DIMENSIONS - 1)
    sparse = models.SparseVector(indices=[7, 3], values=[0.5, 2.0])
    result = client.upsert(
        name, [models.PointStruct(id=2, vector={"dense": [2 * x for x in unit], "bm25": sparse}, payload={"a": 1})]
    )
    assert result.status == models.UpdateStatus.COMPLETED
    batch = models.Batch(ids=[5, key], vectors={"dense": [unit, unit]}, payloads=[{"a": 5, "deep": {"er": [1]}}, {}])
    client.upsert(name, batch)
    assert client.count(name).count == 3

    found = client.retrieve(name, [key, 2, 999], with_vectors=True)
    assert {point.id for point in found} == {2, key}
    (second,) = client.retrieve(name, [2], with_vectors=True)
    assert second.payload == {"a": 1}
    assert second.vector["dense"] == pytest.approx(unit), "cosine vectors are kept normalised"
    assert dict(zip(second.vector["bm25"].indices, second.vector["bm25"].values, strict=True)) == {3: 2.0, 7: 0.5}
    assert client.retrieve(name, [2], with_payload=False)[0].payload is None
    assert client.retrieve(name, [5], with_payload=["deep"])[0].payload == {"deep": {"er": [1]}}
    exclude = models.PayloadSelectorExclude(exclude=["deep"])
    assert client.retrieve(name, [5], with_payload=exclude)[0].payload == {"a": 5}

    client.set_payload(name, {"b": 2}, points=[2, 5])
    client.set_payload(name, {"er": 3}, points=[5], key="deep")
    client.overwrite_payload(name, {"only": True}, points=[key])
    client.delete_payload(name, ["a"], points=models.Filter(must=[models.HasIdCondition(has_id=[2])]))
    payloads = {point.id: point.payload for point in client.retrieve(name, [2, 5, key])}
    assert payloads == {2: {"b": 2}, 5: {"a": 5, "b": 2, "deep": {"er": 3}}, key: {"only": True}}
    client.clear_payload(name, [key])
    assert client.retrieve(name, [key])[0].payload == {}

    client.upsert(name, [models.PointStruct(id=2, vector={"dense": unit}, payload={"new": 1})])
    assert client.retrieve(name, [2])[0].payload == {"new": 1}, "an upsert replaces the point"
    client.delete(name, [2, 999])
    only_b = models.Filter(must=[models.FieldCondition(key="b", match=models.MatchValue(value=2))])
    client.delete(name, models.FilterSelector(filter=only_b))
    assert [point.id for point in client.scroll(name)[0]] == [key]


def test_batches_of_operations_and_vectors_alone_are_written(client: QdrantClient, name: str) -> None:
    unit, other = [1.0] + [0.0] * (DIMENSIONS - 1), [0.0, 1.0] + [0.0] * (DIMENSIONS - 2)
    client.upload_points(name, (models.PointStruct(id=i, vector={"dense": unit}) for i in range(70)), wait=True)
    results = client.batch_update_points(
        name,
        [
            models.SetPayloadOperation(set_payload=models.SetPayload(payload={"a": 1, "b": 2}, points=[1, 2, 3])),
            models.DeletePayloadOperation(delete_payload=models.DeletePayload(keys=["b"], points=[2])),
            models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload={"c": 3}, points=[3])),
            models.DeleteOperation(delete=models.PointIdsList(points=list(range(10, 70)))),
            models.UpsertOperation(upsert=models.PointsList(points=[models.PointStruct(id=99, vector={})])),
        ],
    )
    assert [result.status for result in results] == [models.UpdateStatus.COMPLETED] * 5
    assert client.count(name).count == 11
    payloads = {record.id: record.payload for record in client.retrieve(name, [1, 2, 3])}
    assert payloads == {1: {"a": 1, "b": 2}, 2: {"a": 1}, 3: {"c": 3}}

    client.update_vectors(name, [models.PointVectors(id=99, vector={"dense": other})])
    assert client.query_points(name, query=other, using="dense", limit=1).points[0].id == 99
    client.delete_vectors(name, ["dense"], [99])
    assert client.retrieve(name, [99], with_vectors=True)[0].vector == {}
    has_dense = models.Filter(must=[models.HasVectorCondition(has_vector="dense")])
    assert client.count(name, has_dense).count == 10

    new = models.PointStruct(id=1, vector={"dense": other}, payload={"new": True})
    client.upsert(name, [new], update_mode=models.UpdateMode.INSERT_ONLY)
    assert client.retrieve(name, [1])[0].payload == {"a": 1, "b": 2}


def test_wrong_requests_get_qdrants_status_codes(client: QdrantClient, url: str, name: str) -> None:
    def upsert(vector: Any) -> Callable[[], Any]:
        return lambda: client.upsert(name, [models.PointStruct(id=1, vector=vector)])

    vector = [0.1] * DIMENSIONS
    assert status_of(upsert({"dense": [1.0]})) == 400
    assert status_of(upsert({"nope": vector})) == 400
    assert status_of(upsert(vector)) == 400
    assert status_of(upsert({"bm25": models.SparseVector(indices=[1, 2], values=[1.0])})) == 422
    assert status_of(upsert({"bm25": models.SparseVector(indices=[1, 1], values=[1.0, 2.0])})) == 422
    assert client.count(name).count == 0, "a refused request wrote nothing"
    client.upsert(name, [models.PointStruct(id=9, vector={"dense": vector}, payload={"unindexed": 1})])
    assert status_of(lambda: client.query_points(name, query=[1.0], using="dense")) == 400
    assert status_of(lambda: client.query_points(name, query=vector, using="nope")) == 400
    assert status_of(lambda: client.query_points(name, query=vector, using="dense", limit=0)) == 422
    assert status_of(lambda: client.facet(name, "unindexed")) == 400
    assert status_of(lambda: client.scroll(name, order_by="unindexed")) == 400
    assert status_of(lambda: client.set_payload(name, {"a": 1}, points=[404])) == 404
    headers = {"content-type": "application/json", "api-key": os.environ.get("QDRANT_API_KEY", "")}
    for path, body in {
        "points?wait=true": b'{"points": [{"id": "no-uuid", "vector": {}}]}',
        "points": b'{"points": [{"id": -1, "vector": {}}]}',
        "index": b'{"field_name": "a", "field_schema": "nothing"}',
    }.items():
        assert httpx.put(f"{url}/collections/{name}/{path}", content=body, headers=headers).status_code == 400, path
    for body in (b"{", b'{"limit": "many"}', b'{"filter": {"must": [{"key": "a", "match": {}}]}}'):
        reply = httpx.post(f"{url}/collections/{name}/points/scroll", content=body, headers=headers)
        assert (reply.status_code, "error" in reply.json()["status"]) == (400, True), body


async def test_the_asynchronous_client_works_the_same(url: str, client: QdrantClient, name: str) -> None:
    client.upsert(name, [models.PointStruct(id=i, vector={"dense": [i + 1.0, 1.0] + [0.0] * 14}) for i in range(4)])
    api_key = os.environ.get("QDRANT_API_KEY") if url == SERVER else None
    asynchronous = AsyncQdrantClient(url=url, api_key=api_key, timeout=30, check_compatibility=False)
    request = models.QueryRequest(query=[1.0] + [0.0] * 15, using="dense", limit=2)
    batches = await asynchronous.query_batch_points(name, [request, request])
    assert [[point.id for point in batch.points] for batch in batches] == [[3, 2], [3, 2]]
    records, following = await asynchronous.scroll(name, limit=3)
    assert ([record.id for record in records], following) == ([0, 1, 2], 3)
    await asynchronous.close()
