"""The custom resources of llmops.dev/v1alpha1: `TrainingJob`, `EmbeddingIndex` and `RagService`. pydantic only, no I/O."""

from llmops_api.v1alpha1.embedding_index import EmbeddingIndex, EmbeddingIndexSpec, EmbeddingIndexStatus
from llmops_api.v1alpha1.meta import API_VERSION, GROUP, VERSION, Condition, ConditionStatus, ObjectMeta, Progress
from llmops_api.v1alpha1.rag_service import RagService, RagServiceSpec, RagServiceStatus
from llmops_api.v1alpha1.training_job import TrainingJob, TrainingJobSpec, TrainingJobStatus

KINDS: dict[str, type[TrainingJob] | type[EmbeddingIndex] | type[RagService]] = {
    "TrainingJob": TrainingJob,
    "EmbeddingIndex": EmbeddingIndex,
    "RagService": RagService,
}
"""The kinds by name, in the order in which data flows."""

__all__ = [
    "API_VERSION",
    "GROUP",
    "KINDS",
    "VERSION",
    "Condition",
    "ConditionStatus",
    "EmbeddingIndex",
    "EmbeddingIndexSpec",
    "EmbeddingIndexStatus",
    "ObjectMeta",
    "Progress",
    "RagService",
    "RagServiceSpec",
    "RagServiceStatus",
    "TrainingJob",
    "TrainingJobSpec",
    "TrainingJobStatus",
]
