"""What the controllers of the kinds gather from, in memory, and how an object reads as its user wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypedDict

import yaml

from llmops_operator.controllers.lineage.port import Lineage
from llmops_operator.controllers.ports import Backend, Manifest, Store
from llmops_operator.controllers.references import References
from llmops_operator.domain.admission import ApiObject
from llmops_operator.domain.decision import owner_of
from llmops_operator.domain.lineage import RecordState
from llmops_operator.domain.timing import Timing
from llmops_operator.domain.workload import WorkloadStatus

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The one in C takes a tenth of the time, and is missing where PyYAML was built without libyaml."""


@dataclass(frozen=True)
class Sources:
    """Where a look at an object takes everything from. Nothing here waits."""

    store: Store
    backend: Backend
    lineage: Lineage
    references: References
    timing: Timing


class Gathered(TypedDict):
    """Arguments of the input of each kind's `decide`."""

    now: datetime
    manifest: Callable[[], str]
    workloads: Mapping[str, WorkloadStatus]
    records: RecordState
    timing: Timing


@dataclass(frozen=True)
class Look:
    """One look at one object, at one moment."""

    sources: Sources
    manifest: Manifest
    now: datetime

    def about(self, found: ApiObject) -> Gathered:
        """What is known of the object itself, without what it refers to."""
        return {
            "now": self.now,
            "manifest": partial(as_written, self.manifest),
            "workloads": self.sources.backend.observe(owner_of(found.kind, found.metadata)),
            "records": self.sources.lineage.states(found.metadata.uid),
            "timing": self.sources.timing,
        }


def as_written(manifest: Manifest) -> str:
    """The object as YAML, without what the platform added to it and what says nothing about the work (labels, annotations)."""
    metadata = {key: manifest["metadata"][key] for key in ("name", "namespace") if key in manifest["metadata"]}
    spec = {key: value for key, value in manifest["spec"].items() if key != "suspend"}
    written = {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": metadata, "spec": spec}
    return yaml.dump(written, Dumper=DUMPER, sort_keys=False, allow_unicode=True, width=120)
