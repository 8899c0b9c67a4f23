"""A manifest as an API object, or what is wrong with it. The one place where that is decided: for the store that has no API
server, for the control plane, and for `llmops validate`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from llmops_api.v1alpha1 import KINDS, EmbeddingIndex, RagService, TrainingJob
from llmops_operator.domain.sentences import Fault, faults_of, metadata_faults, outer_faults

ApiObject = TrainingJob | EmbeddingIndex | RagService
MAX_PROBLEMS = 5
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Invalid:
    """Why a manifest is no object of its kind: `field: what to do`, a few of them separated by semicolons."""

    message: str


def admit(value: Any) -> ApiObject | list[Fault]:
    """The object that somebody wishes, or everything that is wrong with it, as an API server would take it. Its status is left out."""
    if faults := outer_faults(value):
        return faults
    model = KINDS[value["kind"]]
    faults = metadata_faults(value.get("metadata"))
    try:
        found = _strictly(model, {name: part for name, part in value.items() if name != "status"})
    except ValidationError as error:
        return [*faults, *faults_of(model, error)]
    except (TypeError, ValueError) as error:
        return [Fault((), f"cannot be written as JSON ({error}): use text, numbers, lists and mappings only")]
    return faults or found


def parse(manifest: Mapping[str, Any]) -> ApiObject | Invalid:
    """The object that a stored manifest with a known `kind` says. Its status may be of another version of the API."""
    model = KINDS[manifest["kind"]]
    try:
        return tolerant(model, manifest, "status")
    except ValidationError as error:
        return Invalid("; ".join(map(str, faults_of(model, error)[:MAX_PROBLEMS])))


def tolerant(model: type[M], value: Mapping[str, Any], *at: str) -> M:
    """The model that a mapping says, but for fields below `at` that the model does not know: another version wrote those.

    Raises `ValidationError` for whatever else is wrong.
    """
    try:
        return _strictly(model, value)
    except ValidationError as error:
        found = [detail["loc"] for detail in error.errors() if detail["type"] == "extra_forbidden"]
        unknown = [loc for loc in found if loc[: len(at)] == at]
        if not unknown:
            raise
    known = copy.deepcopy(dict(value))
    for *parents, last in unknown:
        del reduce(getitem, parents, cast("Any", known))[last]
    return tolerant(model, known, *at)


def _strictly(model: type[M], value: Mapping[str, Any]) -> M:
    """By way of JSON: strict there means what an API server means by it ("3" is no number, a list is fine for a tuple)."""
    return model.model_validate_json(json.dumps(value), strict=True, by_alias=True, by_name=False)
