"""The collections in memory, which the stories of deletions are told on, go as those in a vector store do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

import pytest
from either_store import DENSE, SERVER
from qdrant_client import QdrantClient

from llmops_api.v1alpha1.embedding_index import Chunking
from llmops_operator.backends.memory import MemoryCollections
from llmops_operator.controllers import ports
from llmops_operator.controllers.vector_store import QdrantCollections
from llmops_services import vectors
from llmops_services.vectors import Embedded, IndexMetadata
from llmops_services.vectorstore.process import StoreProcess

pytestmark = pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")


class Either(Protocol):
    """A vector store that something can be put into."""

    collections: ports.Collections

    def put(self, name: str, uid: str | None) -> None: ...
    def point(self, alias: str, collection: str) -> None: ...
    def names(self) -> set[str]: ...
    def aliases(self) -> dict[str, str]: ...


class InMemory:
    def __init__(self) -> None:
        self.collections = MemoryCollections()

    def put(self, name: str, uid: str | None) -> None:
        self.collections.uids[name] = uid or ""

    def point(self, alias: str, collection: str) -> None:
        self.collections.aliases[alias] = collection

    def names(self) -> set[str]:
        return set(self.collections.uids)

    def aliases(self) -> dict[str, str]:
        return self.collections.aliases


class InQdrant:
    """What is put is made as the indexer makes it."""

    def __init__(self, client: QdrantClient, url: str, key: str | None) -> None:
        self._client = client

        async def address() -> tuple[str, str | None]:
            return url, key

        self.collections = QdrantCollections(address)

    def put(self, name: str, uid: str | None) -> None:
        if uid is None:  # somebody else's
            self._client.create_collection(name, vectors_config=DENSE)
            return
        embedded = Embedded(model="pkg://m/m", digest="d", dimensions=4)
        metadata = IndexMetadata(
            fingerprint="f", embedding=embedded, sparse=False, chunking=Chunking(), index="team/docs", uid=uid
        )
        vectors.create_collection(self._client, name, metadata)

    def point(self, alias: str, collection: str) -> None:
        vectors.swap_alias(self._client, alias, collection)

    def names(self) -> set[str]:
        return {one.name for one in self._client.get_collections().collections if one.name.startswith("team")}

    def aliases(self) -> dict[str, str]:
        found = self._client.get_aliases().aliases
        return {one.alias_name: one.collection_name for one in found if one.alias_name.startswith("team.")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str | None]]:
    """Address and key of the server that QDRANT_URL names, or else of an embedded one."""
    if SERVER:
        yield SERVER, os.environ.get("QDRANT_API_KEY")
        return
    with StoreProcess(tmp_path_factory.mktemp("store"), {"QDRANT_API_KEY": "a key"}) as process:
        yield process.url, "a key"


@pytest.fixture(params=["memory", "qdrant"])
def either(request: pytest.FixtureRequest) -> Iterator[Either]:
    if request.param == "memory":
        yield InMemory()
        return
    url, key = request.getfixturevalue("store")
    client = QdrantClient(url=url, api_key=key, check_compatibility=False, timeout=30)
    found = InQdrant(client, url, key)
    yield found
    for name in found.names():
        client.delete_collection(name)
    client.close()


NAMES = (
    "team.docs.0123456789",
    "team.docs.abcdef0123",
    "team.docs.abcdef0123.0123456789",
    "team.docs2.0123456789",
    "team.docs.notes",
    "team-docs.0123456789",
)


async def test_what_the_index_has_made_goes_with_its_alias_and_nothing_else(either: Either) -> None:
    for name in NAMES:
        either.put(name, "u")
    either.point("team.docs", NAMES[1])
    either.point("team.docs2", NAMES[3])
    for _ in range(2):  # twice is the same as once
        await either.collections.drop("team.docs", "u")
        assert either.names() == {*NAMES[2:]}
        assert either.aliases() == {"team.docs2": NAMES[3]}


@pytest.mark.parametrize("uid", ["another", None])
async def test_what_is_somebody_elses_stays_under_the_same_name(either: Either, uid: str | None) -> None:
    either.put(NAMES[0], "u")
    either.put(NAMES[1], uid)
    either.point("team.docs", NAMES[1])
    await either.collections.drop("team.docs", "u")
    assert either.names() == {NAMES[1]}
    assert either.aliases() == {"team.docs": NAMES[1]}


async def test_nothing_is_there_to_drop(either: Either) -> None:
    await either.collections.drop("team.docs", "u")
