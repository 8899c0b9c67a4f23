"""What the controllers of the kinds gather from, in memory, and how an object reads as its user wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import yaml

from llmops_operator.controllers.lineage.port import Lineage
from llmops_operator.controllers.ports import Backend, Manifest, Store
from llmops_operator.controllers.references import References
from llmops_operator.domain.timing import Timing


@dataclass(frozen=True)
class Sources:
    """Where a look at an object takes everything from. Nothing here waits."""

    store: Store
    backend: Backend
    lineage: Lineage
    references: References
    timing: Timing


@dataclass(frozen=True)
class Look:
    """One look at one object, at one moment."""

    sources: Sources
    manifest: Manifest
    now: datetime


def as_written(manifest: Manifest) -> str:
    """The object as YAML, without what the platform added to it and what says nothing about the work (labels, annotations)."""
    metadata = {key: manifest["metadata"][key] for key in ("name", "namespace") if key in manifest["metadata"]}
    spec = {key: value for key, value in manifest["spec"].items() if key != "suspend"}
    written = {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": metadata, "spec": spec}
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True, width=120)
