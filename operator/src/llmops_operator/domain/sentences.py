"""What is wrong with a manifest, in the words of the person who wrote it: field, what was found, what to write instead."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from llmops_api.v1alpha1 import API_VERSION, KINDS, meta

Loc = tuple[str | int, ...]
"""The way to a field: names of mappings and places in lists."""

METADATA = frozenset(
    (
        *("name", "namespace", "labels", "annotations", "finalizers", "uid", "generation", "resourceVersion"),
        *("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"),
        *("generateName", "managedFields", "ownerReferences", "selfLink"),
    )
)
"""The fields of Kubernetes' own metadata; another one is a slip of the pen."""


def _pattern(scalar: Any) -> str:
    return next(str(item.pattern) for item in scalar.__metadata__[0].metadata if getattr(item, "pattern", None))


FORMS = {
    _pattern(meta.Name): "a name is small letters, digits and -, beginning and ending with a letter or digit",
    _pattern(meta.DecimalString): 'write a number in quotes, for example "0.05" or "-1"',
    _pattern(meta.PositiveDecimal): 'write a number of at least 0 in quotes, for example "0.05" or "2e-4"',
    _pattern(meta.Quantity): "write an amount, for example 500m, 4 or 8Gi",
    _pattern(
        meta.DataUri
    ): "write file:///absolute/path, file://./path (counted from the manifest's folder), pkg://module/path, pvc://claim/path, "
    "s3://bucket/key, https://host/path or git+https://host/repository@ref#path",
    _pattern(
        meta.ModelUri
    ): "write hf://organisation/name, file:///absolute/folder, file://./folder (counted from the manifest's "
    "folder), pkg://module/path, pvc://claim/path, s3://bucket/key, https://host/path, git+https://host/repository@ref#path or mlflow://name@alias",
}
"""What to write, by the pattern that was not met."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where (names and places in lists from the top of the manifest), and what to write instead."""

    path: Loc
    message: str

    def __str__(self) -> str:
        return f"{field_path(self.path)}: {self.message}" if self.path else self.message


def field_path(loc: Sequence[str | int]) -> str:
    """`("spec", "sources", 0, "uri")` as people write it: spec.sources[0].uri."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def outer_faults(value: Any) -> list[Fault]:
    """What keeps a value from being looked at as an object of a kind."""
    if not isinstance(value, Mapping):
        return [Fault((), f"this is not an object: begin with apiVersion: {API_VERSION}")]
    if value.get("apiVersion") != API_VERSION:
        found = f'"{value["apiVersion"]}" is unknown here' if "apiVersion" in value else "is missing"
        return [Fault(("apiVersion",), f"{found}: write {API_VERSION}")]
    kind = value.get("kind")
    if kind is None:
        return [Fault(("kind",), f"is missing: write one of {', '.join(KINDS)}")]
    if kind not in KINDS:
        return [Fault(("kind",), f'"{kind}" is unknown: {_instead(str(kind), list(KINDS))}')]
    return []


def metadata_faults(metadata: Any) -> list[Fault]:
    """Fields that Kubernetes' metadata does not have."""
    names = [str(name) for name in metadata if name not in METADATA] if isinstance(metadata, Mapping) else []
    known = ["name", "namespace", "labels", "annotations"]
    return [Fault(("metadata", name), f"unknown field: {_instead(name, known)}") for name in names]


def faults_of(model: type[BaseModel], error: ValidationError) -> list[Fault]:
    """What pydantic has found, in words of the person who wrote the manifest."""
    return [Fault(_loc(details), _sentence(model, details)) for details in error.errors()]


def _loc(details: ErrorDetails) -> Loc:
    return tuple(part for part in details["loc"] if part != "[key]")


