"""What the decisions ask of lineage and are told by it. Who writes it down where is the controllers' business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from llmops_api.reasons import Reason
from llmops_api.v1alpha1.embedding_index import IndexVersion, SourceDigest
from llmops_operator.domain.conditions import Aspect, fails, holds, unknown
from llmops_operator.domain.workload import Owner


@dataclass(frozen=True)
class IndexRecord:
    """A version of an index, as a run: documents, questions and embedding model in, vector index out.

    One that its gate has held back is a run of its own, without anything that could be used.
    """

    owner: Owner
    generation: int
    manifest: str
    version: IndexVersion
    sources: tuple[SourceDigest, ...]
    embedding_uri: str
    embedding_digest: str
    gate_passed: bool | None = None
    gate_message: str = ""
    held_back: bool = False

    @property
    def key(self) -> str:
        """What tells this record from the other ones of the object."""
        return version_key(self.version, held_back=self.held_back)


def version_key(version: IndexVersion, *, held_back: bool) -> str:
    """The key of the record of a version: other documents, other questions or another verdict are another record."""
    measured = f"/{version.evaluation.digest[:10]}" if version.evaluation and version.evaluation.digest else ""
    return f"{version.collection}@{version.digest}{measured}{'/held-back' if held_back else ''}"


@dataclass(frozen=True)
class ServiceRecord:
    """A revision of a service that answers, as a run: model and indexes in, service out."""

    owner: Owner
    generation: int
    manifest: str
    revision: str
    model_name: str
    model_uri: str | None
    """Where the base model's weights are; None when it runs elsewhere."""
    registered_uri: str | None
    """`mlflow://name/version` of the adapter or of the full weights."""
    collections: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells this record from the other ones of the object."""
        return self.revision


@dataclass(frozen=True)
class RunRecord:
    """The run that a training has opened itself: it is not written, but looked for."""

    owner: Owner

    @property
    def key(self) -> str:
        """What tells this record from the other ones of the object."""
        return "run"


class RunEnd(StrEnum):
    """How a run ends whose program cannot say so any more; the words are MLflow's."""

    FAILED = "FAILED"
    KILLED = "KILLED"


@dataclass(frozen=True)
class EndRecord:
    """The run of a training that died for good, so that it does not stay RUNNING."""

    owner: Owner
    end: RunEnd

    @property
    def key(self) -> str:
        """What tells this record from the other ones of the object."""
        return f"end:{self.end}"


Record = IndexRecord | ServiceRecord | RunRecord | EndRecord


@dataclass(frozen=True)
class Recorded:
    """It stands in MLflow. `run_id` is None where there was nothing to write, or none to be found."""

    run_id: str | None
    run_url: str | None = None
    model_id: str | None = None


@dataclass(frozen=True)
class Unrecorded:
    """MLflow could not be written to so far."""

    error: str
    since: str


@dataclass(frozen=True)
class RecordState:
    """How the records of one object stand, by their keys; one that is missing has not been asked for or is waiting."""

    enabled: bool = True
    by_key: Mapping[str, Recorded | Unrecorded] = field(default_factory=dict)

    def of(self, key: str) -> Recorded | Unrecorded | None:
        """How a record stands."""
        return self.by_key.get(key)


RECORDING = unknown(Reason.RECORDING, "waits to be written to MLflow")


def lineage_aspect(records: RecordState, key: str) -> Aspect:
    """What the condition LineageRecorded says about a record that is not yet known to be written."""
    if not records.enabled:
        return unknown(Reason.DISABLED, "there is no MLflow: start one and name it by MLFLOW_TRACKING_URI")
    match records.of(key):
        case Recorded(run_id=run_id):
            return holds(Reason.RECORDED, f"run {run_id} in MLflow" if run_id else "there is no run to end")
        case Unrecorded(error=error, since=since):
            message = (
                f"MLflow has not taken it since {since}: {error}; see whether it runs, it is tried again until it does"
            )
            return fails(Reason.MLFLOW_UNAVAILABLE, message)
        case None:
            return RECORDING


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model; `adapter` tells adapters from full weights."""

    name: str
    version: str
    adapter: bool


@dataclass(frozen=True)
class Unresolved:
    """Why a registered model is not known (yet)."""

    reason: str
    message: str


Resolution = RegisteredVersion | Unresolved
