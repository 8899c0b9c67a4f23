"""The vector store against the engine inside it, and against a Qdrant server where QDRANT_URL names one.

    python bench/vectorstore.py [--points 8000]

One run measures all of them on the same data: 384 dimensions, a sparse vector of 120 terms, 800 characters of payload; upserts in
batches of 256, queries with ten results and their payload (hybrid: 50 candidates of each kind, RRF). The store and a server
are reached as every program reaches them, through `QdrantClient(url=...)`; the engine is called in this process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

from llmops_services.vectorstore.process import StoreProcess

DIMENSIONS, TERMS, VOCABULARY = 384, 120, 30_000
BATCH, LIMIT, CANDIDATES = 256, 10, 50
QUERIES = 200


@dataclass(frozen=True)
class Data:
    """Points and queries, the same for every store."""

    dense: list[list[float]]
    sparse: list[list[int]]
    values: list[float]
    queries: list[list[float]]

    @classmethod
    def make(cls, points: int) -> Data:
        """Random vectors, the same in every run."""
        rng = np.random.default_rng(7)
        return cls(
            dense=rng.standard_normal((points, DIMENSIONS), dtype=np.float32).tolist(),
            sparse=[sorted(rng.choice(VOCABULARY, TERMS, replace=False).tolist()) for _ in range(points)],
            values=rng.uniform(0.5, 2.0, TERMS).tolist(),
            queries=rng.standard_normal((QUERIES, DIMENSIONS), dtype=np.float32).tolist(),
        )

    def payload(self, point: int) -> dict[str, Any]:
        """About 800 characters."""
        return {"document": f"d{point % 500}", "n": point, "text": "lorem ipsum " * 67}

    def terms(self, query: int) -> list[int]:
        """Ten terms of a stored point, so that the sparse query finds something."""
        return self.sparse[query][:10]


def measure(
    upsert: Callable[[int, int], None], queries: dict[str, Callable[[int], None]], points: int
) -> dict[str, float]:
    """Upserts a second, and the median milliseconds of each kind of query."""
    start = time.perf_counter()
    for first in range(0, points, BATCH):
        upsert(first, min(first + BATCH, points))
    results = {"upserts/s": points / (time.perf_counter() - start)}
    for name, query in queries.items():
        times = []
        for number in range(QUERIES):
            start = time.perf_counter()
            query(number)
            times.append(time.perf_counter() - start)
        results[f"{name} ms"] = statistics.median(times) * 1e3
    return results


def measure_engine(data: Data) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        shard = edge.EdgeShard.create(
            folder,
            edge.EdgeConfig(
                vectors={"dense": edge.EdgeVectorParams(DIMENSIONS, edge.Distance.Cosine)},
                sparse_vectors={"bm25": edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
            ),
        )

        def upsert(first: int, end: int) -> None:
            points = [
                edge.Point(
                    i, {"dense": data.dense[i], "bm25": edge.SparseVector(data.sparse[i], data.values)}, data.payload(i)
                )
                for i in range(first, end)
            ]
            shard.update(edge.UpdateOperation.upsert_points(points))

        def dense(number: int) -> edge.Query:
            return edge.Query.Nearest(data.queries[number], "dense")

        def sparse(number: int) -> edge.Query:
            terms = data.terms(number)
            return edge.Query.Nearest(edge.SparseVector(terms, [1.0] * len(terms)), "bm25")

        def ask(query: Any, prefetches: list[edge.Prefetch] | None = None) -> None:
            shard.query(edge.QueryRequest(limit=LIMIT, query=query, prefetches=prefetches, with_payload=True))

        def hybrid(number: int) -> None:
            kinds = (dense(number), sparse(number))
            ask(edge.Fusion.Rrf(k=2), [edge.Prefetch(limit=CANDIDATES, query=kind) for kind in kinds])

        queries = {"dense": lambda n: ask(dense(n)), "sparse": lambda n: ask(sparse(n)), "hybrid": hybrid}
        return measure(upsert, queries, len(data.dense))


def measure_client(client: QdrantClient, data: Data) -> dict[str, float]:
    name = f"bench-{os.getpid()}"
    client.create_collection(
        name,
        vectors_config={"dense": models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)},
        sparse_vectors_config={"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        # As the engine above: what is measured is the way to it, not whether an index was ready in time.
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0),
    )

    def upsert(first: int, end: int) -> None:
        points = [
            models.PointStruct(
                id=i,
                vector={
                    "dense": data.dense[i],
                    "bm25": models.SparseVector(indices=data.sparse[i], values=data.values),
                },
                payload=data.payload(i),
            )
            for i in range(first, end)
        ]
        client.upsert(name, points)

    def dense(number: int) -> models.Prefetch:
        return models.Prefetch(query=data.queries[number], using="dense", limit=CANDIDATES)

    def sparse(number: int) -> models.Prefetch:
        terms = data.terms(number)
        query = models.SparseVector(indices=terms, values=[1.0] * len(terms))
        return models.Prefetch(query=query, using="bm25", limit=CANDIDATES)

    def one(search: models.Prefetch) -> None:
        client.query_points(name, query=search.query, using=search.using, limit=LIMIT, with_payload=True)

    def hybrid(number: int) -> None:
        client.query_points(
            name,
            query=models.FusionQuery(fusion=models.Fusion.RRF),
            prefetch=[dense(number), sparse(number)],
            limit=LIMIT,
            with_payload=True,
        )

    try:
        queries = {"dense": lambda n: one(dense(n)), "sparse": lambda n: one(sparse(n)), "hybrid": hybrid}
        return measure(upsert, queries, len(data.dense))
    finally:
        client.delete_collection(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=8000)
    data = Data.make(parser.parse_args().points)
    engine = measure_engine(data)
    rows = {"qdrant_edge, in process": engine}
    with tempfile.TemporaryDirectory() as folder, StoreProcess(Path(folder), {"QDRANT_API_KEY": ""}) as store:
        client = QdrantClient(url=store.url, timeout=60, check_compatibility=False)
        rows["embedded store"] = measure_client(client, data)
        client.close()
    if url := os.environ.get("QDRANT_URL"):
        client = QdrantClient(url=url, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60)
        rows[f"server {client.info().version}"] = measure_client(client, data)
        client.close()

    columns = list(engine)
    print(f"{len(data.dense)} points, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print(f"| {'':24} | " + " | ".join(f"{column:>22}" for column in columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for name, row in rows.items():
        cells = (f"{row[column]:,.1f} ({row[column] / engine[column]:.2f} x)" for column in columns)
        print(f"| {name:24} | " + " | ".join(f"{cell:>22}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