def _sentence(model: type[BaseModel], details: ErrorDetails) -> str:
    loc, given, context = _loc(details), details.get("input"), details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return f"unknown field: {_meant(model, loc)}"
        case "missing":
            return f"is missing: {_example(model, loc)}"
        case "string_type" if isinstance(given, bool | int | float):
            return f'expected a string, found {json.dumps(given)}: write it in quotes, "{json.dumps(given)}"'
        case (
            "string_type"
            | "int_type"
            | "bool_type"
            | "tuple_type"
            | "dict_type"
            | "model_type"
            | "model_attributes_type"
        ):
            return f"expected {_WANTED[details['type']]}, found {_found(given)}{_type_hint(details['type'], given)}"
        case "int_from_float" | "int_parsing":
            return f"expected a whole number, found {_found(given)}"
        case "enum" | "literal_error":
            choices = [choice.strip("' ") for choice in str(context["expected"]).replace(" or ", ", ").split(",")]
            return f'"{given}" is unknown: {_instead(str(given), choices)}'
        case "string_pattern_mismatch":
            form = FORMS.get(context["pattern"], f"it has to match {context['pattern']}")
            if "file://" in form and "://" not in str(given):
                form = (
                    f"write {'file://' if str(given).startswith('/') else 'file://./'}{str(given).removeprefix('./')}"
                )
            return f'"{given}" is not of the right form: {form}'
        case "greater_than_equal":
            return f"{given} is too small: write {context['ge']} or more"
        case "less_than_equal":
            return f"{given} is too large: write {context['le']} or less"
        case "string_too_short" | "too_short":
            return "is empty: " + _example(model, loc)
        case "string_too_long" | "too_long":
            return f"is too long: at most {context['max_length']} are allowed"
        case "value_error":
            return str(context["error"])
    return details["msg"]


_WANTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _found(value: Any) -> str:
    if isinstance(value, str):
        return f'the string "{value}"'
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else "nothing" if value is None else json.dumps(value)


def _type_hint(type_: str, value: Any) -> str:
    if type_ in ("int_type", "bool_type") and isinstance(value, str):
        return ": write it without quotes" if value.isdigit() or value in ("true", "false") else ""
    return ': begin each entry with "- "' if type_ == "tuple_type" else ""


def _instead(word: str, choices: list[str]) -> str:
    by_case = {choice.lower(): choice for choice in choices}
    close = get_close_matches(word.lower(), by_case, n=1, cutoff=0.6)
    if close:
        return f"did you mean {by_case[close[0]]}?"
    return f"write {choices[0]}" if len(choices) == 1 else f"write one of {', '.join(choices)}"


def _meant(model: type[BaseModel], loc: Loc) -> str:
    """For an unknown field: the one that looks like it here, else the place where one of that name belongs."""
    around, word = loc[:-1], str(loc[-1])
    siblings = _fields(_at(model, around))
    if to_camel(word) in siblings or get_close_matches(word.lower(), [name.lower() for name in siblings], cutoff=0.6):
        return _instead(to_camel(word), list(siblings))
    elsewhere = [field_path(way) for way in _ways(model, ()) if way[-1] == word and way[0] == "spec"]
    if elsewhere:
        return f"it belongs to {' or '.join(elsewhere)}"
    return _instead(word, list(siblings)) if siblings else "nothing may stand here: remove it"


def _example(model: type[BaseModel], loc: Loc) -> str:
    annotation = _at(model, loc)
    if fields := _fields(annotation):
        return f"write a mapping with {', '.join(fields)}"
    pattern = next((getattr(i, "pattern", None) for i in _constraints(model, loc) if getattr(i, "pattern", None)), None)
    if pattern in FORMS:
        return FORMS[pattern]
    if get_origin(annotation) is tuple:
        inner = ", ".join(name for name in _fields(_plain(_element(annotation))))
        return f"write a list of entries with {inner}" if inner else "write a list with at least one entry"
    return f"write {loc[-1]}: …"


def _fields(annotation: Any) -> dict[str, Any]:
    """The fields of a model by the names that they have in YAML."""
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return {}
    return {
        field.alias or name: field.annotation
        for name, field in annotation.model_fields.items()
        if not (issubclass(annotation, tuple(KINDS.values())) and name == "status")
    }


def _at(annotation: Any, loc: Loc) -> Any:
    for part in loc:
        annotation = _element(annotation) if isinstance(part, int) else _fields(_plain(annotation)).get(part)
    return _plain(annotation)


def _constraints(model: type[BaseModel], loc: Loc) -> list[Any]:
    owner = _at(model, loc[:-1])
    for name, field in owner.model_fields.items() if _fields(owner) else ():
        if (field.alias or name) == loc[-1]:
            return [part for item in field.metadata for part in (item, *getattr(item, "metadata", ()))]
    return []


def _plain(annotation: Any) -> Any:
    """Without Annotated and without None."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if get_origin(annotation) in (Union, UnionType):
        return _plain(next(part for part in get_args(annotation) if part is not type(None)))
    return annotation


def _element(annotation: Any) -> Any:
    arguments = get_args(_plain(annotation))
    return arguments[0] if arguments else None


def _ways(model: Any, loc: Loc) -> Iterator[Loc]:
    for name, annotation in _fields(_plain(model)).items():
        yield (*loc, name)
        inner = _plain(annotation)
        if get_origin(inner) is tuple:
            inner = _plain(_element(inner))
        yield from _ways(inner, (*loc, name))
