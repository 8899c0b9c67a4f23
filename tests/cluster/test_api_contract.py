"""What the API server itself says of specs: the table that the models are held to, the examples, and specs that hypothesis makes."""

from __future__ import annotations

import copy
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from api_cases import BASE, EDITS, INVALID, INVALID_NAMES, VALID, VALID_NAMES, Spec, edited
from documented import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from waiting import wait_until

import generate
from harness.api_server import ApiServer
from llmops_api.v1alpha1 import KINDS

ROOT = Path(__file__).parents[2]


class Api:
    """Creates and changes objects as a dry run, with unknown fields refused."""

    def __init__(self, server: ApiServer) -> None:
        context = ssl.create_default_context(cafile=str(server.folder / "pki/ca.crt"))
        context.load_cert_chain(server.folder / "pki/admin.crt", server.folder / "pki/admin.key")
        self.http = httpx.Client(base_url=server.url, verify=context, timeout=60)

    def path(self, kind: str) -> str:
        return f"/apis/llmops.dev/v1alpha1/namespaces/default/{generate.NAMES[kind].plural}"

    def refusal(self, kind: str, spec: Any, name: str = "x") -> str | None:
        answer = self.http.post(
            self.path(kind), params={"dryRun": "All", "fieldValidation": "Strict"}, json=manifest(kind, spec, name)
        )
        return None if answer.is_success else str(answer.json()["message"])


