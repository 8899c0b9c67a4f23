"""The vector store as both the indexer and the gateway see it: addresses, names, what a collection holds, and its keywords.

An index is self-describing: the metadata of its collection says which embedding model, prefixes and chunking made it, so that
whoever finds the collection behind an alias can query it without being told anything else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import httpx
import qdrant_edge
from pydantic import ConfigDict
from pydantic.alias_generators import to_camel
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from llmops_api.names import COLLECTION_METADATA, index_alias
from llmops_api.programs import Env
from llmops_api.reasons import FailureReason
from llmops_api.v1alpha1.embedding_index import Chunking, RetrievalScores
from llmops_api.v1alpha1.meta import Model
from llmops_services.program import TryAgain, UserError

log = logging.getLogger(__name__)

T = TypeVar("T")

DENSE = "dense"
"""Name of the embedding's vector, compared by cosine."""
SPARSE = "bm25"
"""Name of the keyword vector, weighted by inverse document frequency in the store."""
SCHEMA_VERSION = 1
"""Part of every fingerprint: raise it when payload, vectors or the text that is embedded change their meaning."""
PATIENCE_SECONDS = 60.0
"""How long a store that does not answer is asked again before the program gives up (and is started again later)."""


class Embedded(Model):
    """Which model made the dense vectors, and what stood before the texts."""

    model_config = ConfigDict(extra="ignore")

    model: str
    digest: str
    query_prefix: str = ""
    document_prefix: str = ""
    dimensions: int


class Content(Model):
    """What a finished sync left in a collection, since when. `evaluation` holds for exactly what `evaluation_key` was made of."""

    model_config = ConfigDict(extra="ignore")

    digest: str = ""
    since: str | None = None
    documents: int = 0
    chunks: int = 0
    evaluation: RetrievalScores | None = None
    evaluation_key: str = ""


class IndexMetadata(Model):
    """What the collection says about itself, under `COLLECTION_METADATA` in the collection's metadata."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")

    fingerprint: str
    embedding: Embedded
    sparse: bool
    chunking: Chunking
    index: str
    """namespace/name of the EmbeddingIndex."""
    uid: str
    created_at: str | None = None
    content: Content = Content()


def address() -> tuple[str, str | None]:
    """URL and API key of the store, from the environment. Raises `UserError` when no URL is set."""
    url = os.environ.get(Env.QDRANT_URL, "").rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise UserError(
            FailureReason.VECTOR_STORE_UNKNOWN,
            f"{Env.QDRANT_URL} is {url!r}: set it to the vector store's address, for example http://localhost:6333",
        )
    return url, os.environ.get(Env.QDRANT_API_KEY) or None


def connect(timeout_seconds: int = 30) -> QdrantClient:
    """A client for programs that may wait; nothing is sent yet. Wrap calls in `patiently`."""
    return QdrantClient(**_arguments(timeout_seconds))


def connect_async(timeout_seconds: int = 10) -> AsyncQdrantClient:
    """A client for the event loop; nothing is sent yet. A store that does not answer is the caller's to report."""
    return AsyncQdrantClient(**_arguments(timeout_seconds))


def _arguments(timeout_seconds: int) -> dict[str, Any]:
    url, key = address()
    if key and url.startswith("http://"):
        # within a cluster and on one machine there is no TLS; the client would warn at every construction
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection", category=UserWarning)
    port = httpx.URL(url).port or (443 if url.startswith("https://") else 80)
    return {"url": url, "port": port, "api_key": key, "timeout": timeout_seconds, "check_compatibility": False}


def unreachable(error: Exception) -> bool:
    """Whether a failed call may work later: the store did not answer, is starting, is overloaded or out of room."""
    if isinstance(error, ResponseHandlingException):
        return isinstance(error.source, httpx.TransportError)
    if isinstance(error, UnexpectedResponse):
        return error.status_code == 429 or (error.status_code or 0) >= 500
    return isinstance(error, ResourceExhaustedResponse)


def patiently(call: Callable[[], T], *, seconds: float = PATIENCE_SECONDS) -> T:
    """Make a call that may be repeated, again and again with growing pauses while the store does not answer.

    Raises `TryAgain` with the store's address when it has not answered for `seconds` since the first failure.
    """
    give_up, pause = 0.0, 0.25
    while True:
        try:
            return call()
        except (ResponseHandlingException, UnexpectedResponse, ResourceExhaustedResponse) as error:
            if isinstance(error, UnexpectedResponse) and error.status_code in (401, 403):
                raise UserError(
                    FailureReason.VECTOR_STORE_FORBIDDEN,
                    f"the vector store at {address()[0]} refuses the key; correct {Env.QDRANT_API_KEY}",
                ) from error
            if not unreachable(error):
                raise
            now = time.monotonic()
            give_up = give_up or now + seconds
            if now + pause > give_up:
                raise TryAgain(
                    FailureReason.VECTOR_STORE_UNREACHABLE,
                    f"the vector store at {address()[0]} has not answered as it should for {seconds:g} s ({_cause(error)}): see "
                    f"whether it runs and has room, or correct {Env.QDRANT_URL}; what is already indexed is kept",
                ) from error
            log.warning(
                "the vector store at %s does not answer as it should (%s); asking again", address()[0], _cause(error)
            )
            time.sleep(pause)
            pause = min(pause * 2, 5.0)


