"""The vector store as a service: it stays answerable, refuses with a sentence, and one fault costs nothing else."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient, models

from llmops_services.vectorstore import files, optimizer
from llmops_services.vectorstore.app import create_app
from llmops_services.vectorstore.catalog import Catalog
from llmops_services.vectorstore.process import StoreProcess

DIMENSIONS = 128


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The application in this process, where its surroundings can be changed."""
    catalog = Catalog.open(tmp_path)
    transport = httpx.ASGITransport(app=create_app(catalog))
    async with httpx.AsyncClient(transport=transport, base_url="http://store") as http:
        yield http
    await catalog.close()


VECTORS = {"vectors": {"size": 2, "distance": "Dot"}}


def one_point(payload: Any = None) -> dict[str, Any]:
    return {"points": [{"id": 1, "vector": [1.0, 2.0], "payload": payload}]}


def test_health_is_answered_during_heavy_upserts(store: StoreProcess) -> None:
    client = QdrantClient(url=store.url, timeout=60, check_compatibility=False)
    client.create_collection(
        "busy", vectors_config=models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    )
    batch = [models.PointStruct(id=i, vector=[float(i % 11)] * DIMENSIONS, payload={"n": i}) for i in range(2000)]

    def upsert() -> None:
        for _ in range(6):
            client.upsert("busy", batch)

    writer = threading.Thread(target=upsert)
    latencies = []
    with httpx.Client(base_url=store.url) as http:
        http.get("/healthz")
        writer.start()
        while writer.is_alive():
            start = time.perf_counter()
            assert http.get("/healthz", timeout=10).status_code == 200
            latencies.append(time.perf_counter() - start)
    writer.join()
    client.close()
    assert len(latencies) > 10
    assert statistics.median(latencies) < 0.25
    assert max(latencies) < 2.0


def test_an_unknown_route_says_what_to_do(store: StoreProcess) -> None:
    reply = httpx.post(f"{store.url}/collections/docs/points/query/groups", json={})
    assert reply.status_code == 404
    assert "does not implement POST /collections/docs/points/query/groups" in reply.json()["status"]["error"]
    assert "QDRANT_URL" in reply.json()["status"]["error"]
    assert httpx.delete(f"{store.url}/healthz").status_code == 404


def test_an_api_key_is_asked_for(tmp_path: Path) -> None:
    with StoreProcess(tmp_path, {"QDRANT_API_KEY": "s3cret"}) as store:
        collections = f"{store.url}/collections"
        assert httpx.get(f"{store.url}/healthz").status_code == 200
        assert httpx.get(collections).status_code == 401
        assert httpx.get(collections, headers={"api-key": "guess"}).status_code == 401
        assert httpx.get(collections, headers={"api-key": "s3cret"}).json()["result"] == {"collections": []}
        assert httpx.get(collections, headers={"Authorization": "Bearer s3cret"}).status_code == 200
        with pytest.warns(UserWarning, match="insecure connection"):
            client = QdrantClient(url=store.url, api_key="s3cret", check_compatibility=False)
        assert client.collection_exists("docs") is False
        client.close()


