"""What the tests of the command share: three objects, their statuses and the tables that are printed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from llmops_operator.backends.local.store import SqliteStore

LLMOPS = [sys.executable, "-c", "import sys; from llmops_operator.cli import main; sys.exit(main())"]
"""The command as a process."""

MANIFESTS = """\
apiVersion: llmops.dev/v1alpha1
kind: TrainingJob
metadata: {name: assistant, labels: {team: hr, stage: test}}
spec:
  baseModel: {uri: hf://organisation/model}
  data: {train: {uri: pkg://yaml/__init__.py}}
  hyperparameters: {maxSteps: 40}
  output: {model: assistant}
---
apiVersion: llmops.dev/v1alpha1
kind: EmbeddingIndex
metadata: {name: handbook, labels: {team: hr}}
spec:
  sources: [{name: hr, uri: file://./documents}]
  embedding: {model: {uri: hf://organisation/embedder}}
---
apiVersion: llmops.dev/v1alpha1
kind: RagService
metadata: {name: chat}
spec:
  model: {base: {uri: hf://organisation/model}, adapter: {trainingJobRef: {name: assistant}}}
  indexes: [{indexRef: {name: handbook}}]
"""
Llmops = Callable[..., tuple[int, str, str]]
CONDITION = {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}


def set_status(store: SqliteStore, kind: str, name: str, status: dict[str, Any]) -> None:
    key = (kind, "default", name)
    item = store.get(key)
    assert item is not None
    asyncio.run(store.write_status(key, status, resource_version=item["metadata"]["resourceVersion"]))


def rows(out: str) -> list[dict[str, str]]:
    """A table as mappings from heading to cell."""
    heads, *lines = [line.split("   ") for line in out.strip().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in (heads, *lines)]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]
