"""Fixtures that several of these tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cli_objects import MANIFESTS, Llmops
from world import World

from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.store import SqliteStore
from llmops_operator.cli.app import execute


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.start()
    yield world
    if world.plane:
        await world.die()


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """An empty folder of somebody who is not root, and who runs the test: permissions bite."""
    with tempfile.TemporaryDirectory() as name:
        root = os.geteuid() == 0
        if root:
            os.chown(name, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


@pytest.fixture
def llmops(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Llmops:
    """Runs a command line on a home in `tmp_path`; gives exit code, stdout and stderr."""
    monkeypatch.setenv("LLMOPS_HOME", str(tmp_path / "home"))
    (tmp_path / "manifests.yaml").write_text(MANIFESTS)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "leave.md").write_text("# Leave\n")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = execute(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def applied(llmops: Llmops, tmp_path: Path) -> Llmops:
    """The same, where the three objects are applied."""
    code, _, err = llmops("apply", "-f", str(tmp_path / "manifests.yaml"))
    assert code == 0, err
    return llmops


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """The store of that home."""
    home = Home.at(tmp_path / "home")
    home.create()
    store = SqliteStore(home.objects)
    yield store
    store.close()
