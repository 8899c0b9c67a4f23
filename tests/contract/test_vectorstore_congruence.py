"""The embedded store answers as Qdrant does: one set of calls, on it and on the server that QDRANT_URL names (if any)."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.version_check import get_server_version, is_compatible
from qdrant_client.http.exceptions import UnexpectedResponse

from llmops_services.vectorstore.process import StoreProcess

DIMENSIONS = 16
POINTS = 240
DENSE = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
SPARSE = models.SparseVectorParams(modifier=models.Modifier.IDF)
SERVER = os.environ.get("QDRANT_URL")


@pytest.fixture(scope="module", params=["embedded", *(["server"] if SERVER else [])])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "server":
        yield SERVER or ""
        return
    with StoreProcess(tmp_path_factory.mktemp("store"), {"QDRANT_API_KEY": ""}) as store:
        yield store.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[QdrantClient]:
    api_key = os.environ.get("QDRANT_API_KEY") if url == SERVER else None
    client = QdrantClient(url=url, api_key=api_key, timeout=30, check_compatibility=False)
    yield client
    client.close()


@pytest.fixture
def name(client: QdrantClient) -> Iterator[str]:
    """The name of an empty collection with the vectors `dense` and `bm25`."""
    name = f"congruence-{uuid4().hex}"
    client.create_collection(name, vectors_config={"dense": DENSE}, sparse_vectors_config={"bm25": SPARSE})
    yield name
    client.delete_collection(name)


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


def test_payload_indexes_are_listed_and_change_no_answer(client: QdrantClient, name: str) -> None:
    rng = random.Random(5)
    payloads = [
        {
            "word": rng.choice("abc"),
            "n": rng.randrange(20),
            "x": rng.random(),
            "yes": rng.random() < 0.5,
            "at": f"2024-{rng.randrange(1, 13):02}-01T00:00:00Z",
            "text": " ".join(rng.choices(["red", "green", "blue"], k=3)),
        }
        for _ in range(60)
    ]
    client.upsert(name, [models.PointStruct(id=i, vector={}, payload=p) for i, p in enumerate(payloads)])
    field = models.FieldCondition
    conditions = {
        "word": field(key="word", match=models.MatchAny(any=["a", "b"])),
        "n": field(key="n", range=models.Range(gte=5, lt=15)),
        "x": field(key="x", range=models.Range(gt=0.5)),
        "yes": field(key="yes", match=models.MatchValue(value=True)),
        "at": field(key="at", range=models.DatetimeRange(gte="2024-03-01T00:00:00Z", lte="2024-09-01T00:00:00Z")),
    }
    expected = {
        "word": {i for i, p in enumerate(payloads) if p["word"] in "ab"},
        "n": {i for i, p in enumerate(payloads) if 5 <= p["n"] < 15},
        "x": {i for i, p in enumerate(payloads) if p["x"] > 0.5},
        "yes": {i for i, p in enumerate(payloads) if p["yes"]},
        "at": {i for i, p in enumerate(payloads) if "2024-03" <= p["at"][:7] <= "2024-09"},
    }

    def answers() -> dict[str, set[Any]]:
        found = {}
        for key, condition in conditions.items():
            records, _ = client.scroll(name, scroll_filter=models.Filter(must=[condition]), limit=100)
            found[key] = {record.id for record in records}
        return found

    assert answers() == expected
    kinds = {"word": "keyword", "n": "integer", "x": "float", "yes": "bool", "at": "datetime"}
    for key, kind in kinds.items():
        client.create_payload_index(name, key, models.PayloadSchemaType(kind))
    text = models.TextIndexParams(type=models.TextIndexType.TEXT, tokenizer=models.TokenizerType.WORD, lowercase=True)
    client.create_payload_index(name, "text", text)
    assert answers() == expected
    both = models.Filter(must=[field(key="text", match=models.MatchText(text="Blue red"))])
    assert client.count(name, both).count == sum({"blue", "red"} <= set(p["text"].split()) for p in payloads)

    schema = client.get_collection(name).payload_schema
    assert {key: index.data_type.value for key, index in schema.items()} == kinds | {"text": "text"}
    assert {index.points for index in schema.values()} == {60}
    assert schema["text"].params.tokenizer == models.TokenizerType.WORD
    hits = client.facet(name, "word", facet_filter=models.Filter(must=[conditions["n"]]), exact=True).hits
    assert {hit.value: hit.count for hit in hits} == Counter(payloads[i]["word"] for i in expected["n"])
    ordered, _ = client.scroll(name, order_by=models.OrderBy(key="n", direction=models.Direction.DESC), limit=60)
    assert [record.payload["n"] for record in ordered] == sorted((p["n"] for p in payloads), reverse=True)
    client.delete_payload_index(name, "x")
    assert set(client.get_collection(name).payload_schema) == kinds.keys() - {"x"} | {"text"}
    assert answers() == expected


class Model:
    """What a collection of dense vectors answers, computed with a dict and numpy."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.vectors: dict[Any, np.ndarray] = {}
        self.payloads: dict[Any, dict[str, Any]] = {}

    def new_point(self, identity: Any) -> models.PointStruct:
        vector = np.array([self.rng.gauss(0, 1) for _ in range(DIMENSIONS)])
        payload: dict[str, Any] = {"colour": self.rng.choice(["red", "green", "blue"]), "n": self.rng.randrange(50)}
        if self.rng.random() < 0.5:
            payload["tags"] = self.rng.sample(["x", "y", "z"], self.rng.randrange(0, 3))
        self.vectors[identity], self.payloads[identity] = vector / np.linalg.norm(vector), payload
        return models.PointStruct(id=identity, vector={"dense": vector.tolist()}, payload=payload)

    def condition(self, depth: int = 2) -> tuple[Any, Callable[[Any], bool]]:
        """A random condition, and what it means."""
        field, rng, payloads = models.FieldCondition, self.rng, self.payloads
        kind = rng.randrange(7 if depth else 6)
        if kind == 0:
            colour = rng.choice(["red", "green", "none"])
            return field(key="colour", match=models.MatchValue(value=colour)), lambda i: payloads[i]["colour"] == colour
        if kind == 1:
            low, high = sorted((rng.randrange(50), rng.randrange(50)))
            return field(key="n", range=models.Range(gte=low, lt=high)), lambda i: low <= payloads[i]["n"] < high
        if kind == 2:
            some = rng.sample(range(50), 5)
            return field(key="n", match=models.MatchAny(any=some)), lambda i: payloads[i]["n"] in some
        if kind == 3:
            tag = rng.choice("xyz")
            return field(key="tags", match=models.MatchValue(value=tag)), lambda i: tag in payloads[i].get("tags", [])
        if kind == 4:
            empty = models.IsEmptyCondition(is_empty=models.PayloadField(key="tags"))
            return empty, lambda i: not payloads[i].get("tags")
        if kind == 5:
            ids = rng.sample(list(self.vectors), 20)
            return models.HasIdCondition(has_id=ids), lambda i: i in ids
        return self.filter(depth - 1)

    def filter(self, depth: int = 2) -> tuple[models.Filter, Callable[[Any], bool]]:
        """A random filter, and what it means."""
        must, should, must_not = (
            [self.condition(depth) for _ in range(self.rng.randrange(bound))] for bound in (2, 3, 2)
        )
        return (
            models.Filter(must=[c for c, _ in must], should=[c for c, _ in should], must_not=[c for c, _ in must_not]),
            lambda i: (
                all(holds(i) for _, holds in must)
                and (not should or any(holds(i) for _, holds in should))
                and not any(holds(i) for _, holds in must_not)
            ),
        )


