"""Checks the objects of manifests, and names file and line of what is wrong. Offline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmops_operator.cli.faults import Fault
from llmops_operator.cli.manifests import Document
from llmops_operator.cli.tables import dig
from llmops_operator.domain.admission import admit


def check(documents: Sequence[Document]) -> list[Fault]:
    """What is wrong with the objects themselves, in the order in which it is written."""
    faults: list[Fault] = []
    seen: dict[tuple[str, str, str], Document] = {}
    for document in documents:
        faults.extend(_check(document))
        if (key := _key(document.value)) is None:
            continue
        if (first := seen.setdefault(key, document)) is not document:
            where = first.fault(("metadata", "name"), "")
            faults.append(
                document.fault(
                    ("metadata", "name"),
                    f"there are two objects {key[0]}/{key[2]} (the first in {where.file}:{where.line}): rename one of them",
                )
            )
    return faults


CLUSTER_ONLY = {
    ("spec", "podTemplate"): "read in a cluster only: on a laptop there are no pods",
    ("spec", "compute", "gpus"): "reserved in a cluster only: on a laptop programs use the GPUs that they find",
}
"""Fields of manifests, which are for both places, that change little or nothing on a laptop."""


def notes(documents: Sequence[Document]) -> list[str]:
    """Which fields of valid objects are for a cluster only."""
    return [
        f"note: {document.fault(way, meaning)}"
        for document in documents
        for way, meaning in CLUSTER_ONLY.items()
        if dig(document.value, *way) is not None
    ]


def _key(value: Any) -> tuple[str, str, str] | None:
    if not isinstance(value, dict) or not isinstance(meta := value.get("metadata"), dict):
        return None
    kind, name = value.get("kind"), meta.get("name")
    return (kind, str(meta.get("namespace")), name) if isinstance(kind, str) and isinstance(name, str) else None


def _check(document: Document) -> list[Fault]:
    found = admit(document.value)
    if not isinstance(found, list):
        return []
    return sorted((document.fault(fault.path, fault.message) for fault in found), key=lambda fault: fault.line or 0)
