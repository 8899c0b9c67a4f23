"""The tags by which runs, models and traces in MLflow say what they belong to. Both planes write them, `llmops lineage` reads them."""

from __future__ import annotations

from enum import StrEnum


class Tag(StrEnum):
    """Keys of tags on runs, logged models, model versions and (as metadata) traces."""

    UID = "llmops.dev/uid"
    KIND = "llmops.dev/kind"
    NAMESPACE = "llmops.dev/namespace"
    NAME = "llmops.dev/name"
    GENERATION = "llmops.dev/generation"
    VERSION = "llmops.dev/version"
    """The collection of an index run, or the revision of a service run."""
    URI = "llmops.dev/uri"
    SERVICE = "llmops.dev/service"
    """`namespace/name` of the RagService that answered."""
    REVISION = "llmops.dev/revision"
    COLLECTIONS = "llmops.dev/collections"
    """JSON object: collection by index name."""
    GATE = "llmops.dev/gate"
    """`passed` or `failed`; what there is no gate for has no such tag."""
    GATE_MESSAGE = "llmops.dev/gate-message"
    HELD_BACK = "llmops.dev/held-back"
    """`true` on the run of an index version that its gate kept from being served."""
    MODEL = "llmops.dev/model"
    """The name that the engine was asked for."""


class ModelType(StrEnum):
    """The `model_type` of the logged models that are nodes of the lineage graph."""

    BASE = "base-model"
    EMBEDDING = "embedding-model"
    ADAPTER = "lora-adapter"
    FULL = "full-model"
    INDEX = "vector-index"
    SERVICE = "rag-service"


class DatasetContext(StrEnum):
    """Values of `mlflow.data.context` on dataset inputs."""

    TRAINING = "training"
    DOMAIN_EVALUATION = "domain-evaluation"
    GENERAL_EVALUATION = "general-evaluation"
    DOCUMENTS = "documents"
    EVALUATION = "evaluation"


DATASET_CONTEXT = "mlflow.data.context"
MANIFEST_ARTIFACT = "manifest.yaml"
"""The object as it was applied, an artifact of its run."""


def digest32(sha256_hex: str) -> str:
    """A dataset digest that fits MLflow's 36 characters; the whole hash belongs in the dataset's profile."""
    return sha256_hex[:32]
