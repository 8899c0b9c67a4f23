"""The wire to an engine: HTTP/1.1 with kept-alive connections, written for forwarding streams.

A general client wakes three objects for each piece of a stream. This one keeps what has arrived in a list and wakes the one
task that reads it; what came in several pieces while that task was busy is handed over as one. See docs/adr/0008.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

import httptools

from llmops_services.gateway.limits import Limits


class EngineLost(Exception):
    """The engine could not be reached or went away before its answer was whole."""

    def __init__(self, message: str, *, stale: bool = False, silent: bool = False) -> None:
        super().__init__(message)
        self.stale, self.silent = stale, silent
        """`stale`: nothing came back on a connection that had been used before: it was closed while unused, the engine may be well.
        `silent`: not even its host has said anything.
        """


class Connection(asyncio.Protocol):
    """One connection to an engine that carries one exchange at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._unread = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._busy = False
        self._begun = self._complete = False
        self._stale = self._keep_alive = False
        self.exchanges = 0
        self.idle_since = 0.0
        self.heard_at = 0.0
        self.lost: str | None = None
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.head_complete = False

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, by either side."""
        if self.lost is None:  # else this side has closed it, and said why
            if self._busy and not self._complete and self.head_complete and self._until_close():
                self._complete = True
            self.lost = str(exc) if exc else "the connection was closed"
            self._stale = self.exchanges > 1 and not self._begun
        self._wake()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def pause_writing(self) -> None:
        """The engine reads a large request slowly."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """The engine has caught up."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        if not self._busy:
            self.abort("bytes without a request")
            return
        self.heard_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.abort(f"not HTTP: {error}")
            return
        if self._unread > self._limits.unread and not self._paused and self._transport is not None:
            self._transport.pause_reading()
            self._paused = True
        if self.head_complete:
            self._wake()

    # httptools' callbacks
    def on_message_begin(self) -> None:
        """Start of an answer, or of the one after an informational 1xx."""
        self.headers = {}
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head has been read."""
        self.status = self._parser.get_status_code()
        self.head_complete = self.status >= 200

    def on_body(self, body: bytes) -> None:
        """A piece of the body, free of the transfer encoding."""
        self._pieces.append(body)
        self._unread += len(body)

    def on_message_complete(self) -> None:
        """The end of the answer."""
        if self.head_complete:
            self._keep_alive = self._parser.should_keep_alive()
            self._complete = True

    # one exchange
    async def begin(self, head: bytes, body: bytes) -> None:
        """Send a request and wait for the head of its answer. Raises `EngineLost`."""
        transport = self._transport
        if transport is None or self.lost is not None:
            raise EngineLost(self.lost or "not connected", stale=self.exchanges > 0)
        self._busy, self._begun, self._complete, self.head_complete = True, False, False, False
        self.exchanges += 1
        transport.write(head + body if len(body) < 65536 else head)
        if len(body) >= 65536:
            transport.write(body)
        if self._writable is not None:
            await self._writable
        while not self.head_complete:
            if self.lost is not None:
                raise EngineLost(self.lost, stale=self._stale)
            await self._wait()

    async def read(self) -> bytes:
        """What has come of the body since the last call, b"" at its end. Raises `EngineLost` when it ends too early."""
        while not self._pieces:
            if self._complete:
                return b""
            if self.lost is not None:
                raise EngineLost(self.lost)
            await self._wait()
        pieces, self._pieces, self._unread = self._pieces, [], 0
        if self._paused and self._transport is not None and self.lost is None:
            self._transport.resume_reading()
            self._paused = False
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def at_end(self) -> bool:
        """Whether everything has come and been read."""
        return self._complete and not self._pieces

    def reusable(self) -> bool:
        """Whether another request may be sent; the state of the last exchange is cleared."""
        if self.lost is not None or not self._complete or not self._keep_alive or self._paused:
            return False
        self._busy = False
        self._pieces, self._unread = [], 0
        self.idle_since = time.monotonic()
        return True

    def abort(self, why: str = "aborted") -> None:
        """Close at once: an engine stops generating for a client that is gone."""
        if self.lost is None:
            self.lost = why
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _until_close(self) -> bool:
        return b"content-length" not in self.headers and b"chunked" not in self.headers.get(b"transfer-encoding", b"")

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
