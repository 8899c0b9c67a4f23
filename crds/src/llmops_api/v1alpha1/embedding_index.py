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
    """A folder or file of documents. `include` and `exclude` are globs relative to it (`**` crosses folders)."""

    name: Name
    """Tells the sources apart; chunks carry it as `source`."""
    include: Annotated[tuple[Line, ...], Field(min_length=1, max_length=64)] = ("**/*.md", "**/*.txt", "**/*.jsonl")
    """Which files are documents."""
    exclude: Annotated[tuple[Line, ...], Field(max_length=64)] = ()
    """Which of these are none after all."""
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=1024)]], Field(max_length=32)] = {}  # noqa: RUF012 - pydantic copies it
    """Stored with each chunk, to filter by."""


class Chunking(Model):
    """How documents become chunks; sizes are in tokens of the embedding model."""

    strategy: ChunkingStrategy = ChunkingStrategy.MARKDOWN
    max_tokens: Annotated[int, Field(ge=16, le=8192)] = 256
    """The longest chunk."""
    overlap_tokens: Annotated[int, Field(ge=0, le=4096)] = 32
    """What two neighbouring chunks share."""

    rules: ClassVar = (
        Rule("self.overlapTokens * 2 <= self.maxTokens",
             "overlapTokens may be at most half of maxTokens: lower overlapTokens or raise maxTokens",
             lambda self: self.overlap_tokens * 2 <= self.max_tokens),
    )  # fmt: skip


class Embedding(Model):
    """The embedding model; the same one, with these prefixes, embeds documents and queries."""

    model: ModelSource
    query_prefix: Annotated[str, Field(max_length=1024)] = ""
    """Put before a question, where the model was trained so."""
    document_prefix: Annotated[str, Field(max_length=1024)] = ""
    """Put before a chunk, where the model was trained so."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Chunks that go through the model at once."""


class Sparse(Model):
    """Whether BM25 vectors are stored beside the dense ones, for sparse and hybrid search."""

    enabled: bool = True
    """Whether they are stored."""


class Refresh(Model):
    """How often the sources are looked at again."""

    every_seconds: Annotated[int, Field(ge=5, le=31_536_000)]
    """Seconds from the end of one sync to the next."""


class IndexGate(Model):
    """What a new version has to show before the alias points at it."""

    recall_at5: Annotated[PositiveDecimal, Field(alias="recallAt5")]
    """The least share of questions whose document is among the first five found, from 0 to 1."""

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
    """What is read."""
    chunking: Chunking = Chunking()
    embedding: Embedding
    sparse: Sparse = Sparse()
    refresh: Refresh | None = None
    evaluation: IndexEvaluation | None = None
    retain_versions: Annotated[int, Field(ge=1, le=100)] = 2
    """How many versions are kept, the served one and the newest among them in any case."""
    deletion_policy: DeletionPolicy = DeletionPolicy.DELETE
    compute: Compute = Compute()
    pod_template: PodTemplate | None = None
    suspend: bool = False
    """Nothing is synced while it is set; what is served stays served."""

    rules: ClassVar = (
        Rule("self.sources.all(a, self.sources.exists_one(b, a.name == b.name))",
             "two sources have the same name: give each source a name of its own",
             lambda self: len({source.name for source in self.sources}) == len(self.sources)),
        Rule("!has(self.compute.gpus) || self.compute.gpus.count == 1",
             "a worker of an EmbeddingIndex embeds on one GPU: leave compute.gpus.count out, and raise compute.workers instead",
             lambda self: self.compute.gpus is None or self.compute.gpus.count == 1),
    )  # fmt: skip

    def reads(self) -> tuple[Source, ...]:
        """All data and models that are read."""
        return (self.embedding.model, *self.sources, *((self.evaluation.questions,) if self.evaluation else ()))


