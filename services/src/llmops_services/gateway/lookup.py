"""Finding sources: the collections behind the aliases, their embedding models, and the search over all of them.

An index is found by its alias, which is looked at once a second. Where it points at another collection, that collection's own
embedding model is loaded first; until then the old collection is searched, with the old model.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from qdrant_client import AsyncQdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from llmops_api.programs import Env, GatewayIndex
from llmops_api.reasons import FailureReason
from llmops_api.v1alpha1.rag_service import RetrievalMode
from llmops_services.embedding import Embedder
from llmops_services.gateway.encoder import Encoder
from llmops_services.gateway.errors import ApiError, bad_request, unavailable
from llmops_services.gateway.limits import LIMITS, Limits
from llmops_services.program import TryAgain, UserError
from llmops_services.retrieval import RRF_K, Hit, search
from llmops_services.vectors import IndexMetadata, address, alias_target, resolve_alias

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
STORE_ERRORS = (ResponseHandlingException, UnexpectedResponse, ResourceExhaustedResponse)
CUT_OFF = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""How it ends to ask on a connection that the store was just closing, because nobody had used it for a while."""


@dataclass(frozen=True)
class Source:
    """A found chunk and the index that it was found in."""

    index: str
    hit: Hit

    def block(self) -> str:
        """The source as the prompt shows it, but for its number: title and heading path, then the text. Headings that the path
        says already are not said twice: training data is written in this form.
        """
        path = [part for part in self.hit.section.split(" > ") if part]
        if path[:1] == [self.hit.title]:
            path = path[1:]
        lines = self.hit.text.split("\n")
        while len(lines) > 1 and (not lines[0].strip() or _heading(lines[0]) in (self.hit.title, *path)):
            lines = lines[1:]
        return " > ".join((self.hit.title, *path)) + "\n" + "\n".join(lines)

    def citation(self) -> dict[str, Any]:
        """The object of the API, without its number."""
        hit = self.hit
        return {
            "index": self.index,
            "source": hit.source,
            "title": hit.title,
            "section": hit.section,
            "path": hit.path,
            "uri": hit.uri,
            "lines": list(hit.lines),
            "score": round(hit.score, 4),
            "text": hit.text,
            "documentId": hit.document_id,
            "collection": hit.collection,
        }


@dataclass(frozen=True)
class SearchableIndex:
    """An index whose collection is known and whose embedding model is loaded."""

    name: str
    collection: str
    metadata: IndexMetadata
    encoder: Encoder


class Encoders:
    """The embedding models that are loaded, one for each digest and prefix; those that nobody uses any more are dropped."""

    def __init__(self) -> None:
        self._encoders: dict[tuple[str, str], Encoder] = {}
        self._loading = asyncio.Lock()

    async def get(self, metadata: IndexMetadata) -> Encoder:
        """The model that made the vectors of a collection. Raises `UserError` and `TryAgain`."""
        wanted = metadata.embedding
        key = (wanted.digest, wanted.query_prefix)
        async with self._loading:
            if key not in self._encoders:
                self._encoders[key] = Encoder(await asyncio.to_thread(_load, metadata))
            return self._encoders[key]

    def keep(self, used: Iterable[Encoder]) -> None:
        """Drop the others."""
        kept = set(used)
        for key in [key for key, encoder in self._encoders.items() if encoder not in kept]:
            del self._encoders[key]


def _load(metadata: IndexMetadata) -> Embedder:
    """Load and warm the embedding model of a collection; takes seconds."""
    wanted = metadata.embedding
    embedder = Embedder.load(wanted.model, query_prefix=wanted.query_prefix)
    if embedder.digest != wanted.digest:
        raise UserError(
            FailureReason.EMBEDDING_MODEL_CHANGED,
            f"{wanted.model} is no longer the model that made index {metadata.index}: sync the index again",
        )
    import torch

    # questions are short: a second thread would wait more than it computes, and take a core from the event loop
    torch.set_num_threads(1)
    embedder.encode_queries(["the first one is slow"])
    return embedder