def _cause(error: Exception) -> str:
    source = error.source if isinstance(error, ResponseHandlingException) else error
    return " ".join(str(source).split())[:200] or type(source).__name__


def fingerprint(
    *, embedding_digest: str, query_prefix: str, document_prefix: str, chunking: Chunking, sparse: bool
) -> str:
    """sha256, in hex, of everything that decides what a vector of the index means."""
    meaning = {
        "schema": SCHEMA_VERSION,
        "embedding": embedding_digest,
        "queryPrefix": query_prefix,
        "documentPrefix": document_prefix,
        "chunking": chunking.dump(),
        "sparse": sparse,
    }
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def collection_name(namespace: str, name: str, fingerprint: str) -> str:
    """The collection of one version of an index."""
    return f"{index_alias(namespace, name)}.{fingerprint[:10]}"


def create_collection(client: QdrantClient, collection: str, metadata: IndexMetadata) -> None:
    """Make an empty collection of our schema; `create_payload_indexes` completes it."""
    client.create_collection(
        collection,
        vectors_config={
            DENSE: models.VectorParams(size=metadata.embedding.dimensions, distance=models.Distance.COSINE)
        },
        sparse_vectors_config={SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)}
        if metadata.sparse
        else None,
        metadata={COLLECTION_METADATA: metadata.dump()},
    )


def create_payload_indexes(client: QdrantClient, collection: str, keys: Iterable[str], existing: Iterable[str]) -> None:
    """Index the payload keys that filters and the sync ask for; one that is in `existing` costs nothing."""
    for key in sorted({*keys} - {*existing}):
        client.create_payload_index(collection, key, field_schema=models.PayloadSchemaType.KEYWORD)


def metadata_of(info: models.CollectionInfo) -> IndexMetadata | None:
    """What a collection says about itself; none when it is not one of ours."""
    found = (info.config.metadata or {}).get(COLLECTION_METADATA)
    return IndexMetadata.model_validate(found) if isinstance(found, dict) else None


async def resolve_alias(client: AsyncQdrantClient, alias: str) -> tuple[str, IndexMetadata] | None:
    """The collection that an alias points at, and what it says about itself; none when there is no such alias (yet)."""
    collection = alias_target(await client.get_aliases(), alias)
    if collection is None:
        return None
    try:
        metadata = metadata_of(await client.get_collection(collection))
    except UnexpectedResponse as error:
        if error.status_code == 404:  # dropped between the two calls
            return None
        raise
    return (collection, metadata) if metadata is not None else None


def alias_target(aliases: models.CollectionsAliasesResponse, alias: str) -> str | None:
    """The collection that `alias` points at."""
    return next((one.collection_name for one in aliases.aliases if one.alias_name == alias), None)


def swap_alias(client: QdrantClient, alias: str, collection: str) -> None:
    """Point `alias` at `collection`, in one request: nobody sees a moment without it."""
    delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
    create = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name=alias))
    exists = alias_target(client.get_aliases(), alias) is not None
    client.update_collection_aliases([delete, create] if exists else [create])


class Keywords:
    """BM25 vectors of chunks and questions, the ones that Qdrant's own `qdrant/bm25` makes: English words, stemmed, without stop words.

    A chunk's weights are its term frequencies, damped by its length against `average_words`; the inverse document frequency is
    applied by the store, from the documents that it holds at that moment. A question's weights are all 1.
    """

    def __init__(self, average_words: float) -> None:
        self._model = qdrant_edge.Bm25(qdrant_edge.Bm25Config(avg_len=average_words, language="english"))

    @classmethod
    def for_chunking(cls, chunking: Chunking) -> Keywords:
        """For chunks cut by `chunking`: about half of a full chunk's tokens are words that count."""
        return cls(chunking.max_tokens / 2)

    def document(self, text: str) -> models.SparseVector:
        """The vector of a chunk; empty when it has no word that counts."""
        return _sparse(self._model.embed_document(text))

    def query(self, text: str) -> models.SparseVector:
        """The vector of a question; empty when it has no word that counts."""
        return _sparse(self._model.embed_query(text))


def _sparse(vector: qdrant_edge.SparseVector) -> models.SparseVector:
    return models.SparseVector(indices=list(vector.indices), values=list(vector.values))


SEARCHABLE = frozenset({"source", "path", "document_id", "title", "section", "uri"})
"""Payload keys of a chunk that a filter may name as they are; every other key is one of the source's `metadata`."""


def payload_filter(wanted: Mapping[str, Any]) -> models.Filter | None:
    """Chunks whose payload has each of these values (one of them, where a list is given); none without wishes.

    Raises `ValueError` for a value that is not a string, whole number, truth value or a list of strings or whole numbers.
    """
    conditions: list[models.Condition] = []
    for key, value in wanted.items():
        field = key if key in SEARCHABLE or key.startswith("metadata.") else f"metadata.{key}"
        if isinstance(value, str | int):
            conditions.append(models.FieldCondition(key=field, match=models.MatchValue(value=value)))
        elif isinstance(value, list) and value and (_all(value, str) or _all(value, int)):
            conditions.append(models.FieldCondition(key=field, match=models.MatchAny(any=value)))
        else:
            raise ValueError(
                f"filter.{key}: write a string, a whole number, true or false, or a list of strings, not {value!r}"
            )
    return models.Filter(must=conditions) if conditions else None


def _all(values: list[Any], kind: type) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
