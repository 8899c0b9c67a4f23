"""What is said when collections cannot be dropped: what to look at, and never the key. Against a vector store, and against what is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from aiohttp import web
from either_store import DENSE
from qdrant_client import QdrantClient
from waiting import eventually

from llmops_operator.controllers import vector_store
from llmops_operator.controllers.ports import NotYet, Unavailable
from llmops_operator.controllers.vector_store import AT_ONCE, QdrantCollections
from llmops_services.vectorstore.process import StoreProcess

pytestmark = pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
KEY = "7f0cbb6e"


class Place:
    """Where the store is said to be."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url, self.key = url, key
        self.collections = QdrantCollections(self._address)

    async def _address(self) -> tuple[str, str | None]:
        return self.url, self.key

    async def refusal(self) -> str:
        """Why nothing can be dropped there."""
        with pytest.raises(Unavailable) as refused:
            await self.collections.drop("team.docs", "u")
        assert self.url in str(refused.value)
        assert KEY not in str(refused.value)
        return str(refused.value)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    with StoreProcess(tmp_path_factory.mktemp("store"), {"QDRANT_API_KEY": KEY}) as process:
        yield process


@asynccontextmanager
async def serving(handler: Callable[[web.Request], object]) -> AsyncIterator[Place]:
    """A server that answers everything so."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Place(f"http://127.0.0.1:{runner.addresses[0][1]}", KEY)
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("key", [None, "another"])
async def test_a_wrong_key_is_said_to_be_wrong(store: StoreProcess, key: str | None) -> None:
    assert (await Place(store.url, key).refusal()).endswith("refuses the key: correct QDRANT_API_KEY")


async def test_a_key_that_was_corrected_is_taken_at_the_next_try(store: StoreProcess) -> None:
    client = QdrantClient(url=store.url, api_key=KEY, check_compatibility=False, timeout=30)
    client.create_collection("team.docs.0123456789", vectors_config=DENSE, metadata={"llmops": {"uid": "u"}})
    place = Place(store.url, "another")
    await place.refusal()
    place.key = KEY
    await place.collections.drop("team.docs", "u")
    assert client.get_collections().collections == []
    client.close()


async def test_a_key_that_no_header_can_carry_is_not_repeated(store: StoreProcess) -> None:
    with pytest.raises(Unavailable, match="write it anew, without a line's end") as refused:
        await Place(store.url, f"{KEY}\n").collections.drop("team.docs", "u")
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nobody.invalid:6333", "qdrant:6333", "http://[::1"])
async def test_a_store_that_cannot_be_reached_is_named(url: str) -> None:
    assert "see whether it runs" in await Place(url, KEY).refusal()


ANSWERS: dict[str, tuple[Callable[[], web.Response], int]] = {
    "a redirect": (lambda: web.Response(status=307, headers={"Location": "http://127.0.0.1:9/"}), 307),
    "a page": (lambda: web.Response(text="<html>", content_type="text/html"), 200),
    "nothing": (lambda: web.Response(), 200),
    "a list": (lambda: web.json_response([]), 200),
    "a result of another shape": (lambda: web.json_response({"result": {"collections": ["a"]}}), 200),
    "no result": (lambda: web.json_response({"result": None}), 200),
    "no such page": (lambda: web.Response(status=404), 404),
    "its own trouble": (lambda: web.json_response({"status": {"error": "out of memory"}}, status=500), 500),
}


@pytest.mark.parametrize(("answer", "status"), ANSWERS.values(), ids=ANSWERS)
async def test_what_does_not_answer_as_qdrant_does_is_told_from_it(
    answer: Callable[[], web.Response], status: int
) -> None:
    async def handler(_: web.Request) -> web.Response:
        return answer()

    async with serving(handler) as place:
        said = await place.refusal()
    assert f"answers GET /collections with {status}, and not as Qdrant does" in said


async def test_a_collection_that_goes_meanwhile_is_gone() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/collections":
            return web.json_response({"result": {"collections": [{"name": "team.docs.0123456789"}]}})
        return web.json_response({"status": {"error": "Not found"}}, status=404)

    async with serving(handler) as place:
        await place.collections.drop("team.docs", "u")


async def test_a_store_that_hangs_is_left_and_holds_up_only_some(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        await asyncio.sleep(60)
        return web.Response()

    monkeypatch.setattr(vector_store, "TIMEOUT", httpx.Timeout(5.0, read=1.0))
    async with serving(handler) as place:
        hanging = [asyncio.create_task(place.refusal()) for _ in range(AT_ONCE)]
        await eventually(lambda: asked == AT_ONCE)
        with pytest.raises(NotYet):
            await place.collections.drop("team.docs", "u")
        assert all("does not answer (ReadTimeout)" in said for said in await asyncio.gather(*hanging))
        assert "ReadTimeout" in await place.refusal()


async def test_a_store_that_answers_without_an_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b" ")
            await asyncio.sleep(0.05)

    monkeypatch.setattr(vector_store, "SECONDS", 0.5)
    async with serving(handler) as place:
        assert "has not dropped all within 0.5 s" in await place.refusal()
