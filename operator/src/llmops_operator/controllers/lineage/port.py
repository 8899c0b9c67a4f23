"""What the controllers need from lineage. Every call answers at once with what is known; whatever becomes known later is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llmops_api.reasons import Reason
from llmops_api.v1alpha1.rag_service import RegisteredModel
from llmops_operator.controllers.ports import Key
from llmops_operator.domain.lineage import Record, RecordState, Resolution, Unresolved


class Lineage(Protocol):
    """Records of what was made from what, and the registry of models."""

    def start(self, listener: Callable[[Key], None]) -> None:
        """Begin, from the event loop's thread; `listener` is called there with the key of an object that has news."""

    def stop(self) -> None:
        """End, after a last try at what is waiting, within a few seconds."""

    def record(self, key: Key, record: Record) -> bool:
        """Have a record written, once, however often it is asked for. False when too many are waiting: ask again later."""

    def states(self, uid: str) -> RecordState:
        """How the records of an object stand."""

    def resolve(self, key: Key, reference: RegisteredModel | None) -> Resolution | None:
        """The version that `reference` names now, None while nobody knows. The object of `key` is told when it changes; its
        reference None ends that.
        """

    def run_url(self, experiment_id: str, run_id: str) -> str | None:
        """The address of a run's page."""


class NoLineage:
    """There is no MLflow."""

    def start(self, listener: Callable[[Key], None]) -> None:
        """There will be no news."""

    def stop(self) -> None:
        """Nothing is waiting."""

    def record(self, key: Key, record: Record) -> bool:
        """Nothing is written."""
        return True

    def states(self, uid: str) -> RecordState:
        """That there is no MLflow."""
        return RecordState(enabled=False)

    def resolve(self, key: Key, reference: RegisteredModel | None) -> Resolution | None:
        """That there is no registry."""
        return Unresolved(
            Reason.NO_REGISTRY, "there is no MLflow and so no model registry: name one by MLFLOW_TRACKING_URI"
        )

    def run_url(self, experiment_id: str, run_id: str) -> str | None:
        """Runs have no page."""
        return None
