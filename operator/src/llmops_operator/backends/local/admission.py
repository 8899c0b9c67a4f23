"""What an API server does before it stores an object, for the store that has none: refuse it, or an edit of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmops_api.v1alpha1 import TrainingJob
from llmops_api.v1alpha1.training_job import immutable_changes
from llmops_operator.domain import admission
from llmops_operator.domain.admission import ApiObject
from llmops_operator.domain.sentences import Fault


class Refused(Exception):
    """The manifest cannot be stored. `faults` says where and why; as text it is one line a fault."""

    def __init__(self, subject: str, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{subject}: {fault}" for fault in self.faults))


def admit(manifest: Mapping[str, Any]) -> ApiObject:
    """The object that a manifest describes. Raises `Refused` with everything that is wrong with it."""
    found = admission.admit(manifest)
    if isinstance(found, list):
        raise Refused(_subject(manifest), found)
    return found


def refuse_changes(old: ApiObject, new: ApiObject) -> None:
    """Raise `Refused` when `new` changes what may not be changed in `old`."""
    if not (isinstance(old, TrainingJob) and isinstance(new, TrainingJob)):
        return
    if message := immutable_changes(old.spec, new.spec):
        raise Refused(f"TrainingJob {new.metadata.namespace}/{new.metadata.name}", [Fault(("spec",), message)])


def _subject(manifest: Mapping[str, Any]) -> str:
    metadata = manifest.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return f"{manifest.get('kind') or 'object'} {name or '(without a name)'}"
