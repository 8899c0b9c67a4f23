"""Between a client and the API server: what is written is noted, and harm is done as told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web
from yarl import URL

from harness.api_server import ApiServer

Answer = tuple[int, dict[str, str]]
"""A status, and headers."""
_NOT_FORWARDED = frozenset({"host", "connection", "transfer-encoding", "content-length", "authorization"})


@dataclass(frozen=True)
class Write:
    """What the API server was asked to change, and its answer."""

    method: str
    path: str
    body: bytes
    code: int
    version: str = ""
    """What the object is since: the same as before when nothing has changed."""


class Proxy:
    """Speaks HTTP without TLS, as the administrator, to clients that have its `kubeconfig`."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self.kubeconfig = Path()
        self.writes: list[Write] = []
        """Those that reached the API server."""
        self.instead: Callable[[str, str], Answer | None] = lambda method, path: None
        """What a write to a path is answered with; None has it forwarded."""
        self.loses: Callable[[str, str], bool] = lambda method, path: False
        """Whether the connection breaks when a write was made and before its answer is sent."""
        self._open: set[asyncio.Transport] = set()
        self._loop = asyncio.new_event_loop()

    def cut(self) -> None:
        """Break all watches."""

        def abort() -> None:
            for one in self._open:
                one.abort()

        self._loop.call_soon_threadsafe(abort)

    @contextmanager
    def running(self, folder: Path) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        thread.start()
        try:
            port = asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result(30)
            self.kubeconfig = folder / "proxied.kubeconfig"
            self.kubeconfig.write_text(_kubeconfig(f"http://127.0.0.1:{port}"))
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    async def _begin(self) -> int:
        connector = aiohttp.TCPConnector(ssl=self._server.tls(), limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _end(self) -> None:
        await self._runner.cleanup()
        await self._session.close()
        await asyncio.sleep(0.25)  # connections with TLS are closed a moment later

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            return await (self._read(request) if request.method == "GET" else self._write(request))
        except aiohttp.ClientError:  # the API server is away: so is this
            return _broken(request)

    async def _write(self, request: web.Request) -> web.StreamResponse:
        method, path, body = request.method, request.path, await request.read()
        if (said := self.instead(method, path)) is not None:
            return web.json_response({"message": "pushed back"}, status=said[0], headers=said[1])
        async with self._forward(request, body) as answer:
            content = await answer.read()
            self.writes.append(Write(method, path, body, answer.status, _version(content)))
            if self.loses(method, path):
                return _broken(request)
            return web.Response(body=content, status=answer.status, headers=_passed_on(answer.headers))

    async def _read(self, request: web.Request) -> web.StreamResponse:
        async with self._forward(request, None) as answer:
            response = web.StreamResponse(status=answer.status, headers=_passed_on(answer.headers))
            await response.prepare(request)
            connection = request.transport
            assert connection is not None
            self._open.add(connection)
            try:
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            except ConnectionResetError:
                return response
            finally:
                self._open.discard(connection)
            await response.write_eof()
            return response

    def _forward(self, request: web.Request, body: bytes | None) -> aiohttp.client._RequestContextManager:
        url = URL(self._server.url + request.raw_path, encoded=True)
        return self._session.request(request.method, url, data=body, headers=_passed_on(request.headers))


def _passed_on(headers: aiohttp.typedefs.LooseHeaders) -> dict[str, str]:
    return {name: value for name, value in dict(headers).items() if str(name).lower() not in _NOT_FORWARDED}


def _version(content: bytes) -> str:
    try:
        return str(json.loads(content)["metadata"]["resourceVersion"])
    except (ValueError, KeyError, TypeError):
        return ""


def _broken(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _kubeconfig(url: str) -> str:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxied", "cluster": {"server": url}}],
        "users": [{"name": "anybody", "user": {}}],
        "contexts": [{"name": "proxied", "context": {"cluster": "proxied", "user": "anybody"}}],
        "current-context": "proxied",
    }
    return json.dumps(config)
