"""The CRDs and the pydantic models they are made from say the same: one table of specs goes through both.

There is no API server here, so its part is played as far as it goes: defaulting, the schema by `jsonschema` (unknown fields
refused, as with strict validation), and the CEL rules by a translation of the little CEL that they use into Python.
"""

from __future__ import annotations

import ast
import copy
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from api_cases import BASE, EDITS, INVALID, INVALID_NAMES, JOB, VALID, VALID_NAMES, Spec, edited
from pydantic import BaseModel, ValidationError

import generate
from llmops_api.v1alpha1 import KINDS, TrainingJobSpec
from llmops_api.v1alpha1.meta import Model, Rule
from llmops_api.v1alpha1.pod_template import PodTemplate
from llmops_api.v1alpha1.training_job import immutable_changes

CRDS = Path(__file__).parents[2] / "crds"

# What the API server would do


@functools.cache
def schema_of(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = generate.crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items() if key != "default"}
    open_ = schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and "additionalProperties" not in schema and not open_:
        result["additionalProperties"] = False
    return result


def defaulted(value: Any, schema: dict[str, Any]) -> Any:
    """What the API server stores: defaults filled in where a field is absent."""
    if isinstance(value, dict) and "properties" in schema:
        value = dict(value)
        for name, one in schema["properties"].items():
            if name not in value and "default" in one:
                value[name] = copy.deepcopy(one["default"])
            if name in value:
                value[name] = defaulted(value[name], one)
    elif isinstance(value, list) and "items" in schema:
        value = [defaulted(one, schema["items"]) for one in value]
    return value


