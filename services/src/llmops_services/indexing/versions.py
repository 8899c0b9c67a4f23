"""The collections of one index, and the alias that points at the one that is served."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from llmops_api.names import index_alias, is_version_of
from llmops_api.programs import ObjectId
from llmops_api.v1alpha1.embedding_index import IndexVersion
from llmops_services.vectors import IndexMetadata, alias_target, metadata_of, patiently, swap_alias

log = logging.getLogger(__name__)


class Versions:
    """All collections that carry an index's name; those that it made itself are its own to drop."""

    def __init__(self, client: QdrantClient, owner: ObjectId) -> None:
        self._client = client
        self._owner = owner
        self.alias = index_alias(owner.namespace, owner.name)

    def served(self) -> str | None:
        """The collection that the alias points at."""
        return alias_target(patiently(self._client.get_aliases), self.alias)

    def serves(self, source: str) -> bool:
        """Whether a document of a source is in the collection that is served."""
        served = self.served()
        of_source = models.Filter(must=[models.FieldCondition(key="source", match=models.MatchValue(value=source))])
        return served is not None and patiently(lambda: self._client.count(served, count_filter=of_source)).count > 0

    def serve(self, collection: str) -> None:
        """Point the alias at a collection, unless it does already."""
        if self.served() != collection:
            patiently(lambda: swap_alias(self._client, self.alias, collection))
            log.info("%s now serves %s", self.alias, collection)

    def metadata(self, collection: str) -> IndexMetadata | None:
        """What a collection says about itself; none when it is gone."""
        try:
            return metadata_of(patiently(lambda: self._client.get_collection(collection)))
        except UnexpectedResponse as error:
            if error.status_code == 404:
                return None
            raise

    def own(self) -> dict[str, IndexMetadata]:
        """The collections that this very object made or took over, by name."""
        names = [one.name for one in patiently(self._client.get_collections).collections]
        known = {name: self.metadata(name) for name in names if is_version_of(self.alias, name)}
        return {name: metadata for name, metadata in known.items() if metadata and metadata.uid == self._owner.uid}

    def retire(self, keep: Iterable[str], retain: int) -> None:
        """Drop the oldest collections until `retain` are left, never one of `keep` (nor the one that is served)."""
        kept = {*keep, self.served()}
        own = self.own()
        others = sorted(
            (name for name in own if name not in kept), key=lambda name: own[name].created_at or "", reverse=True
        )
        for name in others[max(0, retain - len(own.keys() & kept)) :]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        patiently(lambda: self._client.delete_collection(name))
        log.info("dropped %s", name)


def version(collection: str, metadata: IndexMetadata) -> IndexVersion:
    """A collection as it stands in an object's status."""
    content = metadata.content
    return IndexVersion(
        collection=collection,
        fingerprint=metadata.fingerprint,
        digest=content.digest,
        documents=content.documents,
        chunks=content.chunks,
        dimensions=metadata.embedding.dimensions,
        created_at=metadata.created_at,
        updated_at=content.since,
        evaluation=content.evaluation,
    )
