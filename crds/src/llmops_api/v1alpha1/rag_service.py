"""RagService: model, adapter, indexes and prompt as an OpenAI-compatible endpoint."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmops_api.v1alpha1.embedding_index import BY_NAME
from llmops_api.v1alpha1.meta import (
    API_VERSION,
    Conditions,
    DecimalString,
    Line,
    Model,
    ModelSource,
    Name,
    ObjectMeta,
    ObjectRef,
    PositiveDecimal,
    Progress,
    ReplicaCompute,
    Rule,
    SecretRef,
    Text,
    decimal,
)
from llmops_api.v1alpha1.pod_template import PodTemplate


class RetrievalMode(StrEnum):
    """Which vectors are searched; `Hybrid` fuses the ranks of both."""

    DENSE = "Dense"
    SPARSE = "Sparse"
    HYBRID = "Hybrid"


class Dtype(StrEnum):
    """The number format that the engine computes in. `auto`: the one of the weights; float32 on a CPU that has no bf16."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class RegisteredModel(Model):
    """A model of MLflow's registry, by alias or by version."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[a-zA-Z0-9][-._a-zA-Z0-9]*$")]
    """Its name in MLflow's registry."""
    alias: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[a-zA-Z][-_a-zA-Z0-9]*$")] | None = None
    """Follows the alias when it is moved."""
    version: Annotated[str, Field(min_length=1, max_length=20, pattern=r"^[1-9][0-9]*$")] | None = None
    """Stays with this version."""

    rules: ClassVar = (
        Rule("has(self.alias) != has(self.version)", "a registered model takes exactly one of alias and version: keep one of them",
             lambda self: (self.alias is None) != (self.version is None)),
    )  # fmt: skip


class Adapter(Model):
    """Trained weights over the base model: what a TrainingJob of this namespace made, or a model of the registry."""

    training_job_ref: ObjectRef | None = None
    model: RegisteredModel | None = None

    rules: ClassVar = (
        Rule("has(self.trainingJobRef) != has(self.model)", "adapter takes exactly one of trainingJobRef and model: keep one of them",
             lambda self: (self.training_job_ref is None) != (self.model is None)),
    )  # fmt: skip


HttpUrl = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^https?://.+$")]


class Endpoint(Model):
    """OpenAI-compatible engines that run elsewhere."""

    urls: Annotated[tuple[HttpUrl, ...], Field(min_length=1, max_length=64)]
    """Their base URLs, each ending in /v1."""
    name: Line
    """The model's name there."""
    secret_ref: SecretRef | None = None


class ServedModel(Model):
    """Who answers: an engine of ours with `base` and perhaps an `adapter`, or an `endpoint` that runs elsewhere."""

    base: ModelSource | None = None
    adapter: Adapter | None = None
    endpoint: Endpoint | None = None

    rules: ClassVar = (
        Rule("has(self.base) != has(self.endpoint)", "model takes exactly one of base and endpoint: keep one of them",
             lambda self: (self.base is None) != (self.endpoint is None)),
        Rule("!has(self.adapter) || has(self.base)", "model.adapter needs model.base: say which model the adapter belongs to",
             lambda self: self.adapter is None or self.base is not None),
    )  # fmt: skip


OWN_ARGS = frozenset(
    {
        "--model",
        "--host",
        "--port",
        "--served-model-name",
        "--api-key",
        "--max-model-len",
        "--dtype",
        "--gpu-memory-utilization",
        "--tensor-parallel-size",
        "--enable-lora",
    }
)


