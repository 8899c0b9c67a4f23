"""The search: which chunks of a collection are closest to a question, and which of them go into a prompt.

The indexer's evaluation and the gateway use the same functions, so that what is measured is what users get.

A hit's `score` is the cosine of the question's and the chunk's vectors (-1 to 1) in modes Dense and Hybrid: only the *order* of
Hybrid comes from fusing ranks, so that `minScore` means the same in both. In mode Sparse it is the BM25 score (0 and up, no upper
limit, comparable only within one question).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import AsyncQdrantClient, models

from llmops_api.v1alpha1.rag_service import RetrievalMode
from llmops_services.vectors import DENSE, SPARSE, Keywords, payload_filter

RRF_K = 2
"""Reciprocal rank fusion: a chunk's worth is the sum of 1 / (k + rank) over the lists it is in (Cormack et al. 2009), ranks from 0.

2 is Qdrant's default. On lists of 30 it ordered the quickstart's questions better than the 60 of the paper, which is meant for
lists of a thousand (docs/adr/0007).
"""

_QUERY_WORDS = Keywords(256)  # a question's weights do not depend on the average length


@dataclass(frozen=True)
class Hit:
    """A found chunk; `score` as the module says, the other fields as the indexer stored them."""

    id: str
    score: float
    collection: str
    text: str
    title: str
    section: str
    """Heading path, "A > B"."""
    source: str
    path: str
    uri: str
    lines: tuple[int, int]
    """First and last line in the document, counted from 1, both included."""
    document_id: str
    chunk_hash: str
    metadata: Mapping[str, Any]


async def search(
    client: AsyncQdrantClient,
    collection: str,
    query: str,
    vector: Sequence[float] | None,
    *,
    mode: RetrievalMode = RetrievalMode.HYBRID,
    candidates: int = 30,
    where: Mapping[str, Any] | None = None,
    sparse: bool = True,
    timeout_seconds: int | None = None,
) -> list[Hit]:
    """The best `candidates` chunks in falling order, in one round trip; identical chunks count once.

    `vector` is the embedded question (not needed in mode Sparse). `sparse` says whether the collection has keyword vectors:
    without them Hybrid is Dense. `where` as `vectors.payload_filter`. Raises `ValueError` for a mode or filter that cannot
    be, and what `qdrant_client` raises when the store does not answer.
    """
    conditions = payload_filter(where or {})
    words = _QUERY_WORDS.query(query) if mode is not RetrievalMode.DENSE and sparse else None
    keywords = (
        models.Prefetch(query=words, using=SPARSE, limit=candidates, filter=conditions)
        if words and words.indices
        else None
    )
    if mode is RetrievalMode.SPARSE:
        if not sparse:
            raise ValueError(
                f"{collection} has no keyword vectors: use mode Dense, or set sparse.enabled on the EmbeddingIndex"
            )
        if keywords is None:  # nothing but stop words
            return []
        request = models.QueryRequest(query=words, using=SPARSE, limit=candidates, filter=conditions, with_payload=True)
        return _hits(collection, await _ask(client, collection, [request], timeout_seconds))
    if vector is None:
        raise ValueError(f"mode {mode.value} needs the question's vector")
    dense = list(vector)
    if keywords is None:
        request = models.QueryRequest(query=dense, using=DENSE, limit=candidates, filter=conditions, with_payload=True)
        return _hits(collection, await _ask(client, collection, [request], timeout_seconds))
    both = [models.Prefetch(query=dense, using=DENSE, limit=candidates, filter=conditions), keywords]
    fused = models.QueryRequest(
        prefetch=both, query=models.RrfQuery(rrf=models.Rrf(k=RRF_K)), limit=candidates, with_payload=True
    )
    # the same candidates again, scored by cosine: the keyword list's chunks get one too
    scored = models.QueryRequest(prefetch=both, query=dense, using=DENSE, limit=2 * candidates)
    return _hits(collection, await _ask(client, collection, [fused, scored], timeout_seconds))


async def _ask(
    client: AsyncQdrantClient, collection: str, requests: list[models.QueryRequest], timeout_seconds: int | None
) -> list[list[models.ScoredPoint]]:
    answers = await client.query_batch_points(collection, requests, timeout=timeout_seconds)
    return [answer.points for answer in answers]


def _hits(collection: str, answers: list[list[models.ScoredPoint]]) -> list[Hit]:
    """The first answer's points in their order, scored by the last one's, each chunk once."""
    scores = {point.id: point.score for point in answers[-1]}
    hits: dict[str, Hit] = {}
    for point in answers[0]:
        if point.id not in scores:  # written between the two queries of the batch
            continue
        payload = point.payload or {}
        hit = Hit(
            id=str(point.id),
            score=scores[point.id],
            collection=collection,
            text=payload["text"],
            title=payload["title"],
            section=payload["section"],
            source=payload["source"],
            path=payload["path"],
            uri=payload["uri"],
            lines=(payload["lines"][0], payload["lines"][1]),
            document_id=payload["document_id"],
            chunk_hash=payload["chunk_hash"],
            metadata=payload.get("metadata") or {},
        )
        hits.setdefault(hit.chunk_hash, hit)
    return list(hits.values())


@dataclass(frozen=True)
class Selection:
    """What goes into the prompt, best first; when that is nothing, `reason` says why in a sentence."""

    hits: tuple[Hit, ...]
    reason: str = ""


def select(
    hits: Sequence[Hit], *, top_k: int, min_score: float, context_tokens: int, count_tokens: Callable[[str], int]
) -> Selection:
    """The first `top_k` hits that score at least `min_score` and together fit into `context_tokens`.

    Chunks are taken whole: one that does not fit any more is passed over for a shorter one behind it. `count_tokens` counts
    in tokens of whoever reads the prompt.
    """
    good = [hit for hit in hits if hit.score >= min_score]
    if not good:
        best = max((hit.score for hit in hits), default=None)
        found = (
            "nothing was found" if best is None else f"nothing scored {min_score:g} or more; the best had {best:.3f}"
        )
        return Selection((), found)
    chosen: list[Hit] = []
    left, shortest = context_tokens, None
    for hit in good:
        if len(chosen) == top_k:
            break
        size = count_tokens(hit.text)
        shortest = size if shortest is None else min(shortest, size)
        if size <= left:
            chosen.append(hit)
            left -= size
    if not chosen:
        return Selection(
            (), f"no source fits into {context_tokens} tokens; the shortest has {shortest}: raise contextTokens"
        )
    return Selection(tuple(chosen))
