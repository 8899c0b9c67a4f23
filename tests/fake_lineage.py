"""Lineage in memory: the registry holds what a test puts into it."""

from __future__ import annotations

from collections.abc import Callable

from llmops_api.v1alpha1.rag_service import RegisteredModel
from llmops_operator.controllers.ports import Key
from llmops_operator.domain.lineage import (
    Record,
    Recorded,
    RecordState,
    RegisteredVersion,
    Resolution,
    Unrecorded,
    Unresolved,
)


class FakeLineage:
    """Lineage that writes at once, or not at all while it is away. The registry holds what a test puts into it."""

    def __init__(self) -> None:
        self.away = False
        self.full = False
        self.records: dict[tuple[str, str], Record] = {}
        self.registry: dict[str, RegisteredVersion] = {}
        self._states: dict[str, dict[str, Recorded | Unrecorded]] = {}
        self._watched: dict[Key, RegisteredModel] = {}
        self._tell: Callable[[Key], None] = lambda key: None

    def start(self, listener: Callable[[Key], None]) -> None:
        self._tell = listener

    def stop(self) -> None:
        self._tell = lambda key: None

    def record(self, key: Key, record: Record) -> bool:
        if self.full:
            return False
        if (record.owner.uid, record.key) not in self.records:
            self.records[record.owner.uid, record.key] = record
            self._write(key, record)
        return True

    def _write(self, key: Key, record: Record) -> None:
        state: Recorded | Unrecorded = Recorded(f"run-{record.key}", f"http://mlflow/{record.key}", f"m-{record.key}")
        if self.away:
            state = Unrecorded("connection refused", "2026-01-01T00:00:00.000Z")
        self._states.setdefault(record.owner.uid, {})[record.key] = state
        self._tell(key)

    def comes_back(self) -> None:
        self.away = False
        for record in self.records.values():
            self._write((record.owner.kind, record.owner.namespace, record.owner.name), record)

    def states(self, uid: str) -> RecordState:
        return RecordState(by_key=dict(self._states.get(uid, {})))

    def resolve(self, key: Key, reference: RegisteredModel | None) -> Resolution | None:
        if reference is None:
            self._watched.pop(key, None)
            return None
        self._watched[key] = reference
        found = self.registry.get(f"{reference.name}@{reference.alias}")
        return found or Unresolved("ModelNotFound", f'the model registry has no alias "{reference.alias}"')

    def register(self, name: str, alias: str, version: str, *, adapter: bool = True) -> None:
        self.registry[f"{name}@{alias}"] = RegisteredVersion(name, version, adapter)
        for key in self._watched:
            self._tell(key)

    def run_url(self, experiment_id: str, run_id: str) -> str | None:
        return f"http://mlflow/{experiment_id}/{run_id}"
