"""How a program tells what it does: by files where the variables name them, else by lines of its output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmops_api.programs import Said
from llmops_api.v1alpha1.meta import Progress
from llmops_services import program
from llmops_services.program import ProgressReporter

PROGRAM = """
import sys
from llmops_api.programs import AdaptersConfig
from llmops_api.v1alpha1.meta import Progress
from llmops_services.program import ProgressReporter, TryAgain, UserError, run_program

def main(path: str):
    reporter = ProgressReporter()
    for percent in range(100):
        reporter.report(Progress(doing="work", percent=percent))
    sys.stdout.write("a bar: 50%\\r")
    match path:
        case "good": return AdaptersConfig()
        case "wrong": raise UserError("DataInvalid", "line 17 of data.jsonl\\nis no JSON: correct it")
        case "away": raise TryAgain("HubUnreachable", "no answer")
        case "big": raise MemoryError
        case "full": raise OSError(28, "No space left on device", "/state/x")
        case _: raise RuntimeError("a bug")

run_program(main)
"""


def run(how: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMOPS_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env=inherited | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def said(what: Said, output: str) -> list[dict[str, object]]:
    return [json.loads(text) for line in output.splitlines() if (text := what.of(line))]


@pytest.mark.parametrize(
    ("how", "code", "result"),
    [
        ("good", 0, {"adapters": []}),
        ("wrong", 64, {"reason": "DataInvalid", "message": "line 17 of data.jsonl\nis no JSON: correct it"}),
        ("away", 75, {"reason": "HubUnreachable", "message": "no answer"}),
        ("big", 137, {"reason": "OutOfMemory", "message": "not enough memory: lower batchSize or the lengths, or give more memory"}),
        ("full", 75, {"reason": "DiskFull", "message": "/state/x: no space left on the disk; free some, it goes on by itself"}),
    ],
)  # fmt: skip
def test_a_result_is_one_line_of_the_output_or_a_file(
    how: str, code: int, result: dict[str, object], tmp_path: Path
) -> None:
    ended = run(how)
    assert ended.returncode == code
    assert said(Said.RESULT, ended.stdout) == [result]
    file = tmp_path / "result.json"
    ended = run(how, LLMOPS_RESULT_FILE=str(file))
    assert ended.returncode == code
    assert said(Said.RESULT, ended.stdout) == []
    assert json.loads(file.read_text()) == result


def test_a_bug_leaves_no_result() -> None:
    ended = run("bug")
    assert ended.returncode == 1
    assert said(Said.RESULT, ended.stdout) == []
    assert "RuntimeError: a bug" in ended.stderr


def test_progress_is_said_at_once_and_then_every_five_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LLMOPS_PROGRESS_FILE", raising=False)
    now = 100.0
    monkeypatch.setattr(program.time, "monotonic", lambda: now)
    reporter = ProgressReporter()
    for step in range(121):
        now = 100.0 + step / 10
        reporter.report(Progress(doing=f"part {step}", step=step))
    assert [sample["step"] for sample in said(Said.PROGRESS, capsys.readouterr().out)] == [0, 50, 100]


def test_a_file_gets_every_change_of_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "progress.json"
    monkeypatch.setenv("LLMOPS_PROGRESS_FILE", str(file))
    reporter = ProgressReporter()
    seen = []
    for doing, percent in (("load", 0), ("load", 1), ("work", 1), ("work", 2), ("work", 100)):
        reporter.report(Progress(doing=doing, percent=percent))
        seen.append(json.loads(file.read_text())["percent"])
    assert seen == [0, 0, 1, 1, 100]


def test_a_line_that_says_nothing_is_none() -> None:
    assert Said.RESULT.of("llmops-progress: {}") is None
    assert Said.RESULT.of("INFO something llmops-results") is None
