"""Exchanges with one engine: a request, its answer, and the pool of connections that carry them."""

from __future__ import annotations

import asyncio
import base64
import errno
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from llmops_api.reasons import FailureReason
from llmops_services.gateway.connection import Connection, EngineLost
from llmops_services.gateway.limits import LIMITS, Limits
from llmops_services.program import UserError


class Answer:
    """An engine's answer, its head read: `status`, `headers` (lower case), and the body by `read` or `whole`.

    A context manager: left before the end of the body, it closes the connection, which stops the generation.
    """

    def __init__(self, connection: Connection, pool: ConnectionPool) -> None:
        self._connection, self._pool = connection, pool
        self._closed = False
        self.on_close: Callable[[], None] | None = None
        self.status, self.headers = connection.status, connection.headers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def read(self) -> bytes:
        """What has come since the last call; b"" at the end. Raises `EngineLost`."""
        return await self._connection.read()

    async def whole(self) -> bytes:
        """The rest of the body. Raises `EngineLost`, also when it is larger than `Limits.answer`."""
        pieces, size = [], 0
        while piece := await self._connection.read():
            pieces.append(piece)
            size += len(piece)
            if size > self._pool.limits.answer:
                raise EngineLost(f"the answer is larger than {self._pool.limits.answer} bytes")
        return b"".join(pieces)

    def close(self) -> None:
        """Give the connection back, or cut it when the body has not been read to its end."""
        if self._closed:
            return
        self._closed = True
        self._pool.take_back(self._connection)
        if self.on_close is not None:
            self.on_close()


class ConnectionPool:
    """Connections to one engine; as many as there are requests under way, the unused ones kept for a while."""

    def __init__(self, url: str, *, api_key: str | None = None, limits: Limits = LIMITS) -> None:
        self.url, self.limits = url.rstrip("/"), limits
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                FailureReason.CONFIG_INVALID, f"engines: {url!r} is no address; write one like http://host:8000"
            )
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/")
        netloc = parts.netloc.rpartition("@")[2]
        fixed = {"host": netloc, "accept-encoding": "identity", "user-agent": "llmops-gateway"}
        if (authorization := _authorization(parts, api_key)) is not None:
            fixed["authorization"] = authorization
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        self._idle: deque[Connection] = deque()
        self._used: set[Connection] = set()
        self._closed = False

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request; the answer comes back when its head has been read. `path` begins with /v1. Raises `EngineLost`."""
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._fixed}"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        for name, value in (headers or {}).items():
            head += f"{name}: {value}\r\n"
        encoded = (head + "\r\n").encode("latin-1")
        while True:
            connection = self._unused() or await self._open()
            self._used.add(connection)
            try:
                await connection.begin(encoded, body)
            except EngineLost as error:
                self.take_back(connection)
                if error.stale:
                    continue
                raise
            except BaseException:
                self.take_back(connection)
                raise
            return Answer(connection, self)

    def take_back(self, connection: Connection) -> None:
        """Keep a connection whose answer has been read to the end, close any other."""
        self._used.discard(connection)
        if (
            not self._closed
            and connection.at_end
            and len(self._idle) < self.limits.idle_connections
            and connection.reusable()
        ):
            self._idle.append(connection)
        else:
            connection.abort()

    def heard_since(self, moment: float) -> bool:
        """Whether anything of the answers under way has come since then, in the event loop's time."""
        return any(connection.heard_at > moment for connection in self._used)

    def cut(self, why: str) -> int:
        """End all exchanges under way with an `EngineLost`; how many there were."""
        for connection in self._used:
            connection.abort(why)
        return len(self._used)

    def close_unused(self, *, older_than: float = 0.0) -> None:
        """Close the connections that have not been used for `older_than` seconds."""
        limit = time.monotonic() - older_than
        while self._idle and (self._idle[0].idle_since <= limit or self._idle[0].lost is not None):
            self._idle.popleft().abort()

    def close(self) -> None:
        """Close all unused connections, and those in use when their answer ends."""
        self._closed = True
        self.close_unused()

    def _unused(self) -> Connection | None:
        limit = time.monotonic() - self.limits.idle_seconds
        while self._idle:
            connection = self._idle.pop()
            if connection.lost is None and connection.idle_since > limit:
                return connection
            connection.abort()
        return None

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.connect_seconds):
                _, connection = await loop.create_connection(
                    lambda: Connection(self.limits), self._host, self._port, ssl=self._ssl
                )
        except TimeoutError as error:
            raise EngineLost(
                f"no connection to {self._host}:{self._port} in {self.limits.connect_seconds} s", silent=True
            ) from error
        except (OSError, ssl.SSLError) as error:
            silent = error.errno == errno.EHOSTUNREACH
            raise EngineLost(f"no connection to {self._host}:{self._port}: {error}", silent=silent) from error
        return connection


def _authorization(parts: SplitResult, api_key: str | None) -> str | None:
    if api_key:
        return f"Bearer {api_key}"
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return "Basic " + base64.b64encode(pair.encode()).decode()
    return None
