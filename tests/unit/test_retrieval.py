from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, models

from llmops_api.v1alpha1.rag_service import RetrievalMode
from llmops_services.retrieval import Hit, search, select
from llmops_services.vectors import DENSE, SPARSE, Keywords, payload_filter

TEXTS = [
    "Annual leave in Norway is 25 days.",
    "Annual leave in Germany is 30 days.",
    "Restart the router.",
    "Annual leave in Norway is 25 days.",
]
VECTORS = np.asarray([[0.9, 0.1, 0, 0], [0.8, 0.6, 0, 0], [0, 0, 1, 0], [0.9, 0.1, 0, 0]], dtype=np.float32)
QUESTION = [1.0, 0.0, 0.0, 0.0]


@pytest.fixture
async def client() -> AsyncIterator[AsyncQdrantClient]:
    client = AsyncQdrantClient(":memory:")
    await client.create_collection(
        "c",
        vectors_config={DENSE: models.VectorParams(size=4, distance=models.Distance.COSINE)},
        sparse_vectors_config={SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)},
    )
    words = Keywords(128)
    points = [
        models.PointStruct(
            id=number,
            vector={DENSE: VECTORS[number].tolist(), SPARSE: words.document(text)},
            payload={
                "text": text, "title": "T", "section": "A > B", "source": "hr" if number < 2 else "it", "path": f"{number}.md",
                "uri": f"file:///{number}.md", "lines": [1, 2], "document_id": f"d{number}", "chunk_hash": text, "metadata": {"team": number},
            },
        )
        for number, text in enumerate(TEXTS)
    ]  # fmt: skip
    await client.upsert("c", points)
    yield client
    await client.close()


def cosine(number: int) -> float:
    return float(VECTORS[number][0] / np.linalg.norm(VECTORS[number]))


async def ask(client: AsyncQdrantClient, query: str, mode: RetrievalMode, **rest: Any) -> list[Hit]:
    return await search(client, "c", query, QUESTION, mode=mode, **rest)


async def test_dense_is_ordered_and_scored_by_cosine_and_identical_chunks_count_once(client: AsyncQdrantClient) -> None:
    hits = await ask(client, "router", RetrievalMode.DENSE)
    assert [hit.text for hit in hits] == [TEXTS[0], TEXTS[1], TEXTS[2]]
    assert [hit.score for hit in hits] == pytest.approx([cosine(0), cosine(1), 0], abs=1e-5)
    assert (hits[1].source, hits[1].path, hits[1].lines, hits[1].collection) == ("hr", "1.md", (1, 2), "c")


async def test_sparse_finds_by_words_alone(client: AsyncQdrantClient) -> None:
    hits = await search(client, "c", "restarting routers", None, mode=RetrievalMode.SPARSE)
    assert [hit.text for hit in hits] == [TEXTS[2]]
    assert hits[0].score > 0
    assert await search(client, "c", "is the in", None, mode=RetrievalMode.SPARSE) == []


async def test_hybrid_orders_by_ranks_and_scores_by_cosine(client: AsyncQdrantClient) -> None:
    hits = await ask(client, "leave Germany", RetrievalMode.HYBRID)
    # second by cosine and first by words goes before first by cosine and second by words only by what ranks say
    assert {hit.text for hit in hits[:2]} == {TEXTS[0], TEXTS[1]}
    assert {hit.text: hit.score for hit in hits} == pytest.approx(
        {TEXTS[0]: cosine(0), TEXTS[1]: cosine(1), TEXTS[2]: 0}, abs=1e-5
    )


async def test_a_chunk_that_only_words_find_has_a_cosine_too(client: AsyncQdrantClient) -> None:
    hits = await ask(client, "router", RetrievalMode.HYBRID, candidates=1)
    both = await ask(client, "router", RetrievalMode.HYBRID, candidates=2)
    assert len(hits) == 1
    assert TEXTS[2] in [hit.text for hit in both]
    assert next(hit.score for hit in both if hit.text == TEXTS[2]) == pytest.approx(0, abs=1e-5)


async def test_hybrid_without_keywords_is_dense(client: AsyncQdrantClient) -> None:
    dense = await ask(client, "leave", RetrievalMode.DENSE)
    assert await ask(client, "router", RetrievalMode.HYBRID, sparse=False) == dense
    assert await ask(client, "the of", RetrievalMode.HYBRID) == dense
    with pytest.raises(ValueError, match=r"sparse\.enabled"):
        await ask(client, "router", RetrievalMode.SPARSE, sparse=False)
    with pytest.raises(ValueError, match="vector"):
        await search(client, "c", "leave", None, mode=RetrievalMode.HYBRID)


@pytest.mark.parametrize("mode", list(RetrievalMode))
async def test_a_filter_holds_in_every_mode(client: AsyncQdrantClient, mode: RetrievalMode) -> None:
    assert {hit.path for hit in await ask(client, "leave days", mode, where={"source": "hr"})} == {"0.md", "1.md"}
    assert {hit.path for hit in await ask(client, "leave days", mode, where={"team": [1, 7]})} == {"1.md"}


def test_a_filter_value_of_another_kind_is_refused() -> None:
    assert payload_filter({}) is None
    for wrong in (1.5, None, [], {"a": 1}, ["a", 1]):
        with pytest.raises(ValueError, match=r"filter\.key: write a string"):
            payload_filter({"key": wrong})


def hit(text: str, score: float) -> Hit:
    return Hit(text, score, "c", text, "T", "", "hr", "p", "u", (1, 1), "d", text, {})


HITS = [hit("a" * 10, 0.9), hit("b" * 50, 0.2), hit("c" * 30, 0.8), hit("d" * 5, 0.7)]


@pytest.mark.parametrize(
    ("top_k", "min_score", "context_tokens", "expected", "reason"),
    [
        (4, 0.0, 1000, "abcd", ""),
        (2, 0.0, 1000, "ab", ""),
        (4, 0.5, 1000, "acd", ""),  # what scores less is passed over, the order stays
        (4, 0.0, 20, "ad", ""),  # whole chunks only; a shorter one behind still fits
        (4, 0.9, 1000, "a", ""),  # at least
        (4, 0.95, 1000, "", "nothing scored 0.95 or more; the best had 0.900"),
        (4, 0.0, 4, "", "no source fits into 4 tokens; the shortest has 5: raise contextTokens"),
    ],
)
def test_selection(top_k: int, min_score: float, context_tokens: int, expected: str, reason: str) -> None:
    chosen = select(HITS, top_k=top_k, min_score=min_score, context_tokens=context_tokens, count_tokens=len)
    assert "".join(one.text[0] for one in chosen.hits) == expected
    assert chosen.reason == reason


def test_nothing_found_is_said() -> None:
    assert select([], top_k=5, min_score=0, context_tokens=100, count_tokens=len).reason == "nothing was found"
