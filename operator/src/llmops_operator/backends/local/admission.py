"""What an API server does before it stores an object, for the store that has none: check it, and say what to write instead."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llmops_api.v1alpha1 import API_VERSION, KINDS, EmbeddingIndex, RagService, TrainingJob
from llmops_api.v1alpha1.training_job import immutable_changes

Resource = TrainingJob | EmbeddingIndex | RagService


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where (keys and list indices from the top of the manifest), and a sentence."""

    path: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


class Refused(Exception):
    """The manifest cannot be stored. `faults` says where and why; as text it is one line a fault."""

    def __init__(self, subject: str, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{subject}: {fault}" for fault in self.faults))


def dotted(path: Iterable[str | int]) -> str:
    """A path as people write it: `spec.sources[0].uri`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def admit(manifest: Mapping[str, Any]) -> Resource:
    """The object that a manifest describes. Raises `Refused` with everything that is wrong with it."""
    subject = _subject(manifest)
    if manifest.get("apiVersion") != API_VERSION:
        raise Refused(
            subject,
            [Fault(("apiVersion",), f"is {manifest.get('apiVersion')!r} but must be {API_VERSION!r}: write that")],
        )
    kind = manifest.get("kind")
    if kind not in KINDS:
        meant = _meant(str(kind), KINDS)
        raise Refused(
            subject, [Fault(("kind",), f"{kind!r} is not a kind of ours{meant}; there are {', '.join(KINDS)}")]
        )
    model = KINDS[kind]
    wish = {key: value for key, value in manifest.items() if key != "status"}
    try:
        return model.model_validate(wish)
    except ValidationError as error:
        raise Refused(subject, [_fault(model, detail) for detail in error.errors(include_url=False)]) from error


def refuse_changes(old: Resource, new: Resource) -> None:
    """Raise `Refused` when `new` changes what may not be changed in `old`."""
    if not (isinstance(old, TrainingJob) and isinstance(new, TrainingJob)):
        return
    if message := immutable_changes(old.spec, new.spec):
        raise Refused(f"TrainingJob {new.metadata.namespace}/{new.metadata.name}", [Fault(("spec",), message)])


def _subject(manifest: Mapping[str, Any]) -> str:
    metadata = manifest.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return f"{manifest.get('kind') or 'object'} {name or '(without a name)'}"


def _fault(model: type[BaseModel], detail: ErrorDetails) -> Fault:
    path = tuple(detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            known = _fields(model, path[:-1])
            return Fault(path, f"is not a field{_meant(str(path[-1]), known)}; there are {', '.join(known)}")
        case "missing":
            return Fault(path, "is missing: write it")
        case "value_error":
            return Fault(path, str(detail["ctx"]["error"]))
        case _:
            given = detail["input"]
            shown = "" if isinstance(given, Mapping | list | tuple) else f" (it is {given!r})"
            return Fault(path, f"{detail['msg'][0].lower()}{detail['msg'][1:]}{shown}")


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _fields(model: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """The names that may be written at `path` below a model."""
    here: type[BaseModel] | None = model
    for part in path:
        if here is None or isinstance(part, int):
            continue
        field = next((f for name, f in here.model_fields.items() if (f.alias or name) == part), None)
        here = _model_in(field.annotation) if field else None
    return [field.alias or name for name, field in here.model_fields.items()] if here else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in typing.get_args(annotation) if (found := _model_in(inner))), None)
