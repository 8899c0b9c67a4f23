"""The embedded store and the Qdrant server that QDRANT_URL names get the same random calls and give the same answers."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from llmops_services.vectorstore.process import StoreProcess

DIMENSIONS = 12
SERVER = os.environ.get("QDRANT_URL")

pytestmark = pytest.mark.skipif(SERVER is None, reason="QDRANT_URL names no server to compare with")


def plain(answer: Any) -> Any:
    """An answer as data that can be compared: scores rounded, versions and numbers of operations left out."""
    if hasattr(answer, "model_dump"):
        answer = answer.model_dump(exclude_none=True)
    if isinstance(answer, dict):
        return {key: plain(value) for key, value in answer.items() if key not in {"version", "operation_id"}}
    if isinstance(answer, list | tuple):
        return [plain(value) for value in answer]
    return round(answer, 3) if isinstance(answer, float) else answer


def play(client: QdrantClient, name: str, seed: int) -> list[Any]:
    """Make random calls and list what came of them, errors by their status code."""
    rng = random.Random(seed)
    client.create_collection(
        name,
        vectors_config={"dense": models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)},
        sparse_vectors_config={"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
    )

    def dense() -> list[float]:
        # One in twenty is of another size: both have to refuse it.
        return [rng.gauss(0, 1) for _ in range(DIMENSIONS + (rng.random() < 0.05))]

    def sparse() -> models.SparseVector:
        indices = rng.sample(range(60), rng.randrange(1, 8))
        return models.SparseVector(indices=indices, values=[rng.uniform(0.1, 2) for _ in indices])

    def condition() -> models.Filter | None:
        field = models.FieldCondition
        some: list[Any] = [
            field(key="colour", match=models.MatchValue(value=rng.choice(["red", "blue"]))),
            field(key="n", range=models.Range(gte=rng.randrange(40))),
            field(key="yes", match=models.MatchValue(value=True)),
            models.HasIdCondition(has_id=rng.sample(range(150), 60)),
        ]
        kinds = [None, models.Filter(must=rng.sample(some, 2)), models.Filter(should=some, must_not=[rng.choice(some)])]
        return rng.choice(kinds)

    def upsert() -> Any:
        points = [
            models.PointStruct(
                id=rng.randrange(150),
                vector={"dense": dense(), "bm25": sparse()},
                payload={
                    "colour": rng.choice(["red", "green", "blue"]),
                    "n": rng.random() * 50,
                    "yes": rng.random() < 0.5,
                },
            )
            for _ in range(12)
        ]
        return client.upsert(name, points)

    def index() -> Any:
        fields = {"colour": "keyword", "n": "float", "yes": "bool"}
        field = rng.choice(list(fields))
        client.create_payload_index(name, field, models.PayloadSchemaType(fields[field]))
        return {key: value.data_type for key, value in client.get_collection(name).payload_schema.items()}

    def hybrid() -> Any:
        fusion = models.FusionQuery(fusion=rng.choice(list(models.Fusion)))
        searches = [
            models.Prefetch(query=dense(), using="dense", limit=20, filter=condition()),
            models.Prefetch(query=sparse(), using="bm25", limit=20),
        ]
        found = client.query_points(name, query=fusion, prefetch=searches, limit=8).points
        # Documents of one score may come in any order.
        return sorted(-round(point.score, 3) for point in found)

    calls = [
        upsert,
        index,
        hybrid,
        lambda: client.delete(name, rng.sample(range(150), 5)),
        lambda: client.set_payload(name, {"n": rng.random() * 50}, points=condition() or [rng.randrange(300)]),
        lambda: client.count(name, condition()),
        lambda: client.scroll(name, condition(), limit=rng.randrange(1, 40), with_vectors=rng.random() < 0.5),
        lambda: client.query_points(name, query=dense(), using="dense", query_filter=condition(), with_payload=True),
        lambda: client.query_points(name, query=sparse(), using="bm25", query_filter=condition(), score_threshold=0.5),
        lambda: sorted((hit.count, hit.value) for hit in client.facet(name, "colour", condition(), exact=True).hits),
    ]
    answers: list[Any] = []
    for number in range(150):
        call = upsert if number < 8 else rng.choice(calls)
        try:
            answers.append(plain(call()))
        except UnexpectedResponse as error:
            answers.append(error.status_code)
    client.delete_collection(name)
    return answers


@pytest.mark.parametrize("seed", range(3))
def test_random_calls_get_the_same_answers(tmp_path: Path, seed: int) -> None:
    name = f"congruence-{uuid4().hex}"
    server = QdrantClient(url=SERVER, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60, check_compatibility=False)
    expected = play(server, name, seed)
    server.close()
    with StoreProcess(tmp_path, {"QDRANT_API_KEY": ""}) as store:
        embedded = QdrantClient(url=store.url, timeout=60, check_compatibility=False)
        answers = play(embedded, name, seed)
        embedded.close()
    assert answers == expected
