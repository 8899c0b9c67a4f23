"""The embedded store, and the server that QDRANT_URL names (if any)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest
from either_store import DENSE, SERVER, SPARSE
from qdrant_client import QdrantClient

from llmops_services.vectorstore.process import StoreProcess


@pytest.fixture(scope="module", params=["embedded", *(["server"] if SERVER else [])])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "server":
        yield SERVER or ""
        return
    with StoreProcess(tmp_path_factory.mktemp("store"), {"QDRANT_API_KEY": ""}) as store:
        yield store.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[QdrantClient]:
    api_key = os.environ.get("QDRANT_API_KEY") if url == SERVER else None
    client = QdrantClient(url=url, api_key=api_key, timeout=30, check_compatibility=False)
    yield client
    client.close()


@pytest.fixture
def name(client: QdrantClient) -> Iterator[str]:
    """The name of an empty collection with the vectors `dense` and `bm25`."""
    name = f"congruence-{uuid4().hex}"
    client.create_collection(name, vectors_config={"dense": DENSE}, sparse_vectors_config={"bm25": SPARSE})
    yield name
    client.delete_collection(name)