class Lookup:
    """The indexes of one configuration."""

    def __init__(
        self,
        indexes: Sequence[GatewayIndex],
        client: AsyncQdrantClient | None,
        encoders: Encoders,
        limits: Limits = LIMITS,
    ) -> None:
        self._wanted, self._client, self._encoders, self._limits = tuple(indexes), client, encoders, limits
        self._task: asyncio.Task[None] | None = None
        self._problems: dict[str, str] = {}
        self._searching = 0
        self._slots = asyncio.Semaphore(limits.searches)
        self.indexes: dict[str, SearchableIndex] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all indexes, searchable or not."""
        return tuple(index.name for index in self._wanted)

    def problem(self) -> str:
        """Why a search would fail now; empty when it would not."""
        return "; ".join(self._problems.values())

    def collections(self) -> dict[str, str]:
        """The collection that is searched, by the name of the index."""
        return {name: index.collection for name, index in self.indexes.items()}

    async def start(self) -> None:
        """Return when all indexes are searchable; from then on follow their aliases."""
        while not await self.refresh():
            log.info("waiting: %s", self.problem())
            await asyncio.sleep(POLL_SECONDS)
        if self._wanted:
            self._task = asyncio.create_task(self._follow(), name="aliases")

    def stop(self) -> None:
        """No longer follow the aliases."""
        if self._task is not None:
            self._task.cancel()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.refresh()

    async def refresh(self) -> bool:
        """Look where the aliases point now and load what that needs; whether all indexes are searchable."""
        if not self._wanted:
            return True
        assert self._client is not None
        try:
            aliases = await self._client.get_aliases()
        except STORE_ERRORS as error:
            self._report(
                "",
                f"the vector store at {address()[0]} does not answer ({_cause(error)}): see whether it runs, or correct {Env.QDRANT_URL}",
            )
            return False
        self._problems.pop("", None)
        for index in self._wanted:
            await self._resolve(index, alias_target(aliases, index.alias))
        return not self._problems

    async def _resolve(self, index: GatewayIndex, collection: str | None) -> None:
        assert self._client is not None
        current = self.indexes.get(index.name)
        if collection is None:
            self._report(index.name, f"index {index.name} has no version that can be searched yet")
            return
        if current is None or current.collection != collection:
            try:
                found = await resolve_alias(self._client, index.alias)
                if found is None:
                    self._report(
                        index.name, f"index {index.name}: {collection} is not a collection of an EmbeddingIndex"
                    )
                    return
                encoder = await self._encoders.get(found[1])
            except Exception as error:  # whatever a model or a collection does wrong, the others are served
                if not isinstance(error, (UserError, TryAgain, *STORE_ERRORS)):
                    log.exception("index %s", index.name)
                self._report(index.name, f"index {index.name}: {_cause(error)}")
                return
            log.info("index %s is searched in %s", index.name, found[0])
            self.indexes = {**self.indexes, index.name: SearchableIndex(index.name, found[0], found[1], encoder)}
        self._problems.pop(index.name, None)

    def _report(self, key: str, problem: str) -> None:
        if self._problems.get(key) != problem:
            log.warning("%s", problem)
        self._problems[key] = problem

    async def find(
        self,
        question: str,
        *,
        mode: RetrievalMode,
        candidates: int,
        where: Mapping[str, Any],
        names: Sequence[str] | None,
    ) -> list[Source]:
        """Chunks of all indexes (or of those named) in falling order, at most `candidates` of each. Raises `ApiError`."""
        chosen = self._choose(names)
        if self._searching >= self._limits.retrievals:
            raise ApiError(
                429, "Too many searches at once. Try again.", kind="rate_limit_error", code="overloaded", retry_after=1
            )
        self._searching += 1
        try:
            async with asyncio.timeout(self._limits.retrieval_seconds):
                lists = await asyncio.gather(*(self._search(i, question, mode, candidates, where) for i in chosen))
        except TimeoutError as error:
            raise unavailable(
                f"No search result in {self._limits.retrieval_seconds:g} s. Try again.", "retrieval_slow"
            ) from error
        finally:
            self._searching -= 1
        return fuse([[Source(index.name, hit) for hit in hits] for index, hits in zip(chosen, lists, strict=True)])

    def _choose(self, names: Sequence[str] | None) -> list[SearchableIndex]:
        chosen = []
        for name in self.names if names is None else dict.fromkeys(names):
            if name not in self.names:
                raise bad_request(f"This service has no index {name!r}; it has {', '.join(self.names)}.", "rag.indexes")
            if name not in self.indexes:
                raise unavailable(f"Index {name} cannot be searched at the moment. Try again.", "index_not_ready")
            chosen.append(self.indexes[name])
        return chosen

    async def _search(
        self, index: SearchableIndex, question: str, mode: RetrievalMode, candidates: int, where: Mapping[str, Any]
    ) -> list[Hit]:
        assert self._client is not None
        vector = None if mode is RetrievalMode.SPARSE else await index.encoder.encode(question)
        ask = functools.partial(
            search,
            self._client,
            index.collection,
            question,
            vector,
            mode=mode,
            candidates=candidates,
            where=where,
            sparse=index.metadata.sparse,
        )
        try:
            async with self._slots:
                try:
                    return await ask()
                except ResponseHandlingException as error:
                    if not isinstance(error.source, CUT_OFF):
                        raise
                    return await ask()
        except ValueError as error:  # a filter or a mode that this index cannot serve
            raise bad_request(f"{error}.") from error
        except STORE_ERRORS as error:
            if isinstance(error, UnexpectedResponse) and error.status_code == 404:
                await self.refresh()
                fresh = self.indexes.get(index.name)
                if fresh is not None and fresh.collection != index.collection:
                    return await self._search(fresh, question, mode, candidates, where)
            log.warning("search in %s failed: %s", index.collection, _cause(error))
            raise unavailable(
                "The vector store does not answer at the moment. Try again.", "retrieval_unavailable"
            ) from error


def fuse(lists: list[list[Source]]) -> list[Source]:
    """One list in falling order from one of each index, by rank alone: scores of different models cannot be compared."""
    if len(lists) == 1:
        return lists[0]
    ranked = [(1 / (RRF_K + rank), source) for found in lists for rank, source in enumerate(found, 1)]
    return [source for _, source in sorted(ranked, key=lambda pair: -pair[0])]


def _heading(line: str) -> str | None:
    """The text of a Markdown heading."""
    return line.lstrip("#").strip() if line.startswith("#") else None


def _cause(error: BaseException) -> str:
    source = error.source if isinstance(error, ResponseHandlingException) else error
    return " ".join(str(source).split())[:300] or type(source).__name__
