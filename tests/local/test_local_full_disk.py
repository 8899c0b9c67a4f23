"""The disk of a daemon's home is really full: it is told on the screen, and everything goes on when there is room again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_objects import LLMOPS
from disks import filled, small_disk
from waiting import wait_until

from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.processes import ProcessBackend
from llmops_operator.backends.local.store import SqliteStore
from llmops_operator.cli.app import execute
from llmops_operator.controllers.ports import Unavailable
from llmops_operator.domain.workload import Lifecycle, Owner, Role, Workload

INDEX = """\
apiVersion: llmops.dev/v1alpha1
kind: EmbeddingIndex
metadata: {name: handbook}
spec:
  suspend: true
  sources: [{name: hr, uri: file://./}]
  embedding: {model: {uri: hf://organisation/embedder}}
"""
# Whoever answers there is of no interest here.
ELSEWHERE = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "QDRANT_URL": "http://127.0.0.1:9"}


@contextmanager
def daemon(home: Path, said: Path) -> Iterator[subprocess.Popen[bytes]]:
    with said.open("ab") as out:
        process = subprocess.Popen(
            [*LLMOPS, "up", "--home", str(home)], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **ELSEWHERE}
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_full_disk_is_told_by_the_daemon_which_goes_on_when_there_is_room(tmp_path: Path) -> None:
    home, said = tmp_path / "home", tmp_path / "said"
    (tmp_path / "index.yaml").write_text(INDEX)
    with small_disk(home, 2):
        with daemon(home, said) as process:
            wait_until(lambda: "up. MLflow" in said.read_text(), said.read_text)
            with filled(home):
                wait_until(
                    lambda: f"{home}: no space left on the disk; free some, it goes on" in said.read_text(),
                    said.read_text,
                )
            assert execute(["apply", "--home", str(home), "-f", str(tmp_path / "index.yaml")]) == 0
            wait_until(
                lambda: execute(["wait", "--home", str(home), "ei/handbook", "--for=condition=Accepted"]) == 0,
                "its status",
            )
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        with filled(home):
            wait_until(lambda: shutil.disk_usage(home).free == 0, "the disk to be full")
            with daemon(home, said) as process:
                assert process.wait(60) == 1
    last = said.read_text().splitlines()[-1]
    assert last.startswith("error: ")
    assert "no space left on " in last.lower()
    assert "Traceback" not in said.read_text()
    assert "Logging error" not in said.read_text()


async def test_what_cannot_be_written_down_is_asked_for_again(tmp_path: Path) -> None:
    owner = Owner("TrainingJob", "default", "x", "uid")
    with small_disk(tmp_path / "home", 1):
        home = Home.at(tmp_path / "home")
        home.create()
        store = SqliteStore(home.objects)
        backend = ProcessBackend(home, home.workloads)
        with filled(home.root):
            wait_until(lambda: shutil.disk_usage(home.root).free == 0, "the disk to be full")
            with pytest.raises(Unavailable, match="no space left on the disk"):
                await backend.apply(owner, Workload("x", Role.TRAINER, Lifecycle.COMPLETES, ("true",)))
            with pytest.raises(Unavailable, match="no space left on the disk"):
                await store.record_event(("TrainingJob", "default", "x"), type_="Warning", reason="Error", message="x")
        store.close()
