"""TrainingJob: one training run, from data and a base model to a registered, evaluated model version."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

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
    ObjectMeta,
    PositiveDecimal,
    Progress,
    Rule,
    Source,
    Text,
    decimal,
)
from llmops_api.v1alpha1.pod_template import PodTemplate


class Method(StrEnum):
    """How the model learns."""

    SFT = "SFT"


class DataFormat(StrEnum):
    """The shape of a line of training data."""

    MESSAGES = "Messages"
    PROMPT_COMPLETION = "PromptCompletion"


class Scheduler(StrEnum):
    """How the learning rate moves after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"


class Precision(StrEnum):
    """The number format that the model is trained in. `Auto`: bf16 where the GPU, or the CPU where there is none, computes in it; else fp32."""

    AUTO = "Auto"
    BF16 = "BF16"
    FP32 = "FP32"


class GateMetric(StrEnum):
    """What the gate looks at. An improvement of `Loss` is a fall, of `TokenF1` a rise. The loss is of all examples; answers are generated
    for at most 16 of a set, evenly spaced over it, and cut at 48 tokens: where answers are long, take `Loss`.
    """

    LOSS = "Loss"
    TOKEN_F1 = "TokenF1"  # noqa: S105 - a metric


class BaseModelSource(ModelSource):
    """The model that the training starts from."""

    revision: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """A branch, tag or commit of an `hf://` repository."""


class TrainingData(Model):
    """What is trained on."""

    train: DataSource
    format: DataFormat = DataFormat.MESSAGES
    max_length: Annotated[int, Field(ge=16, le=1_048_576)] = 1024
    """Tokens of an example; longer ones are cut."""
    packing: bool = False
    """Whether short examples share a row."""
    system_prompt: Text | None = None
    """Put before each example that has no system message."""


class Lora(Model):
    """Low-rank adapters beside frozen weights; names and defaults are PEFT's where PEFT has one."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """The width of the adapters."""
    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Their weight is alpha / rank."""
    dropout: PositiveDecimal = "0"
    """The share of their inputs that is left out while training."""
    target_modules: Annotated[tuple[Line, ...], Field(min_length=1, max_length=64)] = ("all-linear",)
    """The layers that get one; `all-linear` means all but the output layer."""

    rules: ClassVar = (
        Rule("double(self.dropout) < 1.0", "dropout is a share: write a number below 1, for example \"0.05\"",
             lambda self: decimal(self.dropout) < 1),
    )  # fmt: skip


class FullTuning(Model):
    """All weights are trained."""


class Tuning(Model):
    """Which weights are trained: exactly one of `lora` and `full`."""

    lora: Lora | None = None
    full: FullTuning | None = None

    rules: ClassVar = (
        Rule("has(self.lora) != has(self.full)", "tuning takes exactly one of lora and full: keep one and remove the other",
             lambda self: (self.lora is None) != (self.full is None)),
    )  # fmt: skip


class Hyperparameters(Model):
    """How the training goes; exactly one of `epochs` and `maxSteps`."""

    epochs: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Times through the data."""
    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Steps of the optimizer."""
    learning_rate: PositiveDecimal = "2e-4"
    """Its highest value."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    """Examples that go through the model at once, on each GPU of each worker; without `compute.gpus`, on each worker."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] = 1
    """Batches of each GPU that make one step: batchSize x gradientAccumulationSteps x compute.workers x compute.gpus.count examples.
    It is the same where there are fewer GPUs, as on a laptop: those that are there take more turns.
    """
    warmup_ratio: PositiveDecimal = "0.03"
    """The share of the steps in which the learning rate rises."""
    scheduler: Scheduler = Scheduler.COSINE
    weight_decay: PositiveDecimal = "0"
    """AdamW's."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Of the order of the examples and the first weights."""
    precision: Precision = Precision.AUTO

    rules: ClassVar = (
        Rule("has(self.epochs) != has(self.maxSteps)", "hyperparameters takes exactly one of epochs and maxSteps: keep one of them",
             lambda self: (self.epochs is None) != (self.max_steps is None)),
        Rule("double(self.learningRate) > 0.0", "learningRate must be above 0, for example \"2e-4\"",
             lambda self: decimal(self.learning_rate) > 0),
        Rule("double(self.warmupRatio) < 1.0", "warmupRatio is a share of all steps: write a number below 1, for example \"0.03\"",
             lambda self: decimal(self.warmup_ratio) < 1),
    )  # fmt: skip


class Checkpoint(Model):
    """How often the state of the training is kept, and how many of these are kept."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Steps between two of them."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """The newest that are kept."""


class TrainingGate(Model):
    """What a model has to show to get its alias; differences are absolute, in the metric's own unit."""

    metric: GateMetric = GateMetric.LOSS
    min_improvement: DecimalString = "0"
    """By so much it has to be better on the domain set at least."""
    max_general_regression: PositiveDecimal | None = None
    """By so much it may be worse on the general set at most."""


class Evaluation(Model):
    """Held-out data on which the model is measured before and after the training."""

    domain: DataSource
    general: DataSource | None = None
    gate: TrainingGate | None = None

    rules: ClassVar = (
        Rule("!has(self.gate) || !has(self.gate.maxGeneralRegression) || has(self.general)",
             "gate.maxGeneralRegression needs evaluation.general: name a general set, or remove maxGeneralRegression",
             lambda self: self.gate is None or self.gate.max_general_regression is None or self.general is not None),
    )  # fmt: skip


