"""Searches, filters and pages give the points that plain Python finds, on the embedded store and on a Qdrant server (if any)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from either_store import DIMENSIONS
from qdrant_client import QdrantClient, models

POINTS = 240


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