class Engine(Model):
    """How vLLM runs; names are vLLM's."""

    max_model_len: Annotated[int, Field(ge=128, le=10_000_000)] | None = None
    """Tokens of question, sources and answer together; the model's own length where it is not set."""
    dtype: Dtype = Dtype.AUTO
    gpu_memory_utilization: PositiveDecimal | None = None
    """The share of a GPU's memory that vLLM takes; vLLM's own default where it is not set."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs that share one copy of the model."""
    extra_args: Annotated[tuple[Line, ...], Field(max_length=64)] = ()
    """Options of vLLM that are passed on as they are, for example --enable-prefix-caching."""

    rules: ClassVar = (
        Rule("!has(self.gpuMemoryUtilization) || (double(self.gpuMemoryUtilization) > 0.0 && double(self.gpuMemoryUtilization) <= 1.0)",
             "gpuMemoryUtilization is a share: write a number above 0 and up to 1, for example \"0.9\"",
             lambda self: self.gpu_memory_utilization is None or 0 < decimal(self.gpu_memory_utilization) <= 1),
        Rule("!has(self.extraArgs) || self.extraArgs.all(a, !a.matches('^--(model|host|port|served-model-name|api-key|max-model-len|dtype|"
             "gpu-memory-utilization|tensor-parallel-size|enable-lora)(=.*)?$'))",
             "extraArgs repeats an option that llmops sets itself: use the field of engine or model, and remove it from extraArgs",
             lambda self: not any(arg.partition("=")[0] in OWN_ARGS for arg in self.extra_args)),
    )  # fmt: skip


class ServedIndex(Model):
    """An index that answers are looked up in; `name` of the entry is the EmbeddingIndex's."""

    index_ref: ObjectRef
    description: Annotated[str, Field(max_length=1024)] = ""
    """What the index is about, for the model where there are several."""


class Retrieval(Model):
    """How sources are found: of `candidates` chunks the best `topK` go into the prompt, as far as `contextTokens` reaches."""

    mode: RetrievalMode = RetrievalMode.HYBRID
    candidates: Annotated[int, Field(ge=1, le=1000)] = 30
    """Chunks that are looked at."""
    top_k: Annotated[int, Field(ge=1, le=100)] = 5
    """Chunks that go into the prompt at most."""
    min_score: DecimalString = "0"
    """The least similarity (cosine of query and chunk, -1 to 1) of a chunk that may be cited; in mode Sparse the least BM25 score."""
    context_tokens: Annotated[int, Field(ge=64, le=1_000_000)] = 2048
    """Tokens that they may take up together."""

    rules: ClassVar = (
        Rule("self.topK <= self.candidates", "topK may not be above candidates: lower topK or raise candidates",
             lambda self: self.top_k <= self.candidates),
    )  # fmt: skip


class Prompt(Model):
    """What the model is told. `template` holds {sources} and {question}."""

    system: Text = (
        "Answer from the numbered sources only. After each fact write the number of its source, like [1]. "
        "If the sources do not hold the answer, say so."
    )
    """The system message."""
    template: Text = "Sources:\n\n{sources}\n\nQuestion: {question}"
    """What the user's question is put into."""

    rules: ClassVar = (
        Rule("self.template.contains('{sources}') && self.template.contains('{question}')",
             "prompt.template must hold both {sources} and {question}",
             lambda self: "{sources}" in self.template and "{question}" in self.template),
    )  # fmt: skip


BY_INDEX: dict[str, object] = {"x-kubernetes-list-type": "atomic"}