class Cel:
    """A value as CEL sees it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getattr__(self, name: str) -> Any:
        return cel_value(self.value[name])

    def all(self, holds: Any) -> bool:
        return all(holds(cel_value(key)) for key in self.value)


class CelList(list[Any]):
    def all(self, holds: Any) -> bool:
        return all(holds(one) for one in self)

    def exists_one(self, holds: Any) -> bool:
        return sum(bool(holds(one)) for one in self) == 1


class CelString(str):
    def matches(self, pattern: str) -> bool:
        return re.search(pattern, self) is not None

    def contains(self, part: str) -> bool:
        return part in self

    def startsWith(self, part: str) -> bool:
        return self.startswith(part)


def cel_value(value: Any) -> Any:
    match value:
        case dict():
            return Cel(value)
        case list():
            return CelList(cel_value(one) for one in value)
        case str():
            return CelString(value)
    return value


def evaluate(cel: str, self_: Any) -> bool:
    text = re.sub(r"has\(([\w.]+)\.(\w+)\)", r"has(\1, '\2')", cel)
    text = re.sub(r"\.(all|exists_one)\((\w+), ", r".\1(lambda \2: ", text)
    text = text.replace("&&", " and ").replace("||", " or ").replace("double(", "float(")
    text = re.sub(r"!(?!=)", " not ", text).strip()
    names = {"has": lambda at, name: name in at.value, "float": float, "size": len, "self": cel_value(self_)}
    return bool(eval(text, {"__builtins__": {}, **names}))


def broken_rules(value: Any, schema: dict[str, Any]) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and rule != generate.IN_A_CLUSTER and not evaluate(rule["rule"], value):
            yield rule["message"]
    if isinstance(value, dict):
        for name, one in schema.get("properties", {}).items():
            if name in value:
                yield from broken_rules(value[name], one)
    elif isinstance(value, list):
        for one in value:
            yield from broken_rules(one, schema["items"])


def refused_by_schema(kind: str, spec: Spec) -> str | None:
    schema = schema_of(kind)["properties"]["spec"]
    errors = [f"{'.'.join(map(str, error.path))}: {error.message}"
              for error in jsonschema.Draft202012Validator(strict(schema)).iter_errors(spec)]  # fmt: skip
    return "; ".join(errors or broken_rules(defaulted(spec, schema), schema)) or None


def refused_by_pydantic(kind: str, spec: Spec, name: str = "x") -> str | None:
    manifest = {"apiVersion": "llmops.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    try:
        KINDS[kind].model_validate(manifest)
    except ValidationError as error:
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("names", "good"), [(VALID_NAMES, True), (INVALID_NAMES, False)], ids=["valid", "invalid"])
def test_a_name_is_taken_or_refused_by_both(kind: str, names: list[str], good: bool) -> None:
    (rule,) = schema_of(kind)["x-kubernetes-validations"]
    of_new_objects = rule["rule"].removeprefix("oldSelf.hasValue() || ")
    for name in names:
        assert (refused_by_pydantic(kind, BASE[kind], name) is None) == good, name
        assert evaluate(of_new_objects, {"metadata": {"name": name}}) == good, name


def models(of: type[Model] = Model) -> Iterator[type[Model]]:
    for model in of.__subclasses__():
        yield model
        yield from models(model)


RULES: dict[str, Rule] = {rule.message: rule for model in models() for rule in model.rules}


@pytest.mark.parametrize(("kind", "what", "changes"), VALID, ids=[case[1] for case in VALID])
def test_a_valid_spec_passes_both(kind: str, what: str, changes: Spec) -> None:
    spec = edited(BASE[kind], changes)
    assert refused_by_pydantic(kind, spec) is None
    assert refused_by_schema(kind, spec) is None


@pytest.mark.parametrize(("kind", "what", "changes", "says"), INVALID, ids=[case[1] for case in INVALID])
def test_an_invalid_spec_is_refused_by_both_for_the_same_reason(kind: str, what: str, changes: Spec, says: str) -> None:
    spec = edited(BASE[kind], changes)
    for refusal in (refused_by_pydantic(kind, spec), refused_by_schema(kind, spec)):
        assert refusal is not None
        assert says in refusal


@pytest.mark.parametrize("message", RULES)
def test_each_rule_is_broken_by_one_case_of_the_table_and_only_held_by_the_valid_ones(message: str) -> None:
    breaking = [edited(BASE[kind], changes) for kind, _, changes, _ in INVALID
                if message in (refused_by_pydantic(kind, edited(BASE[kind], changes)) or "")]  # fmt: skip
    assert breaking
    in_schemas = [schema for kind in KINDS for schema in _all_rules(schema_of(kind)["properties"]["spec"])]
    assert RULES[message].cel in in_schemas


def _all_rules(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from (rule["rule"] for rule in schema.get("x-kubernetes-validations", ()))
        for one in schema.values():
            yield from _all_rules(one)


@pytest.mark.parametrize("kind", KINDS)
def test_the_api_server_fills_in_what_pydantic_fills_in(kind: str) -> None:
    manifest = {"apiVersion": "llmops.dev/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": BASE[kind]}
    filled = KINDS[kind].model_validate(manifest).spec.dump()
    assert defaulted(BASE[kind], schema_of(kind)["properties"]["spec"]) == filled


@pytest.mark.parametrize("kind", KINDS)
def test_a_status_that_the_controllers_write_fits_the_schema(kind: str) -> None:
    manifest = {"apiVersion": "llmops.dev/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": BASE[kind]}
    status = KINDS[kind].model_validate(manifest).status.dump()
    jsonschema.Draft202012Validator(strict(schema_of(kind)["properties"]["status"])).validate(status)


def fields_in(annotation: Any) -> Iterator[tuple[type[BaseModel], str, str]]:
    """Model, name and name in YAML of each field; what is in a pod template is passed on as it is."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield annotation, name, field.alias or name
            if annotation is not PodTemplate:
                yield from fields_in(field.annotation)
    for part in get_args(annotation):
        yield from fields_in(part)


