"""What the control plane and the data-plane programs say to each other.

A program is started as `python -m llmops_services.NAME config/NAME.json` in a working folder of its own. It reads that file and
the environment variables of `Env`, writes how far it is to `Env.PROGRESS_FILE`, and what came of it to `Env.RESULT_FILE`: a
result model of this module, or `Failure`. Both files are small JSON objects, written aside and renamed. Where a variable is not
set, as in a pod, the same object is a line of standard output instead: `Said.RESULT` or `Said.PROGRESS`, and the JSON.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Annotated

from pydantic import Field

from llmops_api.v1alpha1.embedding_index import (
    EmbeddingIndexSpec,
    IndexVersion,
    RejectedDocument,
    SourceDigest,
    SyncCounts,
)
from llmops_api.v1alpha1.meta import Model, ModelSource
from llmops_api.v1alpha1.rag_service import Engine, Prompt, Retrieval
from llmops_api.v1alpha1.training_job import EvaluationStatus, ModelVersion, TrainingJobSpec


class ExitCode(IntEnum):
    """How a run-to-completion program ends. Any other code is a bug."""

    DONE = 0
    """The result is written."""
    USER_ERROR = 64
    """The user's mistake, bad data or a bad field: never tried again."""
    TRY_AGAIN = 75
    """Something outside did not answer, or a worker was lost: tried again."""
    OUT_OF_MEMORY = 137
    """Memory ran out: tried again; the message says what to lower."""


class Env(StrEnum):
    """The environment variables that a program may read beside those of the libraries it uses."""

    HOST = "LLMOPS_HOST"
    """Where a long-running program listens."""
    PORT = "LLMOPS_PORT"
    """At which port."""
    STATE_DIR = "LLMOPS_STATE_DIR"
    """A folder of the object's own that outlives a try; checkpoints lie here."""
    CACHE_DIR = "LLMOPS_CACHE_DIR"
    """A folder shared by all programs, for downloaded and converted models; may be emptied at any time."""
    RESULT_FILE = "LLMOPS_RESULT_FILE"
    """Where the result, or the reason of the failure, is written as JSON."""
    PROGRESS_FILE = "LLMOPS_PROGRESS_FILE"
    """Where samples of the progress are written as JSON."""
    MLFLOW_TRACKING_URI = "MLFLOW_TRACKING_URI"
    """The MLflow server; without it nothing is recorded or registered."""
    QDRANT_URL = "QDRANT_URL"
    """The vector store."""
    QDRANT_API_KEY = "QDRANT_API_KEY"
    """Its key, where it asks for one."""
    ENGINE_API_KEY = "LLMOPS_ENGINE_API_KEY"
    """The key that the gateway sends to the engines of `model.endpoint`."""


TOKEN_PREFIX = "LLMOPS_TOKEN_"  # noqa: S105 - the beginning of a variable's name


def token_variable(uri: str) -> str:
    """The environment variable with the token for a URI whose source has a `secretRef`."""
    return TOKEN_PREFIX + hashlib.sha256(uri.encode()).hexdigest()[:12].upper()


class Said(StrEnum):
    """What a line of a program's output begins with when it says how far it is or what came of it; a JSON object follows."""

    PROGRESS = "llmops-progress: "
    RESULT = "llmops-result: "

    def of(self, line: str) -> str | None:
        """The JSON of a line that says this. Something unfinished may stand before it: a progress bar has no newline."""
        _, found, rest = line.partition(self)
        return rest.strip() if found else None


class ObjectId(Model):
    """The object that a program works for."""

    kind: str
    namespace: str
    name: str
    uid: str
    generation: int = 1


class Failure(Model):
    """Why a program gave up: a CamelCase reason for machines, a sentence with what to do for people."""

    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$")]
    message: Annotated[str, Field(max_length=3000)]


class TrainingConfig(Model):
    """Config of `llmops_services.training`. `manifest` is the object as the user wrote it, kept as an artifact of the run."""

    object: ObjectId
    spec: TrainingJobSpec
    manifest: str = ""


class TrainingResult(Model):
    """What a finished training left in MLflow."""

    run_id: str
    experiment_id: str
    steps: int
    model: ModelVersion
    evaluation: EvaluationStatus | None = None


class IndexingConfig(Model):
    """Config of `llmops_services.indexing`."""

    object: ObjectId
    spec: EmbeddingIndexSpec


class IndexingResult(Model):
    """What a sync found and did. `serving` is what the alias points at afterwards; `candidate` is a version that its gate
    kept from being served.
    """

    alias: str
    serving: IndexVersion | None = None
    candidate: IndexVersion | None = None
    gate_passed: bool | None = None
    gate_message: str = ""
    counts: SyncCounts = SyncCounts()
    sources: tuple[SourceDigest, ...] = ()
    rejected: Annotated[tuple[RejectedDocument, ...], Field(max_length=10)] = ()
    rejected_count: int = 0
    embedding_model_digest: str = ""


class EngineConfig(Model):
    """Config of `llmops_services.engine`. Which adapters are loaded stands in the live file `config/adapters.json`."""

    object: ObjectId
    base: ModelSource
    served_name: str
    engine: Engine
    adapters: bool = False
    """Whether adapters may be loaded (vLLM's --enable-lora)."""


class AdapterToLoad(Model):
    """A version of a registered model under the name that requests ask for; other weights always have another name."""

    name: str
    uri: Annotated[str, Field(pattern=r"^mlflow://[^/@]+/[0-9]+$")]


class AdaptersConfig(Model):
    """The live file `config/adapters.json` of the engine: the adapters that are to be loaded, now."""

    adapters: tuple[AdapterToLoad, ...] = ()
    expected_rank: int | None = None
    """The rank of an adapter that is still being trained: an engine that starts now starts with room for it."""


class GatewayIndex(Model):
    """An index that is searched: the alias of its collection and what it is about."""

    name: str
    alias: str
    description: str = ""


class GatewayConfig(Model):
    """The live file `config/gateway.json` of `llmops_services.gateway`: a change is taken over within a second, no restart.

    `engines` are base URLs without /v1; `model` is the name that the engines are asked for (the base model's or an adapter's),
    while users ask for `object.name`. `revision` names this configuration in answers and traces.
    """

    object: ObjectId
    revision: str
    engines: tuple[str, ...] = ()
    model: str
    max_model_len: int | None = None
    indexes: tuple[GatewayIndex, ...] = ()
    retrieval: Retrieval = Retrieval()
    prompt: Prompt = Prompt()
    mlflow_experiment: str | None = None
    """The MLflow experiment's name that traces go to; none without MLflow."""
    mlflow_model_id: str | None = None
    """The LoggedModel of this revision, once it is recorded: traces are tied to it."""


class GatewayReport(Model):
    """What the gateway's `/readyz` says: 200 when a chat would be answered, 503 and `message` when not."""

    ready: bool
    message: str = ""
    revision: str = ""
    model: str = ""
    """The name that the engines are really asked for at the moment."""
    indexes: Mapping[str, str] = {}
    """The collection that is really searched, by the name of the index."""
