"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
from mlflow_server import MlflowServer

# Read when torch is loaded, here and in the programs that tests start: threads that spin while they wait for each other take
# the cores from the other processes of a test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def tiny_chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random chat model. Read it, do not write to it."""
    return tiny_models.make_tiny_chat_model(tmp_path_factory.mktemp("tiny-chat-model"))


@pytest.fixture(scope="session")
def tiny_embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random sentence-transformers model of 64 dimensions. Read it, do not write to it."""
    return tiny_models.make_tiny_embedding_model(tmp_path_factory.mktemp("tiny-embedding-model"))


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A running MLflow server of the module's own."""
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server