def test_each_field_of_a_spec_is_read_by_a_program() -> None:
    """By its name: one that is called like something else is not missed. Such a one is `method`, which nothing needs to read: SFT is
    all that it can be, until there is another way to learn.
    """
    roots = (CRDS.parent / folder / "src" for folder in ("operator", "services"))
    nodes = [node for root in roots for path in root.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    words = {node.value for node in nodes if isinstance(node, ast.Constant)}
    fields = {field for kind in KINDS.values() for field in fields_in(kind.model_fields["spec"].annotation)}
    assert len(fields) > 100
    unread = [
        f"{model.__name__}.{name}"
        for model, name, alias in fields
        if not (alias in words if model is PodTemplate else name in attributes)
    ]
    assert unread == []


def test_the_files_are_what_the_generator_writes() -> None:
    result = subprocess.run(
        [sys.executable, str(CRDS / "generate.py"), "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_stale_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "FOLDERS", (tmp_path / "crds", tmp_path / "chart"))
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 0
    (tmp_path / "chart/ragservices.llmops.dev.yaml").write_text("kind: Nothing\n")
    assert generate.main() == 1
    assert "ragservices.llmops.dev.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_structural(kind: str) -> None:
    crd = yaml.safe_load(next(text for path, text in generate.files().items() if path.name.startswith(kind.lower())))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    def check(node: dict[str, Any], path: str) -> None:
        assert "type" in node, path
        assert not {"$ref", "anyOf", "oneOf", "allOf", "not", "title", "nullable", "const"} & node.keys(), path
        assert "null" not in node.get("enum", []), path
        assert node.get("default", 0) is not None, path
        if node["type"] == "array" and path.startswith(".spec"):
            assert "maxItems" in node, f"{path} needs a maximum, or CEL's cost has no bound"
        if node["type"] == "string" and path.startswith(".spec"):
            assert "maxLength" in node or "enum" in node, path
        for name, one in node.get("properties", {}).items():
            check(one, f"{path}.{name}")
        for name in ("items", "additionalProperties"):
            if name in node:
                check(node[name], f"{path}.{name}")

    check(schema, "")
    conditions = schema["properties"]["status"]["properties"]["conditions"]
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])


def test_what_is_not_structural_is_refused_by_the_generator() -> None:
    with pytest.raises(ValueError, match="no 'oneOf'"):
        generate.structural({"oneOf": []}, {})
    with pytest.raises(ValueError, match="Node holds itself"):
        generate.structural({"$ref": "#/$defs/Node"}, {"Node": {"items": {"$ref": "#/$defs/Node"}}})


@pytest.mark.parametrize(("kind", "short"), [("TrainingJob", "tj"), ("EmbeddingIndex", "ei"), ("RagService", "rag")])
def test_kubectl_knows_the_kind_by_its_short_name_and_its_category(kind: str, short: str) -> None:
    crd = generate.crd(kind)["spec"]
    assert (crd["names"]["shortNames"], crd["names"]["categories"]) == ([short], ["llmops"])
    assert crd["versions"][0]["subresources"].keys() == ({"status", "scale"} if kind == "RagService" else {"status"})


@pytest.mark.parametrize(("what", "changes", "fields"), EDITS, ids=[edit[0] for edit in EDITS])
def test_a_training_job_is_immutable_but_for_suspend(what: str, changes: Spec, fields: str | None) -> None:
    after = edited(JOB, changes)
    for old, new in ((JOB, after), (after, JOB)):
        message = immutable_changes(TrainingJobSpec.model_validate(old), TrainingJobSpec.model_validate(new))
        if fields is None:
            assert message is None
        else:
            assert message is not None
            assert message.startswith(fields)
            assert "create another TrainingJob" in message
        assert sorted(transition_rules_broken(old, new)) == sorted(fields.split(", ") if fields else [])


def transition_rules_broken(old: Spec, new: Spec) -> list[str]:
    """The first words of the messages of the CRD's transition rules that an edit breaks."""
    schema = schema_of("TrainingJob")["properties"]["spec"]
    before, after = defaulted(old, schema), defaulted(new, schema)
    broken = []
    for rule in schema["x-kubernetes-validations"]:
        name = rule["message"].split()[0]
        required = rf"self\.{name} == oldSelf\.{name}"
        optional = rf"has\(self\.{name}\) == has\(oldSelf\.{name}\) && \(!has\(self\.{name}\) \|\| {required}\)"
        guarded = re.fullmatch(optional, rule["rule"]) is not None
        assert guarded or re.fullmatch(required, rule["rule"]), rule["rule"]
        assert guarded or name in before, f"{name} may be absent: its rule would fail with 'no such key'"
        if before.get(name) != after.get(name):
            broken.append(name)
    return broken
