"""What all three kinds share: the base model with its rules, metadata, conditions, references and scalar types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

GROUP = "llmops.dev"
VERSION = "v1alpha1"
API_VERSION: Literal["llmops.dev/v1alpha1"] = "llmops.dev/v1alpha1"


@dataclass(frozen=True)
class Rule:
    """A rule across fields, said twice: `cel` for the API server and `holds` for Python. `message` says what to write instead."""

    cel: str
    message: str
    holds: Callable[[Any], bool]


class Model(BaseModel):
    """A part of the API: camelCase outside, frozen, unknown fields refused, and its `rules` checked on every instance."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = [rule.message for rule in self.rules if not rule.holds(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    def dump(self) -> dict[str, Any]:
        """The object as it stands in YAML: camelCase, JSON types, unset optional fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


# Scalars. Every string, list and map of a spec has a maximum, so that the cost of CEL stays bounded.
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Text = Annotated[str, Field(max_length=16384)]
Line = Annotated[str, Field(min_length=1, max_length=1024)]
DecimalString = Annotated[str, Field(max_length=32, pattern=r"^-?[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?$")]
PositiveDecimal = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?$")]
Quantity = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
_ANYWHERE = r"(file://(/|\./)|pkg://|https://[^/@]+/|git\+https://[^/@]+/|artifact://[0-9a-f]{64}/).+|(pvc|s3)://[a-z0-9][-.a-z0-9]*(/.*)?"
DataUri = Annotated[str, Field(min_length=1, max_length=1024, pattern=rf"^({_ANYWHERE})$")]
ModelUri = Annotated[str, Field(min_length=1, max_length=1024, pattern=rf"^({_ANYWHERE}|(hf|mlflow)://.+)$")]


class ObjectMeta(BaseModel):
    """Kubernetes' object metadata, as far as it is read here; what others add is kept out of the way, not refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    name: Name
    namespace: Name = "default"
    uid: str = ""
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()


class ConditionStatus(StrEnum):
    """Whether a condition holds; `Unknown` until it has been looked at."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Model):
    """One aspect of an object's state, in Kubernetes' own shape."""

    type: Annotated[str, Field(max_length=316)]
    """Which aspect of the object."""
    status: ConditionStatus = ConditionStatus.UNKNOWN
    reason: Annotated[str, Field(max_length=1024)] = "Pending"
    """Why, as one CamelCase word for programs."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, and what to do, as a sentence for people."""
    last_transition_time: str = ""
    """When the status changed last."""
    observed_generation: int = 0
    """The generation of the spec that this is about."""


LIST_OF_CONDITIONS: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
Conditions = Annotated[tuple[Condition, ...], Field(max_length=32, json_schema_extra=LIST_OF_CONDITIONS)]


class SecretRef(Model):
    """One entry of a Secret of the same namespace."""

    name: Name
    """The Secret's name."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "apiKey"
    """The entry in it."""


class Source(Model):
    """Something at a URI. `secretRef` names a token, for what `https://`, `git+https://` and `hf://` do not give to everybody, or
    for `s3://` credentials.
    """

    uri: str
    """Where it is, as scheme://…"""
    secret_ref: SecretRef | None = None

    rules: ClassVar = (
        Rule("!has(self.secretRef) || self.uri.matches('^(https|git[+]https|hf|s3)://')",
             "secretRef is a token for https://, git+https:// or hf://, or credentials for s3://: remove it, or write such a uri",
             lambda self: self.secret_ref is None or self.uri.startswith(("https://", "git+https://", "hf://", "s3://"))),
    )  # fmt: skip


class DataSource(Source):
    """A file or folder with data."""

    uri: DataUri


class ModelSource(Source):
    """Where the weights of a model are."""

    uri: ModelUri


class ObjectRef(Model):
    """Another object of the same namespace."""

    name: Name
    """Its name."""


class Resources(Model):
    """CPU and memory that a worker asks for."""

    cpu: Quantity | None = None
    """Cores, for example 4 or 500m."""
    memory: Quantity | None = None
    """Bytes, for example 16Gi; a program that takes more is ended."""


class Gpus(Model):
    """Whole GPUs. On a laptop nothing is reserved: programs use the GPUs that they find."""

    count: Annotated[int, Field(ge=1, le=64)] = 1
    """How many each worker or replica gets."""
    product: (
        Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")] | None
    ) = None
    """The value of the node label nvidia.com/gpu.product, for example NVIDIA-H100-80GB-HBM3."""


class ReplicaCompute(Model):
    """What each replica gets."""

    resources: Resources = Resources()
    gpus: Gpus | None = None


class Compute(Model):
    """How many workers share the work, and what each of them gets."""

    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """How many share the work."""
    resources: Resources = Resources()
    gpus: Gpus | None = None

    @property
    def shares(self) -> int:
        """Into so many equal parts the work is cut: one for each GPU, or one a worker where no GPU is asked for."""
        return self.workers * (self.gpus.count if self.gpus else 1)


class Progress(Model):
    """A sample of how far a piece of work is."""

    doing: Annotated[str, Field(max_length=256)] = ""
    """What is being done, in words."""
    step: int = 0
    """Steps that are done."""
    total: int = 0
    """Steps that there are."""
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """The share that is done."""
    seconds_left: int | None = None
    """Seconds that are left, estimated."""
    loss: DecimalString | None = None
    """The last loss, while training."""


class Attempt(Model):
    """How one try at a piece of work ended."""

    number: int
    """Counted from 1."""
    start_time: str
    """When it was decided on; once its program runs, when that was started, or started last."""
    end_time: str | None = None
    """When it ended."""
    exit_code: int | None = None
    """The program's exit code, where it had one."""
    reason: Annotated[str, Field(max_length=256)] = ""
    """How it ended, as one word; empty while it runs."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """How it ended, as a sentence."""


def decimal(text: str) -> Decimal:
    """The value of a number written as a string."""
    return Decimal(text)