@pytest.mark.parametrize("seed", range(2))
def test_random_searches_filters_and_pages_agree_with_numpy(client: QdrantClient, name: str, seed: int) -> None:
    model = Model(seed)
    ids = [*range(POINTS // 2), *(str(UUID(int=model.rng.getrandbits(128), version=4)) for _ in range(POINTS // 2))]
    client.upsert(name, [model.new_point(identity) for identity in ids])
    client.upsert(name, [model.new_point(identity) for identity in model.rng.sample(ids, 40)])
    gone = model.rng.sample(ids, 20)
    client.delete(name, gone)
    for identity in gone:
        del model.vectors[identity], model.payloads[identity]
    if seed % 2:
        client.create_payload_index(name, "colour", models.PayloadSchemaType.KEYWORD)
        client.create_payload_index(name, "n", models.PayloadSchemaType.INTEGER)
    for _ in range(25):
        condition, holds = model.filter()
        kept = [identity for identity in model.vectors if holds(identity)]
        assert client.count(name, condition).count == len(kept)
        query = np.array([model.rng.gauss(0, 1) for _ in range(DIMENSIONS)])
        scores = {i: float(model.vectors[i] @ query / np.linalg.norm(query)) for i in kept}
        ranked = sorted(kept, key=lambda i: -scores[i])
        limit, offset, threshold = model.rng.randrange(1, 30), model.rng.randrange(4), model.rng.choice([None, 0.1])
        expected = [i for i in ranked if threshold is None or scores[i] > threshold][offset : offset + limit]
        found = client.query_points(
            name,
            query=query.tolist(),
            using="dense",
            query_filter=condition,
            limit=limit,
            offset=offset,
            score_threshold=threshold,
            with_payload=True,
        ).points
        assert [point.id for point in found] == expected
        assert [point.score for point in found] == pytest.approx([scores[i] for i in expected], abs=1e-4)
        assert [point.payload for point in found] == [model.payloads[i] for i in expected]

        pages, start = [], None
        while True:
            page, start = client.scroll(name, scroll_filter=condition, limit=limit, offset=start)
            pages += page
            assert len(page) == limit or start is None
            if start is None:
                break
        assert [record.id for record in pages] == sorted(kept, key=lambda i: (isinstance(i, str), i))


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