class Output(Model):
    """The registered model that the result becomes a version of."""

    model: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[a-zA-Z0-9][-._a-zA-Z0-9]*$")]
    """Its name in MLflow's registry."""
    alias_on_pass: Annotated[str, Field(max_length=100, pattern=r"^([a-zA-Z][-_a-zA-Z0-9]*)?$")] = "champion"  # noqa: S105 - an alias
    """Moved to the new version when the gate passes; none is when it is empty."""

    rules: ClassVar = (
        Rule("!has(self.aliasOnPass) || !self.aliasOnPass.matches('^(latest|v[0-9]+)$')",
             "aliasOnPass may not be latest or v1, v2, …, which MLflow keeps for itself: write another word, for example champion",
             lambda self: not _reserved(self.alias_on_pass)),
    )  # fmt: skip


def _reserved(alias: str) -> bool:
    return alias == "latest" or (alias.startswith("v") and alias[1:].isdigit())


class TrainingJobSpec(Model):
    """What to train. Immutable but for `suspend`: another data set or parameter is another run, so another TrainingJob."""

    method: Method = Method.SFT
    base_model: BaseModelSource
    data: TrainingData
    tuning: Tuning = Tuning(lora=Lora())
    hyperparameters: Hyperparameters
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation | None = None
    output: Output
    compute: Compute = Compute()
    pod_template: PodTemplate | None = None
    suspend: bool = False
    """Nothing is trained while it is set; afterwards it goes on from the last checkpoint."""
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """How many failed attempts are followed by another one."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """Seconds that all attempts may take together. Not counted is what was before the last start of an attempt's program: the wait in a
    queue, while suspended, or while `llmops up` does not run.
    """

    def reads(self) -> tuple[Source, ...]:
        """All data and models that are read."""
        held_out = (self.evaluation.domain, self.evaluation.general) if self.evaluation else ()
        return (self.base_model, self.data.train, *(source for source in held_out if source))


IMMUTABLE = tuple(field for field in TrainingJobSpec.model_fields if field != "suspend")
"""The fields of a spec that say what is trained; the CRD's transition rules are made from them."""


def immutable_message(fields: Sequence[str]) -> str:
    """What to do when fields (camelCase) were changed that may not change."""
    return f"{', '.join(fields)} of a TrainingJob cannot be changed: create another TrainingJob with the new value"


def immutable_changes(old: TrainingJobSpec, new: TrainingJobSpec) -> str | None:
    """What is wrong with an edit, or None when only `suspend` differs."""
    changed = [field for field in IMMUTABLE if getattr(old, field) != getattr(new, field)]
    if not changed:
        return None
    return immutable_message([TrainingJobSpec.model_fields[field].alias or field for field in changed])


class TrainingJobCondition(StrEnum):
    """The aspects of a TrainingJob; `Succeeded` sums the others up."""

    ACCEPTED = "Accepted"
    """The spec is understood."""
    TRAINED = "Trained"
    """The training has ended well."""
    GATE_PASSED = "GatePassed"
    """The model is good enough for its alias, or nothing was asked of it."""
    REGISTERED = "Registered"
    """It is a version in MLflow's model registry."""
    LINEAGE_RECORDED = "LineageRecorded"
    """MLflow knows of the run, and how it ended."""
    SUSPENDED = "Suspended"
    """`spec.suspend` is set."""
    SUCCEEDED = "Succeeded"
    """The version is registered; whether its gate has passed stands in GatePassed. `Unknown` while it may still come to that."""


class Scores(Model):
    """What a model reached on one data set."""

    examples: int
    """How many there are."""
    generated: int = 0
    """For how many of them an answer was generated: at most 16, evenly spaced over the set."""
    loss: DecimalString
    """In nats a token, over all examples."""
    perplexity: DecimalString
    """exp(loss)."""
    token_f1: DecimalString
    """Of greedy answers, cut at 48 tokens, for the examples that one was generated for."""


class ScoreTable(Model):
    """The scores on the two data sets."""

    domain: Scores
    general: Scores | None = None


class EvaluationStatus(Model):
    """The scores before and after the training, and what the gate made of them."""

    before: ScoreTable
    after: ScoreTable
    gate_passed: bool
    """Whether it has passed."""
    gate_message: Annotated[str, Field(max_length=1024)]
    """Why it has passed or not, in numbers."""


class ModelVersion(Model):
    """A version in MLflow's model registry."""

    name: str
    """The registered model."""
    version: str
    """The number of the version."""
    alias: str | None = None
    """The alias that was moved to this version."""
    adapter: bool = True
    """Whether it is an adapter, not full weights."""


class TrainingJobStatus(Model):
    """What became of the run so far."""

    observed_generation: int = 0
    """The generation of the spec that the status is about."""
    conditions: Conditions = ()
    """One for each aspect."""
    phase: str = "Pending"
    """One word, made from the conditions; nothing goes by it."""
    start_time: str | None = None
    """When the first attempt began."""
    completion_time: str | None = None
    """When it was done, or given up."""
    run_id: str | None = None
    """The MLflow run."""
    run_url: str | None = None
    """The page of that run."""
    progress: Progress | None = None
    attempts: Annotated[tuple[Attempt, ...], Field(max_length=128)] = ()
    """Each try and how it ended."""
    evaluation: EvaluationStatus | None = None
    model: ModelVersion | None = None


class TrainingJob(Model):
    """One training run: data, base model and method in; a registered, evaluated model version out."""

    api_version: Literal["llmops.dev/v1alpha1"] = API_VERSION
    kind: Literal["TrainingJob"] = "TrainingJob"
    metadata: ObjectMeta
    spec: TrainingJobSpec
    status: TrainingJobStatus = TrainingJobStatus()
