"""A manifest as an API object, or a sentence a field that says what is wrong with it and what to write instead."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llmops_api.v1alpha1 import KINDS, EmbeddingIndex, RagService, TrainingJob

ApiObject = TrainingJob | EmbeddingIndex | RagService
MAX_PROBLEMS = 5
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Invalid:
    """Why a manifest is no object of its kind: `field: what to do`, a few of them separated by semicolons."""

    message: str


def parse(manifest: Mapping[str, Any]) -> ApiObject | Invalid:
    """The object that a manifest with a known `kind` says. Its status may be of another version of the API."""
    try:
        return tolerant(KINDS[manifest["kind"]], manifest, "status")
    except ValidationError as error:
        return Invalid("; ".join(_problem(detail) for detail in error.errors()[:MAX_PROBLEMS]))


def tolerant(model: type[M], value: Mapping[str, Any], *at: str) -> M:
    """The model that a mapping says, but for fields below `at` that the model does not know: another version wrote those.

    Raises `ValidationError` for whatever else is wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = [detail["loc"] for detail in error.errors() if detail["type"] == "extra_forbidden"]
        unknown = [loc for loc in found if loc[: len(at)] == at]
        if not unknown:
            raise
    known = copy.deepcopy(dict(value))
    for *parents, last in unknown:
        del reduce(getitem, parents, cast("Any", known))[last]
    return tolerant(model, known, *at)


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
