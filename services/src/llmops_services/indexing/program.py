"""The order of things: check everything that may be wrong, synchronise, measure, decide what is served, clear away."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from qdrant_client import QdrantClient

from llmops_api.programs import IndexingConfig, IndexingResult
from llmops_api.reasons import FailureReason
from llmops_api.v1alpha1.embedding_index import IndexSource, IndexVersion, RetrievalScores
from llmops_api.v1alpha1.meta import Progress
from llmops_services.allocation import keep_freed_memory
from llmops_services.embedding import Embedder, Tokens, Vectors, model_digest, model_path
from llmops_services.indexing.chunking import Chunker
from llmops_services.indexing.collection import Collection
from llmops_services.indexing.documents import Rejects, SourceFile, list_files, read_documents
from llmops_services.indexing.embed import embed_here, embed_on_ray
from llmops_services.indexing.evaluation import Questions, evaluate, judge, load_questions
from llmops_services.indexing.sync import Sync, Window, write_windows
from llmops_services.indexing.versions import Versions, version
from llmops_services.program import ProgressReporter, TryAgain, UserError, load_config
from llmops_services.vectors import (
    Content,
    Embedded,
    IndexMetadata,
    Keywords,
    collection_name,
    connect,
    fingerprint,
)

log = logging.getLogger(__name__)

_WINDOW_BATCHES = 64
"""A window is that many batches: enough for texts of like length to meet (a quarter of it pads 8 % more), little enough to be
written soon."""
_WINDOW_CHUNKS = (256, 4096)
"""The least and the most chunks of a window."""
_INDEXED = ("document_id", "source", "path")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")


def main(config_path: str) -> IndexingResult:
    """Do what the config file says."""
    for chatty in ("httpx", "sentence_transformers"):  # a line for each request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    config = load_config(IndexingConfig, config_path)
    client = connect()
    try:
        return Indexing(config, client).run()
    finally:
        client.close()


class Indexing:
    """One sync of one index."""

    def __init__(self, config: IndexingConfig, client: QdrantClient) -> None:
        """Looks at everything that the user may have got wrong, before any work. Raises `UserError`."""
        self._config = config
        self._spec = spec = config.spec
        self._questions: Questions | None = load_questions(spec.evaluation.questions.uri) if spec.evaluation else None
        self._model: Path = model_path(spec.embedding.model.uri)
        self._chunker = Chunker(
            Tokens.load(self._model), spec.chunking, spec.embedding.document_prefix, spec.embedding.model.uri
        )
        self._files: list[SourceFile] = list_files(spec.sources)
        self._rejects = Rejects()
        self._digest = model_digest(self._model)
        self._fingerprint = fingerprint(
            embedding_digest=self._digest,
            query_prefix=spec.embedding.query_prefix,
            document_prefix=spec.embedding.document_prefix,
            chunking=spec.chunking,
            sparse=spec.sparse.enabled,
        )
        owner = config.object
        self._versions = Versions(client, owner)
        self._refuse_emptied()
        metadata_keys = {key for source in spec.sources for key in source.metadata if _PLAIN_KEY.fullmatch(key)}
        self._collection = Collection(
            client,
            collection_name(owner.namespace, owner.name, self._fingerprint),
            [*_INDEXED, *(f"metadata.{key}" for key in metadata_keys)],
        )
        self._pace = _Pace(sum(file.size for file in self._files), len(self._files))

    def run(self) -> IndexingResult:
        """Synchronise, measure, serve."""
        sync = self._synchronise()
        name = self._collection.name
        content = Content(
            digest=sync.digest, since=self._since(sync.digest), documents=sync.documents, chunks=sync.chunks
        )
        passed, message = None, ""
        if self._spec.evaluation and self._questions:
            content = self._evaluated(content, self._questions)
            assert content.evaluation is not None
            passed, message = judge(self._spec.evaluation.gate, content.evaluation)
        self._collection.describe(uid=self._config.object.uid, content=content)
        assert self._collection.metadata is not None
        this = version(name, self._collection.metadata)
        serving: IndexVersion | None = this
        if passed is not False:
            self._versions.serve(name)
        elif self._versions.served() == name:
            message += "; this version is served already, and was updated in place"
        else:
            serving = self._other_served()
            message += f"; {serving.collection} is still served" if serving else "; nothing is served yet"
        self._versions.retire([name], self._spec.retain_versions)
        log.info("%d documents, %d chunks; %s", content.documents, content.chunks, sync.counts)
        return IndexingResult(
            alias=self._versions.alias,
            serving=serving,
            candidate=None if serving is this else this,
            gate_passed=passed,
            gate_message=message,
            counts=sync.counts,
            sources=sync.sources,
            rejected=tuple(self._rejects.first),
            rejected_count=self._rejects.count,
            embedding_model_digest=self._digest,
        )

    def _synchronise(self) -> Sync:
        spec = self._spec
        batches = _WINDOW_BATCHES * spec.embedding.batch_size
        size = min(max(batches, _WINDOW_CHUNKS[0]), _WINDOW_CHUNKS[1])
        sync = Sync(self._collection, spec.sources, self._chunker.cut, size)
        windows = sync.windows(read_documents(self._files, self._rejects), self._pace.passed)
        write_windows(
            self._collection,
            self._embedded(windows),
            Keywords.for_chunking(spec.chunking) if spec.sparse.enabled else None,
            lambda dimensions: self._collection.ensure(lambda: self._new_metadata(dimensions)),
            lambda window: self._pace.wrote(window.read_bytes, len(window.parts)),
        )
        if not sync.documents:
            raise UserError(FailureReason.NO_DOCUMENTS, self._no_documents())
        self._refuse_emptied()  # again: a mount may have gone while its files were read
        sync.delete_gone()
        if (held := self._collection.count()) != sync.chunks:
            raise TryAgain(
                FailureReason.COLLECTION_CHANGED,
                f"{self._collection.name} holds {held} chunks after the sync, {sync.chunks} were expected: something else writes "
                "to it; the next sync puts it right",
            )
        return sync

    def _refuse_emptied(self) -> None:
        """A source that is served and has no file any more: rather a mount that is gone than a wish."""
        emptied = [one for one in self._spec.sources if not self._has_file(one) and self._versions.serves(one.name)]
        if emptied:
            raise UserError(
                FailureReason.NO_DOCUMENTS,
                f"these sources have no file any more: {_listed(emptied)}; what is indexed already was kept: see whether their "
                "folders are mounted, correct uri, include or exclude, or, if that is meant, take them out of spec.sources",
            )

    def _has_file(self, source: IndexSource) -> bool:
        return any(file.file.exists() for file in self._files if file.source.name == source.name)

    def _no_documents(self) -> str:
        if not self._files:
            where = _listed(self._spec.sources)
            return f"no file of the sources is included: {where}; correct uri or include, or put documents there"
        first = "; ".join(f"{one.path} {one.reason}" for one in self._rejects.first[:3])
        return f"all {self._rejects.count} documents of the sources were rejected: {first}; what is indexed already was kept"

    def _embedded(self, windows: Iterator[Window]) -> Iterator[tuple[Window, Vectors]]:
        embedding, compute = self._spec.embedding, self._spec.compute
        if compute.workers == 1:
            return embed_here(windows, lambda: self._embedder, embedding.batch_size)
        return embed_on_ray(
            windows,
            workers=compute.workers,
            cpus=cpu_count(compute.resources.cpu),
            model=embedding.model.uri,
            document_prefix=embedding.document_prefix,
            batch_size=embedding.batch_size,
        )

    @cached_property
    def _embedder(self) -> Embedder:
        self._pace.say("loading the embedding model")
        keep_freed_memory()
        embedding = self._spec.embedding
        return Embedder.load(
            self._model, query_prefix=embedding.query_prefix, document_prefix=embedding.document_prefix
        )

    def _new_metadata(self, dimensions: int) -> IndexMetadata:
        spec, owner = self._spec, self._config.object
        return IndexMetadata(
            fingerprint=self._fingerprint,
            embedding=Embedded(
                model=spec.embedding.model.uri,
                digest=self._digest,
                query_prefix=spec.embedding.query_prefix,
                document_prefix=spec.embedding.document_prefix,
                dimensions=dimensions,
            ),
            sparse=spec.sparse.enabled,
            chunking=spec.chunking,
            index=f"{owner.namespace}/{owner.name}",
            uid=owner.uid,
            created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def _since(self, digest: str) -> str | None:
        assert self._collection.metadata is not None
        known = self._collection.metadata.content
        if known.digest == digest:
            return known.since
        return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _evaluated(self, content: Content, questions: Questions) -> Content:
        """The content with its scores: those that were measured on the same documents and questions, or new ones."""
        assert self._collection.metadata is not None
        known = self._collection.metadata.content
        key = hashlib.sha256(f"{content.digest}\0{questions.digest}".encode()).hexdigest()
        found: RetrievalScores | None = known.evaluation if known.evaluation_key == key else None
        if found is None:
            self._pace.say(f"asking {len(questions.questions)} questions")
            found = evaluate(self._collection.name, questions, self._embedder, sparse=self._spec.sparse.enabled)
        return content.model_copy(update={"evaluation": found, "evaluation_key": key})

    def _other_served(self) -> IndexVersion | None:
        served = self._versions.served()
        metadata = self._versions.metadata(served) if served else None
        return version(served, metadata) if served and metadata else None


def _listed(sources: Iterable[IndexSource]) -> str:
    return ", ".join(f"{one.name} ({one.uri}, include {', '.join(one.include)})" for one in sources)


def cpu_count(quantity: str | None) -> float:
    """Cores in Kubernetes' notation: "500m" is half a core. One when nothing is said."""
    if quantity is None:
        return 1.0
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


