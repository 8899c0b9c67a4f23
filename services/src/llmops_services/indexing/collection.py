"""One collection while it is synchronised: which documents it holds, and writing to it.

A document is whole when all its points carry the same `document_hash` and are as many as they say (`chunks`). Its new points
are written before its old ones are deleted, so that it is never missing; whatever a killed run left is not whole, is seen as
such by the next one, and is written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from llmops_api.names import COLLECTION_METADATA
from llmops_services.vectors import (
    DENSE,
    Content,
    IndexMetadata,
    create_collection,
    create_payload_indexes,
    metadata_of,
    patiently,
)

_PAGE = 2000
"""Points per page of the inventory."""
_REQUEST_BYTES = 8 * 2**20
"""Points are sent in requests of about this size; a Qdrant server takes 32 MiB."""
_AT_ONCE = 500


@dataclass(frozen=True)
class Stored:
    """A document as the collection holds it; `hash` is empty when its points do not agree."""

    hash: str
    chunks: int
    points: int

    def is_whole(self, document_hash: str) -> bool:
        """Whether these are all points of that version of the document, and no others."""
        return self.hash == document_hash and self.points == self.chunks


class Collection:
    """A collection that may not exist yet: it is made when the first vectors arrive and the number of dimensions is known."""

    def __init__(self, client: QdrantClient, name: str, indexed_keys: Iterable[str]) -> None:
        self._client = client
        self.name = name
        self._indexed_keys = tuple(indexed_keys)
        self.metadata: IndexMetadata | None = None
        try:
            info = patiently(lambda: client.get_collection(name))
        except UnexpectedResponse as error:
            if error.status_code != 404:
                raise
        else:
            self.metadata = metadata_of(info)
            patiently(lambda: create_payload_indexes(client, name, self._indexed_keys, info.payload_schema))

    def ensure(self, new: Callable[[], IndexMetadata]) -> IndexMetadata:
        """Make the collection if there is none."""
        if self.metadata is None:
            metadata = new()

            def make() -> None:
                if not self._client.collection_exists(self.name):  # a repeated call may find its own work
                    create_collection(self._client, self.name, metadata)
                create_payload_indexes(self._client, self.name, self._indexed_keys, ())

            patiently(make)
            self.metadata = metadata
        return self.metadata

    def inventory(self) -> dict[str, Stored]:
        """The documents that are stored, by id; a few dozen bytes for each."""
        found: dict[str, Stored] = {}
        offset: Any = None
        while self.metadata is not None:
            records, offset = patiently(lambda offset=offset: self._page(offset))  # type: ignore[misc]
            for record in records:
                payload = record.payload or {}
                key, hash_, chunks = payload["document_id"], payload["document_hash"], payload["chunks"]
                known = found.get(key)
                if known is None:
                    found[key] = Stored(hash_, chunks, 1)
                else:
                    found[key] = Stored(hash_ if known.hash == hash_ else "", chunks, known.points + 1)
            if offset is None:
                break
        return found

    def _page(self, offset: Any) -> tuple[list[models.Record], Any]:
        keys = ["document_id", "document_hash", "chunks"]
        return self._client.scroll(self.name, limit=_PAGE, offset=offset, with_payload=keys, with_vectors=False)

    def vectors_of(self, ids: Sequence[str]) -> dict[str, list[float]]:
        """The dense vectors of those points that are there."""
        found: dict[str, list[float]] = {}
        for first in range(0, len(ids), _AT_ONCE):
            some = ids[first : first + _AT_ONCE]
            records = patiently(lambda some=some: self._retrieve(some))  # type: ignore[misc]
            for record in records:
                named = cast("dict[str, list[float]]", record.vector)
                found[str(record.id)] = named[DENSE]
        return found

    def _retrieve(self, ids: Sequence[str]) -> list[models.Record]:
        return self._client.retrieve(self.name, ids, with_payload=False, with_vectors=[DENSE])

    def upsert(self, points: Sequence[models.PointStruct]) -> None:
        """Write points, in requests of a bounded size."""
        assert self.metadata is not None
        size = 2048 + 16 * self.metadata.embedding.dimensions
        remaining = iter(points)
        while some := list(islice(remaining, max(1, _REQUEST_BYTES // size))):
            patiently(lambda some=some: self._client.upsert(self.name, some))  # type: ignore[misc]

    def delete_other_versions(self, document_id: str, document_hash: str) -> None:
        """Delete what is left of a document's older selves."""
        stale = models.Filter(
            must=[_match("document_id", document_id)], must_not=[_match("document_hash", document_hash)]
        )
        patiently(lambda: self._client.delete(self.name, models.FilterSelector(filter=stale)))

    def delete_documents(self, document_ids: Iterable[str]) -> None:
        """Delete all points of documents."""
        remaining = iter(document_ids)
        while some := list(islice(remaining, _AT_ONCE)):
            gone = models.Filter(must=[models.FieldCondition(key="document_id", match=models.MatchAny(any=some))])
            patiently(lambda gone=gone: self._client.delete(self.name, models.FilterSelector(filter=gone)))  # type: ignore[misc]

    def count(self) -> int:
        """The number of points."""
        return patiently(lambda: self._client.count(self.name, exact=True)).count

    def describe(self, *, uid: str, content: Content) -> None:
        """Write down what a finished sync left, and whose collection it is; nothing when it stands there already."""
        assert self.metadata is not None
        wanted = self.metadata.model_copy(update={"uid": uid, "content": content})
        if wanted != self.metadata:
            patiently(lambda: self._client.update_collection(self.name, metadata={COLLECTION_METADATA: wanted.dump()}))
            self.metadata = wanted


def _match(key: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))