class RagServiceSpec(Model):
    """What the service answers with, freely editable. Another adapter, index, retrieval, prompt or number of replicas is taken over without
    losing a request. Another base model, `engine` or `compute` starts the engines anew: in a cluster beside those that answer; on a laptop,
    and where they have GPUs, in their place, so that a single replica does not answer meanwhile. `engine` and `compute` (what each replica
    of it gets) are of no use with `model.endpoint`, where the engine runs elsewhere; `podTemplate` is of all pods, the engine's and the
    gateway's.
    """

    model: ServedModel
    engine: Engine = Engine()
    indexes: Annotated[tuple[ServedIndex, ...], Field(max_length=16, json_schema_extra=BY_INDEX)] = ()
    """What is looked up; without any the model answers alone."""
    retrieval: Retrieval = Retrieval()
    prompt: Prompt = Prompt()
    replicas: Annotated[int, Field(ge=1, le=256)] = 1
    """How many engines answer; with `model.endpoint`, how many gateways."""
    compute: ReplicaCompute = ReplicaCompute()
    pod_template: PodTemplate | None = None
    suspend: bool = False
    """Nothing answers while it is set."""

    rules: ClassVar = (
        Rule("!has(self.indexes) || self.indexes.all(a, self.indexes.exists_one(b, a.indexRef.name == b.indexRef.name))",
             "two entries of indexes name the same EmbeddingIndex: remove one of them",
             lambda self: len({index.index_ref.name for index in self.indexes}) == len(self.indexes)),
        Rule("!has(self.compute.gpus) || self.engine.tensorParallelSize <= self.compute.gpus.count",
             "engine.tensorParallelSize is above compute.gpus.count: a replica has fewer GPUs than it would share the model among",
             lambda self: self.compute.gpus is None or self.engine.tensor_parallel_size <= self.compute.gpus.count),
    )  # fmt: skip


class RagServiceCondition(StrEnum):
    """The aspects of a RagService; `Ready` sums the others up."""

    ACCEPTED = "Accepted"
    """The spec is understood."""
    MODEL_RESOLVED = "ModelResolved"
    """It is known which model answers."""
    INDEXES_RESOLVED = "IndexesResolved"
    """All indexes serve a version."""
    ENGINE_READY = "EngineReady"
    """An engine answers."""
    GATEWAY_READY = "GatewayReady"
    """The gateway answers with what the spec asks for."""
    LINEAGE_RECORDED = "LineageRecorded"
    """The revision that answers is a run in MLflow."""
    SUSPENDED = "Suspended"
    """`spec.suspend` is set."""
    READY = "Ready"
    """ModelResolved, IndexesResolved, EngineReady and GatewayReady; else the first of them that is in trouble, or is missing."""


class IndexInUse(Model):
    """An index and the version of it that answers."""

    name: Name
    """The EmbeddingIndex."""
    collection: str
    """Its collection in the vector store."""


class ModelInUse(Model):
    """The model that answers."""

    name: str
    """Its name at the engine."""
    version: str | None = None
    """The registered version, where there is one."""
    uri: str | None = None
    """`mlflow://name/version` of that, an adapter's or full weights'."""
    adapter: bool = False
    """Whether the version is an adapter over the base model."""


class RagServiceStatus(Model):
    """What answers, and where."""

    observed_generation: int = 0
    """The generation of the spec that the status is about."""
    conditions: Conditions = ()
    """One for each aspect."""
    phase: str = "Pending"
    """One word, made from the conditions; nothing goes by it."""
    url: str | None = None
    """The base URL of the service, without /v1."""
    revision: str | None = None
    """Ten hex digits of everything that decides an answer; answers and traces carry it."""
    model: ModelInUse | None = None
    indexes: Annotated[tuple[IndexInUse, ...], Field(max_length=16, json_schema_extra=BY_NAME)] = ()
    """The versions that are searched."""
    replicas: int = 0
    """How many engines (or gateways) there should be."""
    ready_replicas: int = 0
    """How many of them answer."""
    selector: str | None = None
    """The labels of their pods, for an autoscaler; only in a cluster."""
    progress: Progress | None = None
    run_id: str | None = None
    """The MLflow run of the revision."""
    run_url: str | None = None
    """The page of that run."""
    mlflow_model_id: str | None = None
    """The LoggedModel of the revision: traces are tied to it."""


class RagService(Model):
    """An answering service: model, adapter, indexes and prompt behind an OpenAI-compatible endpoint."""

    api_version: Literal["llmops.dev/v1alpha1"] = API_VERSION
    kind: Literal["RagService"] = "RagService"
    metadata: ObjectMeta
    spec: RagServiceSpec
    status: RagServiceStatus = RagServiceStatus()
