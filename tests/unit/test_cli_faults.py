"""A command that cannot be done, or not be understood, says so in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_objects import Llmops


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["get", "tj", "nothing"], 'trainingjobs.llmops.dev "nothing" not found'),
        (["get", "pods"], 'there is no kind "pods": write one of trainingjobs (tj)'),
        (["get", "tj", "-o", "xml"], 'there is no output "xml": write one of wide, yaml, json, name'),
        (["get", "tj,ei", "assistant"], "a name needs one kind: write tj/assistant"),
        (["get", "-l", "a>b"], '"a>b" is no label selector'),
        (["describe", "rag/nothing"], 'ragservices.llmops.dev "nothing" not found'),
        (["delete", "tj"], "name what to delete: write tj/NAME"),
        (["delete"], "say what to delete"),
        (["delete", "tj", "nothing"], "trainingjob.llmops.dev/nothing not found"),
        (["wait", "tj/assistant", "--for", "Ready"], 'cannot wait for "Ready": write condition=TYPE'),
        (["wait", "tj/assistant", "--for", "delete", "--timeout", "soon"], '"soon" is no length of time'),
        (["logs", "tj/assistant"], "has not started a program yet"),
        (["logs", "tj/nothing"], "trainingjob.llmops.dev/nothing not found"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line_and_exits_1(applied: Llmops, line: list[str], expected: str) -> None:
    code, _, err = applied(*line)
    assert code == 1
    assert err.startswith("error: ")
    assert expected in err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["gte"], "No such command 'gte'"),
        (["get", "--no-such-option"], "No such option: --no-such-option"),
        (["apply"], "Missing option '--filename'"),
        (["wait", "tj/x"], "Missing option '--for'"),
    ],
)
def test_what_cannot_be_asked_exits_2(llmops: Llmops, line: list[str], expected: str) -> None:
    code, _, err = llmops(*line)
    assert code == 2
    assert err.startswith("error: ")
    assert expected in err
    assert "--help" in err


def test_a_home_without_objects_is_said_and_not_made(llmops: Llmops, tmp_path: Path) -> None:
    code, _, err = llmops("get", "--home", str(tmp_path / "elsewhere"))
    assert code == 1
    assert "holds no objects yet: apply a manifest" in err
    assert not (tmp_path / "elsewhere").exists()
