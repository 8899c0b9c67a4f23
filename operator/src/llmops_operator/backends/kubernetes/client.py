"""The one client that every request to the API server goes through: writes are fenced and counted, pushed-back ones tried again."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.client.rest import RESTResponse

from llmops_operator.controllers.ports import Conflict, NotFound, Refused, Unavailable

log = logging.getLogger(__name__)

FIELD_MANAGER = "llmops-operator"
RETRIED = frozenset({429, 500, 502, 503, 504})
TRIES = 5
NO_RIGHT_MISSING = ("exceeded quota", "webhook", "PodSecurity", "LimitRange", "is being terminated")
"""In the message of a 403 that no grant would help against; the last is said of a namespace."""
LONGEST_PAUSE = 10.0
CLOSING_SECONDS = 0.25
"""TLS connections end with a word to the other side and back, for which a loop has to go on so long."""
PAGE = 250
"""Objects that are asked for at once."""
CONNECTIONS = 64
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"

Guard = Callable[[], float]
"""Called before every write: for how many seconds this process may go on writing. Raises when it may not."""


class WriteMeter(Protocol):
    """Is told about each write to the API server."""

    def wrote(self, verb: str, resource: str, code: int) -> None:
        """A request that may change something was answered with `code`, 0 when it was not answered."""


class Client(ApiClient):
    """`kubernetes.aio`'s client with the guard before every write. Its own and the dynamic client's calls all end in `call_api`."""

    def __init__(
        self, configuration: Configuration, *, guard: Guard | None = None, meter: WriteMeter | None = None
    ) -> None:
        super().__init__(configuration)
        self._guard, self._meter = guard, meter

    async def close(self) -> None:
        """Close all connections."""
        await super().close()  # type: ignore[no-untyped-call]
        await asyncio.sleep(CLOSING_SECONDS)

    async def call_api(self, method: str, url: str, *arguments: Any, **options: Any) -> RESTResponse:
        """Send a request. What the server pushes back (429, 5xx) is sent again after the pause it asks for, a few times."""
        writes = method not in ("GET", "HEAD", "OPTIONS")
        for number in range(1, TRIES + 1):
            if writes and self._guard:
                options["_request_timeout"] = min(options.get("_request_timeout") or 30.0, self._guard())
            try:
                response = await super().call_api(method, url, *arguments, **options)
            except (aiohttp.ClientError, TimeoutError, OSError):
                self._count(writes, method, url, 0)
                raise
            self._count(writes, method, url, response.status)
            if response.status not in RETRIED or number == TRIES:
                break
            pause = _pause(response.headers.get("Retry-After"), number)
            await response.read()  # type: ignore[no-untyped-call]
            log.debug("%s %s was answered with %d, again in %.1f s", method, url, response.status, pause)
            await asyncio.sleep(pause)
        return response

    def _count(self, writes: bool, method: str, url: str, code: int) -> None:
        if writes and self._meter:
            self._meter.wrote(method.lower(), resource_of(url), code)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        seconds: float = 30.0,
    ) -> Any:
        """The JSON that the server answers. Raises `NotFound`, `Conflict`, `Unavailable`, or `ApiException` for what is a bug here."""
        headers = {"Content-Type": content_type, "Accept": accept}
        serialized = await self.param_serialize(method, path, header_params=headers, auth_settings=["BearerToken"])
        url = serialized[1] + (f"?{urlencode(query)}" if query else "")
        try:
            response = await self.call_api(method, url, serialized[2], body, None, _request_timeout=seconds)
            data = await response.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"the API server does not answer ({type(error).__name__}: {error}); it is asked again"
            ) from None
        if 200 <= response.status < 300:
            return orjson.loads(data)
        raise failure(response.status, data, method, path)

    async def pages(
        self, path: str, *, query: Mapping[str, str] | None = None, accept: str = "application/json"
    ) -> AsyncIterator[Mapping[str, Any]]:
        """A list in parts, all of the same moment. Raises `Unavailable`, too, when that moment is forgotten before the end."""
        asked = {**(query or {}), "limit": str(PAGE)}
        while True:
            try:
                page = await self.ask("GET", path, query=asked, accept=accept)
            except ApiException as error:
                if error.status != 410:
                    raise
                raise Unavailable(f"the list of {path} took too long; it is begun again") from None
            yield page
            if not (token := page["metadata"].get("continue")):
                return
            asked["continue"] = token


def failure(code: int, data: bytes, method: str, path: str) -> Exception:
    """What an answer that is none means."""
    try:
        said = str(orjson.loads(data).get("message", ""))
    except (ValueError, AttributeError):
        said = data[:200].decode(errors="replace")
    match code:
        case 404:
            return NotFound(said or path)
        case 409:
            return Conflict(said or path)
        case 403 if any(word in said for word in NO_RIGHT_MISSING):
            return Refused(f"the API server refuses it: {said}")
        case 422:
            return Refused(f"the API server refuses it: {said}")
        case 401 | 403:
            return Refused(
                f"the operator may not: {said}; grant it (the chart's ClusterRole, or its Roles, do: run helm upgrade with the chart of "
                "this operator's version); it is tried again"
            )
        case _ if code in RETRIED:
            return Unavailable(f"the API server is overloaded or failing ({code}: {said}); it is asked again")
        case _:
            return ApiException(status=code, reason=f"{method} {path}: {said}")


def resource_of(url: str) -> str:
    """`trainingjobs/status` of `https://host/apis/llmops.dev/v1alpha1/namespaces/a/trainingjobs/b/status?fieldManager=…`."""
    parts = url.split("?", 1)[0].split("://", 1)[-1].split("/")[1:]
    after = parts[2:] if parts[:1] == ["api"] else parts[3:]
    if after[:1] == ["namespaces"] and len(after) > 2:
        after = after[2:]
    return "/".join([after[0], *after[2:3]]) if after else "unknown"


def _pause(retry_after: str | None, number: int) -> float:
    try:
        least = float(retry_after or 0)
    except ValueError:
        least = 0.0
    return min(LONGEST_PAUSE, max(least, 0.1 * 2.0**number)) * (1 + 0.2 * random.random())  # noqa: S311


async def configuration() -> Configuration:
    """How the API server is reached: the pod's service account, or else the kubeconfig."""
    found = Configuration()
    try:
        kube_config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
    except kube_config.ConfigException:
        await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=os.environ.get("KUBECONFIG"), client_configuration=found
        )
    found.connection_pool_maxsize = CONNECTIONS
    server = urlsplit(str(found.host))
    if not found.proxy and not proxy_bypass(server.hostname or ""):
        found.proxy = getproxies().get(server.scheme)
    # The session would look for a proxy and into ~/.netrc in a thread, at every request.
    found.client_session_kwargs = {"trust_env": False}
    return found
