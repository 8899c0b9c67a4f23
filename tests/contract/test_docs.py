"""The documentation holds together with the code: the reference is what the code says, examples are valid, links lead somewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documented import PAGES, ROOT, examples

import reference
from llmops_api.reasons import FailureReason, Reason
from llmops_api.v1alpha1 import KINDS

DASHBOARD = ROOT / "helm/llmops/files/dashboard.json"


def below(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, one in schema.get("properties", {}).items():
        yield f"{path}.{name}", one
        yield from below(one, f"{path}.{name}")
    yield from below(schema["items"], f"{path}[]") if "items" in schema else ()


def test_the_reference_is_what_the_code_says() -> None:
    written = {path.name: path.read_text() for path in reference.FOLDER.glob("*.md")}
    assert written == {path.name: text for path, text in reference.files().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_field_says_what_it_is(kind: str) -> None:
    schema = reference.crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    fields = [*below(schema["spec"], "spec"), *below(schema["status"], "status")]
    assert [path for path, one in fields if not one.get("description")] == []
    page = (reference.FOLDER / f"{kind.lower()}.md").read_text()
    assert [path for path, _ in fields if f"`{path}`" not in page] == []


def test_each_reason_is_given_somewhere_and_says_what_it_means() -> None:
    told = "".join(reference.files().values())
    assert [one for one in (*Reason, *FailureReason) if f"| `{one}` |" not in told] == []


def test_troubleshooting_knows_each_condition_and_only_reasons_that_there_are() -> None:
    page = (ROOT / "docs/install/troubleshooting.md").read_text()
    table = page.split("## By condition")[1].split("## By what you see")[0]
    conditions = {str(one.value) for kind in reference.CONDITIONS.values() for one in kind}
    assert [one for one in sorted(conditions) if f"`{one}`" not in table] == []
    named = set(re.findall(r"`([A-Z]\w+)`", table)) - {"True"} - conditions
    assert named - {str(one.value) for one in (*Reason, *FailureReason)} == set()


def test_the_dashboard_draws_metrics_that_the_operator_has() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    drawn = {
        name for panel in panels for target in panel["targets"] for name in re.findall(r"llmops_\w+", target["expr"])
    }
    measured = {one.name for metric in reference.operator_registry().collect() for one in metric.samples}
    assert drawn
    assert drawn <= measured


@pytest.mark.parametrize("manifest", [pytest.param(one, id=where) for where, one in examples() if one["kind"] in KINDS])
def test_an_example_is_valid(manifest: dict[str, Any]) -> None:
    KINDS[manifest["kind"]].model_validate(manifest)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_each_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", re.sub(r"`[^`]*`", "", page.read_text()))
    assert [link for link in links if not (page.parent / link).exists()] == []
