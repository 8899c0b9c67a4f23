"""The operator's configuration: one YAML file, which the Helm chart writes. What is wrong in it is said by field."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from llmops_api.v1alpha1.pod_template import PodTemplate

ENVIRONMENT = "LLMOPS_OPERATOR_CONFIG"
"""Where the path of the file is said when `--config` does not."""

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
AccessMode = Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]


class ConfigError(Exception):
    """The configuration cannot be used: which file, which field, and why."""


class Section(BaseModel):
    """A part of the file: camelCase there, frozen, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Images(Section):
    """The images of the programs."""

    services: str
    """Gateway and indexer."""
    engine: str
    """Engine (vLLM) and trainer; the indexer, too, where it has GPUs or several workers."""


class Mlflow(Section):
    """The MLflow server; without an address there is no lineage and no model registry."""

    tracking_uri: str | None = None
    """As the operator and the programs reach it."""
    external_url: str | None = None
    """As people reach it: links in statuses begin with it."""


class Qdrant(Section):
    """The vector store."""

    url: str


class ConnectionSecret(Section):
    """A Secret in the operator's namespace whose keys are environment variables of every program, e.g. QDRANT_API_KEY."""

    name: str


class Claim(Section):
    """How a PersistentVolumeClaim is made; without a class it is the cluster's default one."""

    storage_class_name: str | None = None
    size: Quantity = "20Gi"
    access_modes: tuple[AccessMode, ...] = ("ReadWriteOnce",)


class EmptyDir(Section):
    """A folder that goes with its pod."""

    size_limit: Quantity | None = None


class Cache(Section):
    """Where models are kept that programs share: a claim in each namespace that has workloads, or a folder in each pod."""

    empty_dir: EmptyDir | None = None
    persistent_volume_claim: Claim | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.empty_dir is None) == (self.persistent_volume_claim is None):
            raise ValueError("write either emptyDir or persistentVolumeClaim")
        return self


class LeaderElection(Section):
    """The Lease that says which replica acts."""

    lease_name: str = "llmops-operator"
    namespace: str
    """The operator's own."""
    lease_seconds: Annotated[float, Field(ge=1)] = 15.0
    """A replica that has not renewed its lease for so long acts no more, and another one may."""
    renew_seconds: Annotated[float, Field(gt=0)] = 2.0

    @model_validator(mode="after")
    def _time_to_renew(self) -> Self:
        if self.renew_seconds * 3 > self.lease_seconds:
            raise ValueError(
                "renewSeconds must be at most a third of leaseSeconds, so that one failed try loses nothing"
            )
        return self


class OperatorConfig(Section):
    """Everything that the operator is told by whoever installs it."""

    images: Images
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    mlflow: Mlflow = Mlflow()
    qdrant: Qdrant
    connection_secret: ConnectionSecret | None = None
    state: Claim = Claim()
    """The folders of single objects: checkpoints, synchronisation state."""
    pod_template: PodTemplate = PodTemplate()
    """Of every workload; what an object's own `podTemplate` says wins."""
    cache: Cache = Cache(empty_dir=EmptyDir())
    network_policies: bool = True
    """Whether the engines of a service answer its gateway alone."""
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all."""
    leader_election: LeaderElection
    workers: Annotated[int, Field(ge=1, le=256)] = 16
    """So many objects are looked at at the same time."""
    resync_seconds: Annotated[float, Field(ge=10)] = 600.0
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Of /metrics, /healthz and /readyz; 0 picks a free one."""


def load(path: str | os.PathLike[str] | None = None) -> OperatorConfig:
    """The configuration in the file of `path`, or else of the environment. Raises `ConfigError`."""
    path = path or os.environ.get(ENVIRONMENT)
    if not path:
        raise ConfigError(f"no configuration: name its file by --config or by {ENVIRONMENT}")
    try:
        document: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    try:
        return OperatorConfig.model_validate({} if document is None else document)
    except ValidationError as error:
        problems = "\n".join(f"  {_problem(detail)}" for detail in error.errors())
        raise ConfigError(f"{path} cannot be used:\n{problems}") from None


def _problem(detail: Any) -> str:
    field = ".".join(str(part) for part in detail["loc"]) or "the whole file"
    match detail["type"]:
        case "missing":
            said = "is required: add it"
        case "extra_forbidden":
            said = "there is no such field: correct its name or remove it"
        case _:
            said = str(detail["msg"]).removeprefix("Value error, ")
    return f"{field}: {said}"
