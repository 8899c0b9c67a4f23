"""EmbeddingIndex: sources, chunking and an embedding model as versions of a Qdrant collection behind one alias."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from llmops_api.v1alpha1.meta import (
    API_VERSION,
    Attempt,
    Compute,
    Conditions,
    DataSource,
    DecimalString,
    Line,
    Model,
    ModelSource,
    Name,
    ObjectMeta,
    PositiveDecimal,
    Progress,
    Rule,
    Source,
    decimal,
)
from llmops_api.v1alpha1.pod_template import PodTemplate


class ChunkingStrategy(StrEnum):
    """Where a document may be cut: at its headings, or at paragraphs, lines and words."""

    MARKDOWN = "Markdown"
    RECURSIVE = "Recursive"


class DeletionPolicy(StrEnum):
    """What becomes of the collections when the object is deleted."""

    DELETE = "Delete"
    RETAIN = "Retain"


BY_NAME: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}


class IndexSource(DataSource):
    """A folder or file of documents. `include` and `exclude` are globs relative to it (`**` crosses folders); `metadata` is
    stored with each of its chunks.
    """

    name: Name
    include: Annotated[tuple[Line, ...], Field(min_length=1, max_length=64)] = ("**/*.md", "**/*.txt", "**/*.jsonl")
    exclude: Annotated[tuple[Line, ...], Field(max_length=64)] = ()
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=1024)]], Field(max_length=32)] = {}  # noqa: RUF012 - pydantic copies it


class Chunking(Model):
    """How documents become chunks; sizes are in tokens of the embedding model."""

    strategy: ChunkingStrategy = ChunkingStrategy.MARKDOWN
    max_tokens: Annotated[int, Field(ge=16, le=8192)] = 256
    overlap_tokens: Annotated[int, Field(ge=0, le=4096)] = 32

    rules: ClassVar = (
        Rule("self.overlapTokens * 2 <= self.maxTokens",
             "overlapTokens may be at most half of maxTokens: lower overlapTokens or raise maxTokens",
             lambda self: self.overlap_tokens * 2 <= self.max_tokens),
    )  # fmt: skip


class Embedding(Model):
    """The embedding model; the same one, with these prefixes, embeds documents and queries."""

    model: ModelSource
    query_prefix: Annotated[str, Field(max_length=1024)] = ""
    document_prefix: Annotated[str, Field(max_length=1024)] = ""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32


class Sparse(Model):
    """Whether BM25 vectors are stored beside the dense ones, for sparse and hybrid search."""

    enabled: bool = True


class Refresh(Model):
    """How often the sources are looked at again."""

    every_seconds: Annotated[int, Field(ge=5, le=31_536_000)]


class IndexGate(Model):
    """What a new version has to show before the alias points at it."""

    recall_at5: Annotated[PositiveDecimal, Field(alias="recallAt5")]

    rules: ClassVar = (
        Rule("double(self.recallAt5) <= 1.0", "recallAt5 is a share: write a number from 0 to 1, for example \"0.8\"",
             lambda self: decimal(self.recall_at5) <= 1),
    )  # fmt: skip


class IndexEvaluation(Model):
    """Labelled questions on which retrieval is measured."""

    questions: DataSource
    gate: IndexGate | None = None


class EmbeddingIndexSpec(Model):
    """What the index is to hold, freely editable: what differs is added, updated, removed or rebuilt beside the old version."""

    sources: Annotated[tuple[IndexSource, ...], Field(min_length=1, max_length=64, json_schema_extra=BY_NAME)]
    chunking: Chunking = Chunking()
    embedding: Embedding
    sparse: Sparse = Sparse()
    refresh: Refresh | None = None
    evaluation: IndexEvaluation | None = None
    retain_versions: Annotated[int, Field(ge=1, le=100)] = 2
    deletion_policy: DeletionPolicy = DeletionPolicy.DELETE
    compute: Compute = Compute()
    pod_template: PodTemplate | None = None
    suspend: bool = False

    rules: ClassVar = (
        Rule("self.sources.all(a, self.sources.exists_one(b, a.name == b.name))",
             "two sources have the same name: give each source a name of its own",
             lambda self: len({source.name for source in self.sources}) == len(self.sources)),
    )  # fmt: skip

    def reads(self) -> tuple[Source, ...]:
        """All data and models that are read."""
        return (self.embedding.model, *self.sources, *((self.evaluation.questions,) if self.evaluation else ()))


class EmbeddingIndexCondition(StrEnum):
    """The aspects of an EmbeddingIndex; `Ready` sums the others up."""

    ACCEPTED = "Accepted"
    SYNCED = "Synced"
    GATE_PASSED = "GatePassed"
    SERVING = "Serving"
    LINEAGE_RECORDED = "LineageRecorded"
    SUSPENDED = "Suspended"
    READY = "Ready"


class RetrievalScores(Model):
    """How well the labelled questions find their documents: the share found among the first five, and mean reciprocal rank.
    `uri` and `digest` (sha256, in hex) are those of the file of questions.
    """

    questions: int
    uri: str = ""
    digest: str = ""
    recall_at5: Annotated[DecimalString, Field(alias="recallAt5")]
    mrr: DecimalString


class IndexVersion(Model):
    """One collection. `fingerprint` is of everything that decides what a vector means; `digest` is of the documents."""

    collection: str
    fingerprint: str
    digest: str = ""
    documents: int = 0
    chunks: int = 0
    dimensions: int = 0
    created_at: str | None = None
    evaluation: RetrievalScores | None = None


class RejectedDocument(Model):
    """A document that is not in the index, and why."""

    path: Annotated[str, Field(max_length=1024)]
    reason: Annotated[str, Field(max_length=1024)]


class SourceDigest(Model):
    """What one source held at the last sync; `digest` is of all its documents."""

    name: str
    uri: str
    documents: int
    digest: str


class SyncCounts(Model):
    """What the last sync did. `embedded` counts chunks that went through the model."""

    added: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0
    embedded: int = 0


class EmbeddingIndexStatus(Model):
    """What the index holds and serves. `candidate` is a newer version that its gate keeps from being served."""

    observed_generation: int = 0
    conditions: Conditions = ()
    phase: str = "Pending"
    alias: str | None = None
    version: IndexVersion | None = None
    candidate: IndexVersion | None = None
    documents: int = 0
    chunks: int = 0
    sources: Annotated[tuple[SourceDigest, ...], Field(max_length=64)] = ()
    last_sync_time: str | None = None
    last_sync: SyncCounts | None = None
    rejected: Annotated[tuple[RejectedDocument, ...], Field(max_length=20)] = ()
    rejected_count: int = 0
    embedding_model_digest: str | None = None
    progress: Progress | None = None
    attempts: Annotated[tuple[Attempt, ...], Field(max_length=16)] = ()
    run_id: str | None = None
    run_url: str | None = None


class EmbeddingIndex(Model):
    """A living index: versions of a Qdrant collection behind one alias."""

    api_version: Literal["llmops.dev/v1alpha1"] = API_VERSION
    kind: Literal["EmbeddingIndex"] = "EmbeddingIndex"
    metadata: ObjectMeta
    spec: EmbeddingIndexSpec
    status: EmbeddingIndexStatus = EmbeddingIndexStatus()
