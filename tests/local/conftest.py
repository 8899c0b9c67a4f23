"""Fixtures that several of these tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from training_job import Job, lines


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
def mlflow_client(mlflow_server: MlflowServer) -> Any:
    """A client of the module's MLflow server."""
    from mlflow import MlflowClient

    return MlflowClient(mlflow_server.url, mlflow_server.url)
