"""A manifest as an API object, or a sentence a field that says what is wrong with it and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llmops_api.v1alpha1 import KINDS, EmbeddingIndex, RagService, TrainingJob

ApiObject = TrainingJob | EmbeddingIndex | RagService
MAX_PROBLEMS = 5


@dataclass(frozen=True)
class Invalid:
    """Why a manifest is no object of its kind: `field: what to do`, a few of them separated by semicolons."""

    message: str


def parse(manifest: Mapping[str, Any]) -> ApiObject | Invalid:
    """The object that a manifest with a known `kind` says."""
    try:
        return KINDS[manifest["kind"]].model_validate(manifest)
    except ValidationError as error:
        return Invalid("; ".join(_problem(detail) for detail in error.errors()[:MAX_PROBLEMS]))


def _problem(detail: ErrorDetails) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
    match detail["type"]:
        case "extra_forbidden":
            said = "there is no such field: correct its name or remove it"
        case "missing":
            said = "is required: add it"
        case "enum" | "literal_error":
            said = f"{detail['input']!r} is not known: write {detail.get('ctx', {}).get('expected', 'another value')}"
        case _:
            said = detail["msg"].removeprefix("Value error, ")
    return f"{path}: {said}"