@pytest.mark.parametrize(
    ("config", "code", "sentence"),
    [
        ('{"folder": "store", "prot": 6333}', 64, "prot: Extra inputs are not permitted"),
        ('{"folder": "config.json"}', 64, "folder: "),
        ('{"folder": "store", "port": PORT}', 75, "cannot listen on 127.0.0.1:PORT"),
    ],
)
def test_a_start_that_cannot_be_is_explained(tmp_path: Path, config: str, code: int, sentence: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        (tmp_path / "config.json").write_text(config.replace("PORT", port))
        ended = subprocess.run(
            [sys.executable, "-m", "llmops_services.vectorstore", "config.json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == code, ended.stderr
    assert sentence.replace("PORT", port) in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
async def test_a_name_that_cannot_be_written_is_refused_and_nothing_changes(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await http.put("/collections/docs", json=VECTORS)
    alias = {"actions": [{"create_alias": {"collection_name": "docs", "alias_name": "live"}}]}
    (folder,) = (tmp_path / "collections").glob("docs-*")
    for aside in (tmp_path / "aliases.json.new", folder / "collection.json.new"):
        aside.symlink_to("/dev/full")
    for refused in (
        await http.post("/collections/aliases", json=alias),
        await http.patch("/collections/docs", json={"metadata": {"a": 1}}),
    ):
        assert refused.status_code == 507
        assert "No space left on device" in refused.json()["status"]["error"]
    assert (await http.get("/aliases")).json()["result"] == {"aliases": []}
    assert "metadata" not in (await http.get("/collections/docs")).json()["result"]["config"]
    for aside in (tmp_path / "aliases.json.new", folder / "collection.json.new"):
        aside.unlink()
    assert (await http.post("/collections/aliases", json=alias)).status_code == 200


async def test_a_full_disk_refuses_writes_and_keeps_answering(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = "/collections/docs/points"
    assert (await http.put("/collections/docs", json=VECTORS)).status_code == 200
    assert (await http.put(points, json=one_point())).status_code == 200
    monkeypatch.setattr(files, "free_bytes", lambda _: 10 * 2**20)
    for refused in (
        await http.put(points, json={"points": [{"id": 2, "vector": [1, 2]}]}),
        await http.put("/collections/more", json=VECTORS),
        await http.put("/collections/docs/index", json={"field_name": "a", "field_schema": "keyword"}),
    ):
        assert refused.status_code == 507
        assert "free some" in refused.json()["status"]["error"]
    found = await http.post(f"{points}/query", json={"query": [1.0, 0.0]})
    assert [point["id"] for point in found.json()["result"]["points"]] == [1]
    assert [one["name"] for one in (await http.get("/collections")).json()["result"]["collections"]] == ["docs"]
    monkeypatch.undo()
    assert (await http.put(points, json={"points": [{"id": 2, "vector": [1, 2]}]})).status_code == 200
    assert (await http.post(f"{points}/count", json={})).json()["result"]["count"] == 2


@pytest.mark.parametrize("depth", [65, 900])
async def test_nesting_that_the_engine_could_not_read_again_is_refused(http: httpx.AsyncClient, depth: int) -> None:
    await http.put("/collections/docs", json=VECTORS)
    payload = json.loads('{"a":' * depth + "1" + "}" * depth)
    condition = json.loads('{"must":' * depth + "[]" + "}" * depth)
    prefetch = json.loads('{"query":[1,2],"prefetch":' * depth + "[]" + "}" * depth)
    for reply in (
        await http.put("/collections/docs/points", json=one_point(payload)),
        await http.post("/collections/docs/points/payload", json={"payload": payload, "points": [1]}),
        await http.post("/collections/docs/points/delete", json={"filter": condition}),
        await http.post("/collections/docs/points/query", json=prefetch),
    ):
        assert reply.status_code == 400, reply.text
        assert "levels deep" in reply.json()["status"]["error"]


async def test_a_body_beyond_the_limit_is_refused(http: httpx.AsyncClient) -> None:
    await http.put("/collections/docs", json=VECTORS)
    reply = await http.put("/collections/docs/points", content=b" " * (32 * 2**20 + 1))
    assert reply.status_code == 413
    large = await http.put("/collections/docs/points", json=one_point({"text": "x" * (30 * 2**20)}))
    assert large.status_code == 200, "a log entry may be larger than a segment of the log"


async def test_an_optimization_that_cannot_catch_up_is_given_up_and_nothing_is_lost(
    http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "_QUIET_S", 0.05)
    monkeypatch.setattr(optimizer, "_JOURNAL_BYTES", 100)
    await http.put("/collections/docs", json={**VECTORS, "optimizers_config": {"indexing_threshold": 1}})
    (description,) = (tmp_path / "collections").glob("docs-*/collection.json")
    before = description.read_text()

    async def status() -> str:
        return str((await http.get("/collections/docs")).json()["result"]["status"])

    async def upsert(first: int) -> None:
        points = [{"id": i, "vector": [i, 1]} for i in range(first, first + 200)]
        assert (await http.put("/collections/docs/points", json={"points": points})).status_code == 200

    async with asyncio.timeout(30):
        await upsert(0)
        while await status() == "green":
            pass
        await upsert(200)
        while await status() == "yellow":
            pass
    assert description.read_text() == before, "the shard stayed as it was"
    assert (await http.post("/collections/docs/points/count", json={})).json()["result"]["count"] == 400


async def test_what_is_left_to_a_server_is_named(http: httpx.AsyncClient) -> None:
    await http.put("/collections/docs", json=VECTORS)
    query = "/collections/docs/points/query"
    quantized = {**VECTORS, "quantization_config": {"scalar": {"type": "int8"}}}
    for reply, what in (
        (await http.put("/collections/q", json=quantized), "quantization"),
        (await http.post(query, json={"query": {"recommend": {"positive": [1]}}}), "recommend"),
        (await http.post(query, json={"query": 1}), "id of a point"),
        (await http.post(query, json={"query": [1, 2], "lookup_from": {"collection": "q"}}), "lookup_from"),
    ):
        assert reply.status_code == 400
        assert what in reply.json()["status"]["error"]
        assert "QDRANT_URL" in reply.json()["status"]["error"]


async def test_a_damaged_collection_costs_only_itself(tmp_path: Path) -> None:
    async def open_store() -> tuple[Catalog, httpx.AsyncClient]:
        catalog = Catalog.open(tmp_path)
        transport = httpx.ASGITransport(app=create_app(catalog))
        return catalog, httpx.AsyncClient(transport=transport, base_url="http://store")

    catalog, http = await open_store()
    for name in ("good", "torn", "broken"):
        await http.put(f"/collections/{name}", json=VECTORS)
        await http.put(f"/collections/{name}/points", json=one_point())
    await catalog.close()
    (torn,) = (tmp_path / "collections").glob("torn-*")
    (torn / "collection.json").write_text("{")
    (broken,) = (tmp_path / "collections").glob("broken-*")
    (config,) = broken.glob("shard-*/edge_config.json")
    config.write_text("{")
    catalog, http = await open_store()
    listed = (await http.get("/collections")).json()["result"]["collections"]
    assert sorted(one["name"] for one in listed) == ["broken", "good"]
    assert (await http.post("/collections/good/points/count", json={})).json()["result"]["count"] == 1
    reply = await http.post("/collections/broken/points/count", json={})
    assert reply.status_code == 500
    assert "broken" in reply.json()["status"]["error"]
    assert torn.exists(), "what cannot be read is left for a person to look at"
    await catalog.close()