class EmbeddingIndexCondition(StrEnum):
    """The aspects of an EmbeddingIndex; `Ready` sums the others up."""

    ACCEPTED = "Accepted"
    """The spec is understood."""
    SYNCED = "Synced"
    """The last sync of this spec ended well."""
    GATE_PASSED = "GatePassed"
    """The newest version is good enough to be served, or nothing is asked of it."""
    SERVING = "Serving"
    """The alias points at a version."""
    LINEAGE_RECORDED = "LineageRecorded"
    """The newest version is a run in MLflow."""
    SUSPENDED = "Suspended"
    """`spec.suspend` is set."""
    READY = "Ready"
    """Accepted, Synced, GatePassed and Serving; else the first of them that is in trouble, or is missing."""


class RetrievalScores(Model):
    """How well the labelled questions find their documents."""

    questions: int
    """How many questions were asked."""
    uri: str = ""
    """The file of questions."""
    digest: str = ""
    """sha256 of that file, in hex."""
    recall_at5: Annotated[DecimalString, Field(alias="recallAt5")]
    """The share of questions whose document was among the first five found."""
    mrr: DecimalString
    """Mean reciprocal rank of the document."""


class IndexVersion(Model):
    """One collection."""

    collection: str
    """Its name in the vector store."""
    fingerprint: str
    """Digest of everything that decides what a vector means."""
    digest: str = ""
    """Digest of all documents."""
    documents: int = 0
    """How many documents it holds."""
    chunks: int = 0
    """How many chunks these became."""
    dimensions: int = 0
    """The length of a vector."""
    created_at: str | None = None
    """When the collection was made."""
    updated_at: str | None = None
    """When its documents became what they are."""
    evaluation: RetrievalScores | None = None


class RejectedDocument(Model):
    """A document that is not in the index, and why."""

    path: Annotated[str, Field(max_length=1024)]
    """Where it is in its source."""
    reason: Annotated[str, Field(max_length=1024)]
    """What is wrong with it."""


class SourceDigest(Model):
    """What one source held at the last sync."""

    name: str
    """The source's name."""
    uri: str
    """Where it was read."""
    documents: int
    """How many documents it held."""
    digest: str
    """Digest of all its documents."""


class SyncCounts(Model):
    """What the last sync did with documents."""

    added: int = 0
    """Documents that are new."""
    updated: int = 0
    """Documents that were changed."""
    deleted: int = 0
    """Documents that are gone."""
    unchanged: int = 0
    """Documents that stayed as they were."""
    embedded: int = 0
    """Chunks that went through the model."""


class EmbeddingIndexStatus(Model):
    """What the index holds and serves. `candidate` is a newer version that its gate keeps from being served."""

    observed_generation: int = 0
    """The generation of the spec that the status is about."""
    conditions: Conditions = ()
    """One for each aspect."""
    phase: str = "Pending"
    """One word, made from the conditions; nothing goes by it."""
    alias: str | None = None
    """The name in the vector store by which the served version is searched."""
    version: IndexVersion | None = None
    candidate: IndexVersion | None = None
    documents: int = 0
    """Documents of the served version."""
    chunks: int = 0
    """Chunks of the served version."""
    sources: Annotated[tuple[SourceDigest, ...], Field(max_length=64)] = ()
    """What the sources held at the last sync."""
    last_sync_time: str | None = None
    """When the last sync that ended well began."""
    last_sync: SyncCounts | None = None
    rejected: Annotated[tuple[RejectedDocument, ...], Field(max_length=20)] = ()
    """Documents that could not be taken, the first of them."""
    rejected_count: int = 0
    """How many documents could not be taken."""
    embedding_model_digest: str | None = None
    """sha256 of the files of the embedding model."""
    progress: Progress | None = None
    attempts: Annotated[tuple[Attempt, ...], Field(max_length=16)] = ()
    """The last syncs and how each ended."""
    run_id: str | None = None
    """The MLflow run of the served version."""
    run_url: str | None = None
    """The page of that run."""


class EmbeddingIndex(Model):
    """A living index: versions of a Qdrant collection behind one alias."""

    api_version: Literal["llmops.dev/v1alpha1"] = API_VERSION
    kind: Literal["EmbeddingIndex"] = "EmbeddingIndex"
    metadata: ObjectMeta
    spec: EmbeddingIndexSpec
    status: EmbeddingIndexStatus = EmbeddingIndexStatus()
