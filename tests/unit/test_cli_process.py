"""The command as a process: exit codes, pipes, and what it does not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_objects import LLMOPS

from llmops_operator.backends.local.home import Home
from llmops_operator.cli.app import execute

INDEX = """\
apiVersion: llmops.dev/v1alpha1
kind: EmbeddingIndex
metadata: {name: handbook}
spec:
  sources: [{name: hr, uri: file://./}]
  embedding: {model: {uri: hf://organisation/embedder}}
"""


def llmops(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LLMOPS, *arguments], input=text, capture_output=True, text=True, timeout=60, check=False)


def test_get_and_version_load_nothing_that_takes_long(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    assert execute(["--home", str(home.root), "delete", "ei/x", "--ignore-not-found"]) == 0
    assert home.objects.is_file(), "the reader looks where the store writes"
    for words in (["get"], ["events"], ["version"]):
        program = (
            "import sys; from llmops_operator.cli.app import execute; code = execute(sys.argv[1:]);"
            "print(code, [m for m in ('mlflow', 'httpx', 'rich', 'yaml', 'llmops_api', 'asyncio') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, "--home", str(home.root), *words],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == "0 []", (words, done)


def test_manifests_come_through_a_pipe_and_a_closed_one_is_no_crash(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    done = llmops("--home", home, "apply", "-f", "-", text=INDEX)
    assert (done.returncode, done.stdout) == (0, "embeddingindex.llmops.dev/handbook created\n"), done.stderr
    with subprocess.Popen(
        [*LLMOPS, "--home", home, "get", "-w"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        assert b"NAME" in watch.stdout.readline()
        watch.stdout.close()
        changed = llmops("--home", home, "apply", "-f", "-", text=INDEX.replace("name: hr", "name: it"))
        assert changed.stdout == "embeddingindex.llmops.dev/handbook configured\n"
        llmops("--home", home, "delete", "ei/handbook")
        assert watch.wait(timeout=30) == 1
        assert b"Traceback" not in watch.stderr.read()


def test_watching_prints_each_change(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    llmops("--home", home, "apply", "-f", "-", text=INDEX)
    with subprocess.Popen([*LLMOPS, "--home", home, "get", "ei", "-w"], stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline().split()[0] == "NAME"
        assert watch.stdout.readline().split()[:2] == ["handbook", "Pending"]
        llmops("--home", home, "apply", "-f", "-", text=INDEX.replace("handbook", "second"))
        assert watch.stdout.readline().split()[:2] == ["second", "Pending"]
        llmops("--home", home, "delete", "ei/second")
        assert watch.stdout.readline().split()[:2] == ["second", "Deleted"]
        watch.terminate()


def test_exit_codes_are_0_1_and_2(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    assert llmops("version").returncode == 0
    assert llmops("--home", home, "get").returncode == 1
    assert llmops("get", "--nonsense").returncode == 2


@pytest.mark.parametrize("command", ["apply", "get", "describe", "delete", "wait", "events", "logs", "validate"])
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([command, "--help"]) == 0
    assert f"llmops {command}" in capsys.readouterr().out
