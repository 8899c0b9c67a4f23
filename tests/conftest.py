"""Fixtures that several folders of tests share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

# Read when torch is loaded, here and in the programs that tests start: threads that spin while they wait for each other take
# the cores from the other processes of a test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
assert _spec is not None
assert _spec.loader is not None
tiny_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_models)


@pytest.fixture(scope="session")
def tiny_chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random chat model. Read it, do not write to it."""
    return tiny_models.make_tiny_chat_model(tmp_path_factory.mktemp("tiny-chat-model"))


@pytest.fixture(scope="session")
def tiny_embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random sentence-transformers model of 64 dimensions. Read it, do not write to it."""
    return tiny_models.make_tiny_embedding_model(tmp_path_factory.mktemp("tiny-embedding-model"))
