"""The wire to what is loaded: kept-alive HTTP/1.1 connections, each with one POST at a time, and what its answer took."""

from __future__ import annotations

import asyncio
import collections
import itertools
import re
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

CONTENT = re.compile(rb'"content": ?"[^"]')
LOOPBACK = {"127.0.0.1", "localhost"}
now = time.monotonic  # not loop.time(): uvloop's has a resolution of 1 ms


@dataclass(frozen=True)
class Target:
    """An address to load."""

    name: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, name: str, url: str) -> Target:
        """Raises `ValueError` for an address that is not on this machine."""
        parts = urllib.parse.urlsplit(url)
        if parts.hostname not in LOOPBACK or not parts.port:
            raise ValueError(f"{url!r}: write http://127.0.0.1:PORT/path; load goes to the loopback only")
        return cls(name, "127.0.0.1", parts.port, parts.path or "/v1/chat/completions")


@dataclass(slots=True)
class Result:
    """One request. Seconds from its scheduled start; status 0 when no whole answer came."""

    started: float = 0.0
    status: int = 0
    ttft: float | None = None
    total: float = 0.0
    error: str | None = None


class Call(asyncio.Protocol):
    """One kept-alive connection that makes one POST at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Result] | None = None
        self._result = Result()
        self._stream = self._chunked = self._in_body = False
        self._length: int | None = None
        self._buffer, self._body = bytearray(), bytearray()
        self._searched = 0
        self.lost = False
        self.close_after = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer without a length ends so, any other fails."""
        self.lost = True
        if self._done is not None and not self._done.done():
            if self._result.status and self._length is None and not self._chunked:
                self._complete()
            else:
                self._fail(f"connection lost: {exc or 'closed by the server'}")

    def post(self, request: bytes, started: float, stream: bool) -> asyncio.Future[Result]:
        """Send a request; the future ends with its answer."""
        assert self._transport is not None
        self._result, self._stream = Result(started), stream
        self._buffer, self._body, self._searched = bytearray(), bytearray(), 0
        self._length, self._chunked, self._in_body, self.close_after = None, False, False, False
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        if self._done is None or self._done.done():
            return
        self._buffer += data
        if not self._in_body and not self._read_head():
            return
        try:
            self._read_body()
        except (ValueError, IndexError) as error:
            self._fail(f"bad framing: {error}")

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[:end]).lower()
        self._result.status = int(head[9:12])
        self._chunked = b"transfer-encoding: chunked" in head
        match = re.search(rb"content-length: *(\d+)", head)
        self._length = int(match[1]) if match else None
        self.close_after = b"connection: close" in head
        del self._buffer[: end + 4]
        self._in_body = True
        return True

    def _read_body(self) -> None:
        ended = False
        if self._chunked:
            while not ended:
                end = self._buffer.find(b"\r\n")
                if end < 0:
                    break
                size = int(bytes(self._buffer[:end]).partition(b";")[0], 16)
                if len(self._buffer) < end + 2 + size + 2:
                    break
                self._body += self._buffer[end + 2 : end + 2 + size]
                del self._buffer[: end + 2 + size + 2]
                ended = size == 0
        else:
            self._body += self._buffer
            self._buffer.clear()
            ended = self._length is not None and len(self._body) >= self._length
        if self._result.ttft is None and (CONTENT.search(self._body, self._searched) if self._stream else self._body):
            self._result.ttft = now() - self._result.started
        self._searched = max(0, len(self._body) - 16)
        if ended:
            self._complete()

    def _complete(self) -> None:
        result = self._result
        result.total = now() - result.started
        if result.status != 200:
            result.error = f"{result.status}: {bytes(self._body[:200]).decode(errors='replace')}"
        elif self._stream and b"data: [DONE]" not in self._body[-64:]:
            result.error = f"stream ended without [DONE]: ...{bytes(self._body[-120:]).decode(errors='replace')}"
        elif self._stream and b'data: {"error"' in self._body:
            result.error = "the stream holds an error"
        self._end()

    def _fail(self, why: str) -> None:
        self._result.status, self._result.error = 0, why
        self._result.total = now() - self._result.started
        self._end()

    def _end(self) -> None:
        assert self._done is not None
        self._done.set_result(self._result)


class Client:
    """A pool of connections to one target and the prepared requests, used in turn."""

    def __init__(self, target: Target, bodies: Sequence[bytes], *, stream: bool, timeout: float) -> None:
        self._target, self._stream, self._timeout = target, stream, timeout
        self._idle: collections.deque[Call] = collections.deque()
        self._requests = itertools.cycle([self._request(body) for body in bodies])

    def _request(self, body: bytes) -> bytes:
        target = self._target
        head = (
            f"POST {target.path} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def once(self, started: float) -> Result:
        """One request, whose time counts from `started`."""
        request, call = next(self._requests), None
        while self._idle and (call is None or call.lost):
            call = self._idle.pop()
        try:
            async with asyncio.timeout(started + self._timeout - now()):
                if call is None or call.lost:
                    loop = asyncio.get_running_loop()
                    _, call = await loop.create_connection(Call, self._target.host, self._target.port)
                result = await call.post(request, started, self._stream)
        except TimeoutError:
            if call is not None:
                call.abort()
            return Result(started, total=now() - started, error=f"no whole answer in {self._timeout} s")
        except OSError as error:
            return Result(started, total=now() - started, error=f"{type(error).__name__}: {error}")
        if not call.lost and not call.close_after and result.status:
            self._idle.append(call)
        else:
            call.abort()
        return result

    def close(self) -> None:
        """Close all connections."""
        for call in self._idle:
            call.abort()
        self._idle.clear()