class _Pace:
    """How far the documents are, in bytes: they are known before the first one is read."""

    def __init__(self, total_bytes: int, files: int) -> None:
        self._total = max(total_bytes, 1)
        self._files = files
        self._reporter = ProgressReporter()
        self._start = time.monotonic()
        self._passed = 0
        self._wrote = 0
        self._documents = 0

    def say(self, doing: str) -> None:
        """Report something that is not counted."""
        self._reporter.report(self._sample(doing))

    def passed(self, size: int) -> None:
        """Documents of this size needed nothing done."""
        self._passed += size
        self._documents += 1
        self._reporter.report(self._sample("comparing and embedding documents"))

    def wrote(self, size: int, documents: int) -> None:
        """Documents of this size were written."""
        self._wrote += size
        self._documents += documents
        self._reporter.report(self._sample("comparing and embedding documents"))

    def _sample(self, doing: str) -> Progress:
        done = min(self._passed + self._wrote, self._total)
        left = None
        if self._wrote:  # what was passed over says nothing about what embedding takes
            left = math.ceil((time.monotonic() - self._start) * (self._total - done) / self._wrote)
        return Progress(
            doing=doing,
            step=self._documents,
            total=max(self._files, self._documents),
            percent=100 * done // self._total,
            seconds_left=left,
        )