def manifest(kind: str, spec: Any, name: str = "x") -> dict[str, Any]:
    return {"apiVersion": "llmops.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def clustered(value: Any) -> Any:
    """The same with what lies on a claim in place of what lies on a laptop: the one thing that the API server refuses alone."""
    if isinstance(value, dict):
        return {key: clustered(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [clustered(one) for one in value]
    return (
        value.replace("file://", "pvc://claim", 1) if isinstance(value, str) and value.startswith("file://") else value
    )


@pytest.fixture(scope="module")
def api(api_server: ApiServer) -> Iterator[Api]:
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        api_server.kubectl("apply", "--server-side", "-f", str(path))
    api_server.kubectl.await_crds()
    made = Api(api_server)
    yield made
    made.http.close()


@pytest.mark.parametrize(("kind", "what", "changes"), VALID, ids=[case[1] for case in VALID])
def test_a_valid_spec_is_taken(api: Api, kind: str, what: str, changes: Spec) -> None:
    assert api.refusal(kind, clustered(edited(BASE[kind], changes))) is None


@pytest.mark.parametrize(("kind", "what", "changes", "says"), INVALID, ids=[case[1] for case in INVALID])
def test_an_invalid_spec_is_refused_with_what_to_write(
    api: Api, kind: str, what: str, changes: Spec, says: str
) -> None:
    refusal = api.refusal(kind, clustered(edited(BASE[kind], changes)))
    assert refusal is not None
    assert says in refusal


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_the_models_take_is_taken_and_another_is_refused_with_what_to_write(api: Api, kind: str) -> None:
    for name in VALID_NAMES:
        assert api.refusal(kind, clustered(BASE[kind]), name) is None
    for name in INVALID_NAMES:
        refusal = api.refusal(kind, clustered(BASE[kind]), name)
        assert refusal is not None, name
        assert "metadata.name is at most 63 small letters" in refusal


def test_an_object_that_has_a_bad_name_already_can_be_edited_and_goes(api: Api, api_server: ApiServer) -> None:
    kind, spec, patch = "RagService", BASE["RagService"], {"content-type": "application/merge-patch+json"}
    old = manifest(kind, spec, "an.old.one")
    old["metadata"]["finalizers"] = ["example.com/held"]
    without_rule = generate.crd(kind)
    del without_rule["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"]
    at = f"{api.path(kind)}/an.old.one"
    try:
        api_server.kubectl.apply(without_rule)
        wait_until(lambda: api.refusal(kind, spec, "an.old.one") is None, "a CRD without the rule")
        assert api.http.post(api.path(kind), json=old).is_success
    finally:
        api_server.kubectl.apply(generate.crd(kind))
    wait_until(lambda: api.refusal(kind, spec, "another.one") is not None, "a CRD with the rule")
    for url, change in (
        (at, {"spec": {"replicas": 2}}),
        (f"{at}/status", {"status": {"phase": "Failed"}}),
    ):
        answer = api.http.patch(url, content=json.dumps(change), headers=patch)
        assert answer.is_success, answer.text
    api.http.delete(at)
    answer = api.http.patch(at, content='{"metadata": {"finalizers": null}}', headers=patch)
    assert answer.is_success, answer.text
    assert api.http.get(at).status_code == 404


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("TrainingJob", BASE["TrainingJob"]),
        ("EmbeddingIndex", BASE["EmbeddingIndex"]),
        ("RagService", edited(BASE["RagService"], {"model.base.uri": "file://./weights"})),
    ],
)
def test_a_file_of_a_laptop_is_refused_with_the_name_of_the_command(api: Api, kind: str, spec: Spec) -> None:
    refusal = api.refusal(kind, spec)
    assert refusal is not None
    assert "llmops push FILE.yaml | kubectl apply -f -" in refusal


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_taken_once_their_files_are_pushed(api: Api, path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        assert api.refusal(document["kind"], clustered(document["spec"])) is None


@pytest.mark.parametrize("example", [pytest.param(one, id=where) for where, one in examples()])
def test_what_the_documentation_shows_is_taken(example: dict[str, Any], api: Api, api_server: ApiServer) -> None:
    told = api_server.kubectl.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(clustered(example)))
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_it_fills_in_what_the_models_fill_in(api: Api, kind: str) -> None:
    spec = clustered(BASE[kind])
    answer = api.http.post(api.path(kind), params={"dryRun": "All"}, json=manifest(kind, spec))
    assert answer.json()["spec"] == KINDS[kind].model_validate(manifest(kind, spec)).spec.dump()


def test_a_training_job_is_immutable_but_for_suspend(api: Api) -> None:
    path, spec = api.path("TrainingJob"), clustered(BASE["TrainingJob"])
    made = api.http.post(path, json=manifest("TrainingJob", spec, "fixed"))
    assert made.is_success, made.text
    try:
        for what, changes, fields in EDITS:
            changed = manifest("TrainingJob", clustered(edited(BASE["TrainingJob"], changes)), "fixed")
            changed["metadata"]["resourceVersion"] = made.json()["metadata"]["resourceVersion"]
            answer = api.http.put(f"{path}/fixed", params={"dryRun": "All"}, json=changed)
            assert answer.is_success == (fields is None), what
            for field in fields.split(", ") if fields else ():
                assert f"{field} of a TrainingJob cannot be changed: create another TrainingJob" in answer.text
    finally:
        api.http.delete(f"{path}/fixed")


def test_what_a_pod_template_passes_on_is_immutable_too(api: Api) -> None:
    path, spec = api.path("TrainingJob"), clustered(BASE["TrainingJob"])
    template = {"volumes": [{"name": "data", "nfs": {"server": "a", "path": "/x"}}], "affinity": {"a": {"b": 1}}}
    made = api.http.post(path, json=manifest("TrainingJob", {**spec, "podTemplate": template}, "passed"))
    assert made.is_success, made.text
    try:
        for change in (
            {"volumes": [{"name": "data", "nfs": {"server": "b", "path": "/x"}}]},
            {"affinity": {"a": {"b": 2}}},
        ):
            changed = manifest("TrainingJob", {**spec, "podTemplate": {**template, **change}}, "passed")
            changed["metadata"]["resourceVersion"] = made.json()["metadata"]["resourceVersion"]
            answer = api.http.put(f"{path}/passed", params={"dryRun": "All"}, json=changed)
            assert "podTemplate of a TrainingJob cannot be changed" in answer.text, change
    finally:
        api.http.delete(f"{path}/passed")


def test_a_service_is_scaled_and_objects_are_found_by_their_fields(api: Api, api_server: ApiServer) -> None:
    kubectl = api_server.kubectl
    made = manifest("RagService", BASE["RagService"], "scaled")
    kubectl("create", "-f", "-", stdin=json.dumps(made))
    try:
        kubectl("scale", "rag/scaled", "--replicas=3")
        assert kubectl.get("rag", "scaled")["spec"]["replicas"] == 3
        refused = kubectl.run("scale", "rag/scaled", "--replicas=0")
        assert "should be greater than or equal to 1" in refused.stderr
        status = {"status": {"phase": "Ready"}}
        kubectl("patch", "rag", "scaled", "--subresource=status", "--type=merge", "-p", json.dumps(status))
        found = kubectl("get", "rag", "--field-selector=status.phase=Ready", "-o", "name")
        assert found.split() == ["ragservice.llmops.dev/scaled"]
        assert kubectl("get", "rag", "--field-selector=status.phase=Failed", "-o", "name") == ""
    finally:
        kubectl("delete", "rag", "scaled")


COLUMNS = {
    "tj": "NAME PHASE METHOD PROGRESS LOSS MODEL VERSION GATE AGE",
    "ei": "NAME READY PHASE PROGRESS DOCUMENTS CHUNKS VERSION RECALL@5 SYNCED AGE",
    "rag": "NAME READY PHASE MODEL VERSION INDEXES REPLICAS AVAILABLE URL AGE",
}


@pytest.mark.parametrize("kind", KINDS)
def test_kubectl_prints_what_matters(api: Api, api_server: ApiServer, kind: str) -> None:
    short = generate.NAMES[kind].short
    api_server.kubectl("create", "-f", "-", stdin=json.dumps(manifest(kind, clustered(BASE[kind]), "shown")))
    try:
        head = api_server.kubectl("get", short).splitlines()[0]
        assert " ".join(head.split()) == COLUMNS[short]
        wide = api_server.kubectl("get", short, "-o", "wide").splitlines()[0]
        assert "REASON" in wide
    finally:
        api_server.kubectl("delete", short, "shown")


# Specs that nobody thought of


STRINGS = st.sampled_from(
    ["", "a", "A", "0", "-1", "1", "0.5", "1.5", "1e-3", "1.", "500m", "8Gi", "latest", "v1", "a b", "é", "a\n", "/x", "x" * 64, "x" * 20000,
     "pvc://c", "pvc://c/x", "pvc://C/x", "s3://b/k", "https://h/x", "https://u@h/x", "git+https://h/r@v#p", "hf://o/m", "mlflow://m@a", "pkg://m/x",
     f"artifact://{'0' * 64}/x", "http://h/v1", "{sources}{question}", "--port=1", "llmops-x", "LLMOPS_X", "llmops.dev/x", "2026-11-23T00:00:00Z"]
)  # fmt: skip


def values(schema: dict[str, Any], depth: int = 3) -> st.SearchStrategy[Any]:
    """Values that a field may have, or nearly."""
    wrong = st.sampled_from(["wrong", 7, True, [], {}, {"unknown": 1}])
    match schema["type"]:
        case "boolean":
            right: st.SearchStrategy[Any] = st.booleans()
        case "integer":
            low, high = schema.get("minimum", 0), schema.get("maximum", 10**6)
            right = st.sampled_from([low - 1, low, low + 1, high - 1, high, high + 1])
        case "string":
            right = st.sampled_from(schema["enum"]) | STRINGS if "enum" in schema else STRINGS
        case "array":
            size = st.integers(0, 3 if depth else 0)
            right = size.flatmap(lambda n: st.lists(values(schema["items"], depth - 1), min_size=n, max_size=n))
        case _ if "properties" in schema:
            fields = {name: values(one, depth - 1) for name, one in schema["properties"].items()}
            required = {name: one for name, one in fields.items() if name in schema.get("required", ())}
            right = st.fixed_dictionaries(
                required, optional={k: v for k, v in fields.items() if k not in required} if depth else {}
            )
        case _ if isinstance(schema.get("additionalProperties"), dict):
            right = st.dictionaries(STRINGS.filter(bool), values(schema["additionalProperties"], 0), max_size=3)
        case _:
            right = st.just({"any": {"thing": [1, "x"]}})
    return st.one_of(right, right, right, right, right, right, right, wrong)


def paths(schema: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for name, one in schema.get("properties", {}).items():
        yield (*at, name), one
        yield from paths(one, (*at, name))


NAMES = st.sampled_from([*VALID_NAMES, *INVALID_NAMES, "", "-a", "a-", "A", "a_b", "é", "a/b"]) | st.text(
    "a0-.", min_size=1, max_size=70
)


@st.composite
def specs(draw: st.DrawFn) -> tuple[str, Any]:
    """A valid spec with something written at one or two of its fields."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    spec = clustered(BASE[kind])
    schema = generate.schema_of(KINDS[kind])["properties"]["spec"]
    for _ in range(draw(st.integers(1, 2))):
        path, one = draw(st.sampled_from(list(paths(schema))))
        at = spec
        for part in path[:-1]:
            at = at.setdefault(part, {}) if isinstance(at, dict) else {}
            if not isinstance(at, dict):
                at = {}
        at[path[-1]] = draw(values(one))
    return kind, copy.deepcopy(spec)


def taken_by_the_models(kind: str, spec: Any, name: str) -> str | None:
    try:
        KINDS[kind].model_validate_json(
            json.dumps(manifest(kind, spec, name)), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return None


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=specs(), name=st.just("x") | NAMES)
def test_the_models_and_the_api_server_take_and_refuse_the_same(api: Api, made: tuple[str, Any], name: str) -> None:
    kind, spec = made
    server, models = api.refusal(kind, spec, name), taken_by_the_models(kind, spec, name)
    assert (server is None) == (models is None), f"{name}: {spec}\nAPI server: {server}\nmodels: {models}"
