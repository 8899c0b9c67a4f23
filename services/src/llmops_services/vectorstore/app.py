"""The routes: Qdrant's paths, envelopes and status codes around a `Catalog`."""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .catalog import Catalog
from .errors import StoreError, disk_full
from .routes import ROUTES, Handler

log = logging.getLogger(__name__)

API_VERSION = "1.20.0"
"""The version of Qdrant's REST API that is spoken here; clients warn when theirs is more than a minor version away."""
_OPEN_PATHS = ("/", "/healthz", "/readyz", "/livez")


def create_app(catalog: Catalog, api_key: str | None = None) -> ASGIApp:
    """The ASGI application. It closes the catalog when it is shut down."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        flushing = asyncio.create_task(catalog.flush_regularly())
        yield
        await catalog.close()
        await flushing

    routes = [Route(path, _endpoint(catalog, handler), methods=[method]) for method, path, handler in ROUTES]
    routes += [Route(path, _alive, methods=["GET"]) for path in ("/healthz", "/readyz", "/livez")]
    app = Starlette(
        routes=[Route("/", _version, methods=["GET"]), *routes],
        lifespan=lifespan,
        exception_handlers={404: _no_such_route, 405: _no_such_route},
    )
    return _RequireApiKey(app, api_key) if api_key else app


class _RequireApiKey:
    """Lets through requests that carry the key in the header `api-key` or as a bearer token; 401 otherwise, as Qdrant."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            headers = dict(scope["headers"])
            given = headers.get(b"api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not given:
                refusal = PlainTextResponse("Must provide an API key or an Authorization bearer token", 401)
                return await refusal(scope, receive, send)
            if not hmac.compare_digest(given, self._key):
                return await PlainTextResponse("Invalid API key or JWT", 401)(scope, receive, send)
        return await self._app(scope, receive, send)


def _endpoint(catalog: Catalog, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        start = time.perf_counter()
        try:
            result = await handler(catalog, request)
        except Exception as error:
            failure = _failure(request, error)
            return _reply({"status": {"error": str(failure)}}, start, failure.status)
        return _reply({"result": result, "status": "ok"}, start)

    return endpoint


def _failure(request: Request, error: Exception) -> StoreError:
    if isinstance(error, StoreError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(f"{error}; free some and send the request again, nothing was changed")
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return StoreError(500, f"Service internal error: {error}")


def _reply(envelope: dict[str, Any], start: float, status: int = 200) -> Response:
    envelope["time"] = time.perf_counter() - start
    return Response(orjson.dumps(envelope), status, media_type="application/json")


async def _version(_: Request) -> Response:
    title = {"title": "qdrant - vector search engine", "version": API_VERSION}
    return Response(orjson.dumps(title), media_type="application/json")


async def _alive(_: Request) -> Response:
    return PlainTextResponse("healthz check passed")


async def _no_such_route(request: Request, _: Exception) -> Response:
    message = (
        f"the embedded vector store does not implement {request.method} {request.url.path}; "
        "set QDRANT_URL to the address of a Qdrant server"
    )
    return _reply({"status": {"error": f"Not found: {message}"}}, time.perf_counter(), 404)
