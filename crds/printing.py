"""What the kinds are called on the command line, and what kubectl prints and finds of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; `wide` ones only with -o wide."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False

    def dump(self) -> dict[str, Any]:
        """As the CRD says it."""
        return {"name": self.name, "type": self.type, "jsonPath": self.path, **({"priority": 1} if self.wide else {})}


def _condition(type_: str) -> str:
    return f'.status.conditions[?(@.type=="{type_}")].status'


AGE = Column("Age", ".metadata.creationTimestamp", "date")


@dataclass(frozen=True)
class Names:
    """What a kind is called on the command line, and what is printed of it."""

    plural: str
    short: str
    columns: tuple[Column, ...]
    selectable: tuple[str, ...]
    """Fields that `kubectl get --field-selector` knows."""
    scale: Mapping[str, str] | None = None
    """The subresource that `kubectl scale` and autoscalers write to."""


NAMES: Mapping[str, Names] = {
    "TrainingJob": Names(
        "trainingjobs",
        "tj",
        (
            Column("Phase", ".status.phase"),
            Column("Method", ".spec.method"),
            Column("Progress", ".status.progress.percent", "integer"),
            Column("Loss", ".status.progress.loss"),
            Column("Model", ".status.model.name"),
            Column("Version", ".status.model.version"),
            Column("Gate", _condition("GatePassed")),
            AGE,
            Column("Base", ".spec.baseModel.uri", wide=True),
            Column("Reason", '.status.conditions[?(@.type=="Succeeded")].reason', wide=True),
            Column("Run", ".status.runUrl", wide=True),
        ),
        selectable=(".spec.method", ".spec.output.model", ".status.phase"),
    ),
    "EmbeddingIndex": Names(
        "embeddingindexes",
        "ei",
        (
            Column("Ready", _condition("Ready")),
            Column("Phase", ".status.phase"),
            Column("Progress", ".status.progress.percent", "integer"),
            Column("Documents", ".status.documents", "integer"),
            Column("Chunks", ".status.chunks", "integer"),
            Column("Version", ".status.version.collection"),
            Column("Recall@5", ".status.version.evaluation.recallAt5"),
            Column("Synced", ".status.lastSyncTime", "date"),
            AGE,
            Column("Model", ".spec.embedding.model.uri", wide=True),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', wide=True),
        ),
        selectable=(".spec.deletionPolicy", ".status.phase"),
    ),
    "RagService": Names(
        "ragservices",
        "rag",
        (
            Column("Ready", _condition("Ready")),
            Column("Phase", ".status.phase"),
            Column("Model", ".status.model.name"),
            Column("Version", ".status.model.version"),
            Column("Indexes", ".status.indexes[*].collection"),
            Column("Replicas", ".spec.replicas", "integer"),
            Column("Available", ".status.readyReplicas", "integer"),
            Column("URL", ".status.url"),
            AGE,
            Column("Revision", ".status.revision", wide=True),
            Column("Base", ".spec.model.base.uri", wide=True),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', wide=True),
        ),
        selectable=(".spec.model.adapter.trainingJobRef.name", ".status.phase"),
        scale={
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    ),
}
