"""Scores that the store computes by formulas (BM25 with IDF, rank and score fusion, MMR) against the formulas themselves.

Runs on the embedded store and, where QDRANT_URL names one, on a Qdrant server.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from uuid import uuid4

import numpy as np
import pytest
import qdrant_edge
from qdrant_client import QdrantClient, models

WORDS = ["invoice", "travel", "holiday", "printer", "router", "badge", "payroll", "laptop"]
DIMENSIONS = 8
COUNT = 40
K, B, AVERAGE_LENGTH = 1.2, 0.75, 256.0


class Corpus:
    """Documents of random words with random vectors, in a collection of their own."""

    def __init__(self, client: QdrantClient) -> None:
        rng = random.Random(11)
        self.client = client
        self.name = f"scores-{uuid4().hex}"
        # Every document has a length of its own, so that no two have the same score.
        self.texts = [" ".join(rng.choices(WORDS, k=2 + i)) for i in range(COUNT)]
        self.vectors = np.array([[rng.gauss(0, 1) for _ in range(DIMENSIONS)] for _ in range(COUNT)])
        self.vectors /= np.linalg.norm(self.vectors, axis=1, keepdims=True)
        client.create_collection(
            self.name,
            vectors_config={"dense": models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)},
            sparse_vectors_config={"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        )
        self.bm25 = qdrant_edge.Bm25()
        client.upsert(
            self.name,
            [
                models.PointStruct(
                    id=i, vector={"dense": vector.tolist(), "bm25": _sparse(self.bm25.embed_document(text))}
                )
                for i, (text, vector) in enumerate(zip(self.texts, self.vectors, strict=True))
            ],
        )
        self.query_words = ["travel", "badge"]
        self.dense_query = np.array([rng.gauss(0, 1) for _ in range(DIMENSIONS)])
        self.dense_query /= np.linalg.norm(self.dense_query)
        self.sparse_query = _sparse(self.bm25.embed_query(" ".join(self.query_words)))

    def bm25_score(self, document: int) -> float:
        """Robertson's BM25 with Lucene's IDF, over the query's words."""
        words = self.texts[document].split()
        counts = Counter(words)
        score = 0.0
        for word in self.query_words:
            containing = sum(word in text.split() for text in self.texts)
            idf = math.log((COUNT - containing + 0.5) / (containing + 0.5) + 1)
            tf = counts[word]
            score += idf * tf * (K + 1) / (tf + K * (1 - B + B * len(words) / AVERAGE_LENGTH))
        return score

    def prefetches(self, limit: int) -> list[models.Prefetch]:
        """A dense and a sparse search."""
        return [
            models.Prefetch(query=self.dense_query.tolist(), using="dense", limit=limit),
            models.Prefetch(query=self.sparse_query, using="bm25", limit=limit),
        ]

    def rankings(self, limit: int) -> list[dict[int, float]]:
        """What the two searches find, best first: document to score."""
        found = []
        for prefetch in self.prefetches(limit):
            points = self.client.query_points(self.name, query=prefetch.query, using=prefetch.using, limit=limit).points
            found.append({int(point.id): point.score for point in points})
        return found


def _sparse(vector: qdrant_edge.SparseVector) -> models.SparseVector:
    return models.SparseVector(indices=vector.indices, values=vector.values)


@pytest.fixture(scope="module")
def corpus(client: QdrantClient) -> Iterator[Corpus]:
    corpus = Corpus(client)
    yield corpus
    client.delete_collection(corpus.name)


def test_sparse_search_ranks_by_bm25(corpus: Corpus) -> None:
    expected = {i: corpus.bm25_score(i) for i in range(COUNT) if corpus.bm25_score(i) > 0}
    found = corpus.client.query_points(corpus.name, query=corpus.sparse_query, using="bm25", limit=COUNT).points
    assert {point.id: point.score for point in found} == pytest.approx(expected, abs=1e-4)
    assert [point.score for point in found] == sorted((point.score for point in found), reverse=True)


@pytest.mark.parametrize(("k", "weights"), [(None, None), (60, None), (2, [3.0, 1.0])])
def test_rrf_adds_reciprocal_ranks(corpus: Corpus, k: int | None, weights: list[float] | None) -> None:
    limit = 15
    query = (
        models.FusionQuery(fusion=models.Fusion.RRF)
        if k is None
        else models.RrfQuery(rrf=models.Rrf(k=k, weights=weights))
    )
    constant = 2 if k is None else k
    expected: Counter[int] = Counter()
    for ranking, weight in zip(corpus.rankings(limit), weights or [1.0, 1.0], strict=True):
        for rank, document in enumerate(ranking):
            # A weight w stretches the ranks: rank / w, so that 1 / (k + rank / w) falls more slowly.
            expected[document] += 1.0 / (constant + (rank + 1) / weight - 1)
    found = corpus.client.query_points(corpus.name, query=query, prefetch=corpus.prefetches(limit), limit=COUNT).points
    assert {point.id: point.score for point in found} == pytest.approx(dict(expected), abs=1e-4)
    assert [point.score for point in found] == sorted((point.score for point in found), reverse=True)


def test_dbsf_adds_scores_scaled_by_their_distribution(corpus: Corpus) -> None:
    limit = 15
    expected: Counter[int] = Counter()
    for ranking in corpus.rankings(limit):
        mean, deviation = statistics.mean(ranking.values()), statistics.stdev(ranking.values())
        for document, score in ranking.items():
            expected[document] += (score - (mean - 3 * deviation)) / (6 * deviation)
    found = corpus.client.query_points(
        corpus.name,
        query=models.FusionQuery(fusion=models.Fusion.DBSF),
        prefetch=corpus.prefetches(limit),
        limit=COUNT,
    ).points
    assert {point.id: point.score for point in found} == pytest.approx(dict(expected), abs=1e-4)


def test_a_second_stage_scores_what_the_first_found(corpus: Corpus) -> None:
    found = corpus.client.query_points(
        corpus.name,
        query=corpus.dense_query.tolist(),
        using="dense",
        prefetch=models.Prefetch(query=corpus.sparse_query, using="bm25", limit=5),
        limit=COUNT,
    ).points
    first = corpus.client.query_points(corpus.name, query=corpus.sparse_query, using="bm25", limit=5).points
    scores = {point.id: float(corpus.vectors[int(point.id)] @ corpus.dense_query) for point in first}
    assert {point.id: point.score for point in found} == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("diversity", [0.0, 0.4, 0.9])
def test_mmr_trades_relevance_for_diversity(corpus: Corpus, diversity: float) -> None:
    candidates, limit = 20, 8
    relevance = corpus.vectors @ corpus.dense_query
    pool = sorted(range(COUNT), key=lambda i: -relevance[i])[:candidates]
    expected = [pool.pop(0)]
    while len(expected) < limit:
        best = max(
            pool,
            key=lambda i: (
                (1 - diversity) * relevance[i]
                - diversity * max(float(corpus.vectors[i] @ corpus.vectors[j]) for j in expected)
            ),
        )
        pool.remove(best)
        expected.append(best)
    query = models.NearestQuery(
        nearest=corpus.dense_query.tolist(), mmr=models.Mmr(diversity=diversity, candidates_limit=candidates)
    )
    found = corpus.client.query_points(corpus.name, query=query, using="dense", limit=limit).points
    assert [point.id for point in found] == expected
