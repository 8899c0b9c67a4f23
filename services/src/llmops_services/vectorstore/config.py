"""The config file of the vector store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from llmops_api.v1alpha1.meta import Model


class VectorStoreConfig(Model):
    """Config of `llmops_services.vectorstore`. The API key, if any, comes from the environment (`QDRANT_API_KEY`)."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 6333
    """Where to listen; 0 takes a free port, which the first line on standard output names."""
    folder: Path
    """Where the collections lie. One process holds a folder at a time."""
