"""Thin ASGI pieces for the busy routes: bodies with a limit, whole answers, and clients that go away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from starlette.types import Receive, Scope, Send

from llmops_services.gateway.errors import ApiError

Headers = Sequence[tuple[bytes, bytes]]
JSON = (b"content-type", b"application/json")
DRAINED = 4


def header(scope: Scope, name: bytes) -> bytes | None:
    """A request header (lower-case name)."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The request's body. Raises `ClientGone`, and `ApiError` 413 when it is longer than `limit` bytes: after it has been read (up
    to `DRAINED` times the limit), because a client that is still writing would see a broken connection instead of the answer.
    """
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size <= limit:
            pieces.append(piece)
        else:
            pieces.clear()
        if size > DRAINED * limit or (size > limit and not message.get("more_body")):
            raise too_large(limit)
        if not message.get("more_body"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def too_large(limit: int) -> ApiError:
    """The answer to a body beyond the limit."""
    return ApiError(413, f"The request body is larger than {limit} bytes.", code="request_too_large")


async def reply(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """A whole answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


class ClientGone(Exception):
    """The client closed its connection before its answer was whole."""


class WhileConnected:
    """A block that is cut short with `ClientGone` as soon as the client closes its connection.

    Use it after the whole body has been received: what comes from `receive` then is the end of the connection.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watch = asyncio.ensure_future(self._wait())
        return self

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        if self._gone and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise ClientGone from error
