"""Engines that hang: when what waits for one is asked of another, and when it is left where it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import pytest
from waiting import eventually

from llmops_services.gateway import engines
from llmops_services.gateway.engines import Engines, Reply, ask

MODELS = b'{"data": [{"id": "m"}]}'


class Peer:
    """An engine that answers chats when it is told to (until then it `speaks`, or not), and looks at it as `probes` says."""

    def __init__(self) -> None:
        self.probes = "answered"
        self.looks = self.chats = 0
        self.release = asyncio.Event()
        self.speaks = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET"):
                    self.looks += 1
                    if self.probes == "answered" or (self.probes == "every other one" and self.looks % 2):
                        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(MODELS), MODELS))
                    elif self.probes == "cut off":
                        break
                else:
                    await reader.readexactly(2)
                    self.chats += 1
                    await self._answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        if self.speaks:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            while not self.release.is_set():
                writer.write(b"1\r\n.\r\n")
                await asyncio.sleep(0.005)
            writer.write(b"0\r\n\r\n")
        else:
            await self.release.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async def looked_at(self, times: int) -> None:
        """Return after so many looks more."""
        before = self.looks
        await eventually(lambda: self.looks >= before + times)


@pytest.fixture
async def peers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Peer, Peer]]:
    monkeypatch.setattr(engines, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(engines, "PROBE_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(engines, "BACK_OFF_SECONDS", 0.02)
    async with Peer() as one, Peer() as other:
        yield one, other


@asynccontextmanager
async def watched(*peers: Peer) -> AsyncIterator[Engines]:
    """Engines that have been looked at."""
    known = Engines()
    known.use({peer.url: {"m"} for peer in peers})
    try:
        await eventually(lambda: known.up() == len(peers))
        yield known
    finally:
        known.close()


def chat(known: Engines, *peers: Peer) -> asyncio.Task[Reply]:
    """A chat on its way to the first one that is not asked more than the others."""
    return asyncio.create_task(ask(known.of([peer.url for peer in peers]), "m", b"{}", {}, stream=False))


async def test_what_waits_for_an_engine_that_hangs_is_asked_of_another(peers: tuple[Peer, Peer]) -> None:
    hanging, good = peers
    good.release.set()
    async with watched(*peers) as known:
        answer = chat(known, *peers)
        await eventually(lambda: hanging.chats)
        hanging.probes = "not answered"
        assert (await asyncio.wait_for(answer, 20)).first == b"{}"
    assert (hanging.chats, good.chats) == (1, 1)


async def test_the_same_on_a_connection_that_has_been_used_before(peers: tuple[Peer, Peer]) -> None:
    hanging, good = peers
    good.release.set()
    hanging.release.set()
    async with watched(*peers) as known:
        for peer in peers:
            (await chat(known, peer)).answer.close()
        hanging.release.clear()
        answer = chat(known, *peers)
        await eventually(lambda: hanging.chats == 2)
        hanging.probes = "not answered"
        assert (await asyncio.wait_for(answer, 20)).first == b"{}"
    assert (hanging.chats, good.chats) == (2, 2), "the one that hangs is not asked anew"


async def test_an_engine_that_left_the_configuration_is_given_up_too(peers: tuple[Peer, Peer]) -> None:
    hanging, good = peers
    good.release.set()
    async with watched(*peers) as known:
        answer = chat(known, *peers)
        await eventually(lambda: hanging.chats)
        hanging.probes = "not answered"
        known.use({good.url: {"m"}})
        assert (await asyncio.wait_for(answer, 20)).first == b"{}"
        looks = hanging.looks
        await good.looked_at(5)
        assert hanging.looks == looks, "nothing waits for it any more"


@pytest.mark.parametrize(
    ("probes", "speaks", "alone"),
    [
        ("every other one", False, False),
        ("not answered", True, False),
        ("cut off", False, False),
        ("not answered", False, True),
    ],
    ids=["it misses single looks", "its answer goes on", "it takes no more connections", "there is no other one"],
)
async def test_what_waits_is_left_where_it_is_when(
    peers: tuple[Peer, Peer], probes: str, speaks: bool, alone: bool
) -> None:
    busy, other = peers
    other.release.set()
    busy.speaks = speaks
    async with watched(*peers[: 1 if alone else 2]) as known:
        urls = [busy.url] if alone else [busy.url, other.url]
        answer = asyncio.create_task(ask(known.of(urls), "m", b"{}", {}, stream=speaks))
        await eventually(lambda: busy.chats)
        busy.probes = probes
        await busy.looked_at(12)
        busy.release.set()
        reply = await asyncio.wait_for(answer, 20)
        body = reply.first if reply.complete else reply.first + await reply.answer.whole()
        reply.answer.close()
    assert body.strip(b".") == (b"" if speaks else b"{}")
    assert (busy.chats, other.chats) == (1, 0)
