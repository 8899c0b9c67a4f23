"""What has to be done to a collection so that it holds exactly the documents of the sources, and doing it.

Documents pass once, one after the other. One that is stored whole is passed over by its hash. Of any other one those chunks are
embedded that are not in the collection yet (an edit leaves most of them as they were). Points are collected into windows of many
batches, so that texts of like length share a batch; a window is written while the next one is embedded, document by document.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from qdrant_client import models

from llmops_api.v1alpha1.embedding_index import IndexSource, SourceDigest, SyncCounts
from llmops_services.embedding import Vectors
from llmops_services.indexing.chunking import ChunkedDocument
from llmops_services.indexing.collection import Collection
from llmops_services.indexing.documents import Document
from llmops_services.vectors import DENSE, SPARSE, Keywords

_WINDOWS_IN_FLIGHT = 2
"""Windows that are embedded but not yet written; more of them would only need memory."""


@dataclass(frozen=True)
class Point:
    """A chunk on its way into the collection. Its id follows from the document and the embedded text alone."""

    id: str
    embedded: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Points of one document; `last` says that all its points are written with these."""

    document_id: str
    document_hash: str
    points: list[Point]
    last: bool
    stale: bool
    """Whether older points of the document may be there."""


@dataclass
class Window:
    """Points that are embedded together. `known` are vectors that the collection already has, by id of the point."""

    parts: list[Part] = field(default_factory=list)
    known: dict[str, list[float]] = field(default_factory=dict)
    size: int = 0
    read_bytes: int = 0
    """Bytes of the documents that end in this window."""

    @property
    def texts(self) -> list[str]:
        """What has to be embedded, in the order of the points."""
        return [point.embedded for part in self.parts for point in part.points if point.id not in self.known]


@dataclass
class _SourceSeen:
    source: IndexSource
    hash: Any = field(default_factory=hashlib.sha256)
    documents: int = 0


class Sync:
    """The comparison of the sources with what a collection holds. What it counts is complete once all windows are taken."""

    def __init__(
        self,
        collection: Collection,
        sources: Sequence[IndexSource],
        cut: Callable[[Document], ChunkedDocument],
        window_size: int,
    ) -> None:
        self._stored = collection.inventory()  # shrinks: what is left at the end is no longer in the sources
        self._collection = collection
        self._cut = cut
        self._window_size = window_size
        self._seen = {source.name: _SourceSeen(source) for source in sources}
        self._counts: Counter[str] = Counter()
        self.chunks = 0
        """Points that the collection has to hold."""

    def windows(
        self, documents: Iterable[tuple[Document | None, int]], passed: Callable[[int], None]
    ) -> Iterator[Window]:
        """Go through the documents (each with its size); what has to be written comes out in windows.

        `passed` is told the bytes of what needs nothing done.
        """
        window = Window()
        for document, size in documents:
            stored = self._stored.pop(document.id, None) if document else None
            if document:
                self._note(document)
            if document is None or (stored and stored.is_whole(document.document_hash)):
                self._counts["unchanged"] += document is not None
                self.chunks += stored.chunks if stored else 0
                passed(size)
                continue
            points = points_of(document, self._cut(document))
            known = self._collection.vectors_of([point.id for point in points]) if stored else {}
            self._counts["updated" if stored else "added"] += 1
            self._counts["embedded"] += len(points) - len(known)
            self.chunks += len(points)
            for first in range(0, len(points), self._window_size):
                some = points[first : first + self._window_size]
                if window.parts and window.size + len(some) > self._window_size:
                    yield window
                    window = Window()
                last = first + len(some) == len(points)
                window.parts.append(Part(document.id, document.document_hash, some, last, stored is not None))
                window.known.update({point.id: known[point.id] for point in some if point.id in known})
                window.size += len(some)
            window.read_bytes += size
        if window.parts:
            yield window

    def _note(self, document: Document) -> None:
        seen = self._seen[document.source.name]
        seen.hash.update(f"{document.path}\0{document.content_hash}\n".encode())
        seen.documents += 1

    def delete_gone(self) -> None:
        """Delete the documents that are in no source any more."""
        self._counts["deleted"] = len(self._stored)
        self._collection.delete_documents(self._stored)

    @property
    def documents(self) -> int:
        """Documents in all sources."""
        return sum(seen.documents for seen in self._seen.values())

    @property
    def counts(self) -> SyncCounts:
        """What was done."""
        return SyncCounts(**self._counts)

    @property
    def sources(self) -> tuple[SourceDigest, ...]:
        """What each source holds. A digest depends on paths and contents only, not on where they lie."""
        return tuple(
            SourceDigest(name=name, uri=seen.source.uri, documents=seen.documents, digest=seen.hash.hexdigest())
            for name, seen in self._seen.items()
        )

    @property
    def digest(self) -> str:
        """sha256, in hex, over the digests of all sources."""
        return hashlib.sha256("".join(f"{s.name}\0{s.digest}\n" for s in self.sources).encode()).hexdigest()


def points_of(document: Document, cut: ChunkedDocument) -> list[Point]:
    """The points of a document. A chunk that an edit only moved keeps its id, and so its vector."""
    occurrences: Counter[str] = Counter()
    points = []
    for number, chunk in enumerate(cut.chunks):
        occurrence = occurrences[chunk.hash]
        occurrences[chunk.hash] += 1
        payload = {
            "text": chunk.text,
            "title": cut.title,
            "section": chunk.section,
            "source": document.source.name,
            "path": document.path,
            "uri": document.uri,
            "lines": list(chunk.lines),
            "document_id": document.id,
            "document_hash": document.document_hash,
            "chunk_hash": chunk.hash,
            "chunk": number,
            "chunks": len(cut.chunks),
            "metadata": dict(document.metadata),
        }
        identity = str(uuid.uuid5(uuid.UUID(document.id), f"{chunk.hash}/{occurrence}"))
        points.append(Point(identity, chunk.embedded, payload))
    return points


def write_windows(
    collection: Collection,
    embedded: Iterable[tuple[Window, Vectors]],
    keywords: Keywords | None,
    ensure: Callable[[int], object],
    written: Callable[[Window], None],
) -> None:
    """Write windows while the next ones are embedded. `ensure(dimensions)` makes the collection, before the first write."""
    with ThreadPoolExecutor(1, "writer") as writer:
        pending: deque[tuple[Window, Future[None]]] = deque()

        def wait_for_one() -> None:
            window, future = pending.popleft()
            future.result()
            written(window)

        try:
            for window, vectors in embedded:
                if len(vectors):
                    ensure(vectors.shape[1])
                pending.append((window, writer.submit(_write, collection, window, vectors, keywords)))
                if len(pending) > _WINDOWS_IN_FLIGHT:
                    wait_for_one()
            while pending:
                wait_for_one()
        except BaseException:
            writer.shutdown(wait=False, cancel_futures=True)
            raise


def _write(collection: Collection, window: Window, vectors: Vectors, keywords: Keywords | None) -> None:
    """Write a window's documents in order. Neighbours share a request; one that replaces an older self is then rid of it."""
    rows = iter(vectors.tolist())
    waiting: list[models.PointStruct] = []
    for part in window.parts:
        for point in part.points:
            vector: dict[str, Any] = {DENSE: window.known.get(point.id) or next(rows)}
            if keywords:
                vector[SPARSE] = keywords.document(point.embedded)
            waiting.append(models.PointStruct(id=point.id, vector=vector, payload=point.payload))
        if part.last and part.stale:
            collection.upsert(waiting)
            waiting = []
            collection.delete_other_versions(part.document_id, part.document_hash)
    collection.upsert(waiting)
