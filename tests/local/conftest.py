"""Fixtures that several of these tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from index_program import Index
from mlflow_server import MlflowServer
from qdrant_client import QdrantClient
from training_job import Job, lines

from llmops_api.programs import Env
from llmops_operator.backends.local.home import Home
from llmops_services.vectorstore.process import StoreProcess


@pytest.fixture
def job(tmp_path: Path, mlflow_server: MlflowServer, tiny_chat_model: Path, request: pytest.FixtureRequest) -> Job:
    """A LoRA training of 20 steps with evaluation and gate; tests change its spec before they start it."""
    folder = tmp_path / request.node.name.removeprefix("test_").replace("_", "-")[:40]
    folder.mkdir()
    for name, count, seed in (("train", 64, 1), ("domain", 12, 2), ("general", 6, 3)):
        (folder / f"{name}.jsonl").write_text(lines(count, seed), "utf-8")
    spec: dict[str, Any] = {
        "baseModel": {"uri": f"file://{tiny_chat_model}"},
        "data": {"train": {"uri": f"file://{folder}/train.jsonl"}, "maxLength": 64},
        "tuning": {"lora": {"rank": 4, "alpha": 8}},
        "hyperparameters": {"maxSteps": 20, "learningRate": "1e-2", "batchSize": 4, "warmupRatio": "0.1"},
        "checkpoint": {"everySteps": 5, "keep": 1},
        "evaluation": {
            "domain": {"uri": f"file://{folder}/domain.jsonl"},
            "general": {"uri": f"file://{folder}/general.jsonl"},
            "gate": {"minImprovement": "0.2"},
        },
        "output": {"model": folder.name},
    }
    return Job(folder, mlflow_server.url, spec, f"uid-{os.getpid()}-{folder.name}")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A folder for the platform on this machine."""
    home = Home.at(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def mlflow_client(mlflow_server: MlflowServer) -> Any:
    """A client of the module's MLflow server."""
    from mlflow import MlflowClient

    return MlflowClient(mlflow_server.url, mlflow_server.url)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    with StoreProcess(tmp_path_factory.mktemp("store")) as process:
        yield process


@pytest.fixture
def qdrant(store: StoreProcess) -> Iterator[QdrantClient]:
    client = QdrantClient(url=store.url, check_compatibility=False, timeout=30)
    yield client
    client.close()


@pytest.fixture
def make_index(
    store: StoreProcess,
    qdrant: QdrantClient,
    tiny_embedding_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Callable[..., Index]:
    monkeypatch.setenv(Env.QDRANT_URL, store.url)
    monkeypatch.setenv(Env.CACHE_DIR, str(tmp_path / "cache"))
    base = request.node.name.replace("_", "-").partition("[")[0][:40].strip("-")

    def make(suffix: str = "") -> Index:
        return Index(f"{base}{suffix}", tmp_path / f"index{suffix}", tiny_embedding_model, qdrant)

    return make


@pytest.fixture
def index(make_index: Callable[..., Index]) -> Index:
    return make_index()
