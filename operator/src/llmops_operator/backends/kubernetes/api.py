"""Lists, watches and writes of any kind of objects, by way of the one client; nothing is kept here, and every call has an end.

The generated classes of the Kubernetes client know no RayJob, and make Python objects of what is only looked through once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
import orjson

from llmops_operator.backends.kubernetes.client import MERGE_PATCH, Client, failure
from llmops_operator.backends.kubernetes.rendering.names import MANAGER
from llmops_operator.controllers.ports import Conflict, NotFound, Unavailable

APPLY_PATCH = "application/apply-patch+yaml"
NOBODYS_VERSION = "1"
"""That of an empty etcd: to apply this version of an object is to create it, or to be told that there is another."""
CONNECT_SECONDS = 30
WATCH_SECONDS = 290
"""The server ends a watch after this long, and a new one is begun: one that died unseen is noticed by then."""

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Resource:
    """A kind as the API server addresses it."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Of one object, or of all of a namespace, or of all."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        parts = [root, *(["namespaces", namespace] if namespace else []), self.plural]
        return "/".join([*parts, *([name] if name else []), *([subresource] if subresource else [])])


class Gone(Exception):
    """The history that a watch asked for is no longer there: list anew."""


class Api:
    """Raises `Conflict`, `NotFound` and `Unavailable` as the client does."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def pages(self, resource: Resource, *, namespace: str | None, selector: str) -> AsyncIterator[Manifest]:
        """The list of all objects in parts, each with the resourceVersion that a watch begins at."""
        return self._client.pages(resource.path(namespace), query={"labelSelector": selector})

    async def watch(
        self, resource: Resource, version: str, *, namespace: str | None, selector: str
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """Changes since `version` as (ADDED | MODIFIED | DELETED | BOOKMARK, object). Ends by itself. Raises `Gone`, too."""
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
            "labelSelector": selector,
        }
        within = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=WATCH_SECONDS + 30)
        async with aclosing(self._lines(f"{resource.path(namespace)}?{urlencode(query)}", within)) as lines:
            async for line in lines:
                event = orjson.loads(line)
                found = event["object"]
                if event["type"] == "ERROR":
                    if found.get("code") == 410:
                        raise Gone(found.get("message", ""))
                    raise Unavailable(
                        f"the watch of {resource.plural} ended: {found.get('message')}; it is begun again"
                    )
                yield event["type"], found

    async def read(self, resource: Resource, namespace: str, name: str) -> Manifest:
        """One object."""
        found: Manifest = await self._client.ask("GET", resource.path(namespace, name))
        return found

    async def any(self, resource: Resource, *, namespace: str, selector: str) -> bool:
        """Whether there is one at this moment. A list or a watch may tell of an earlier one."""
        found = await self._client.ask("GET", resource.path(namespace), query={"labelSelector": selector, "limit": "1"})
        return bool(found["items"])

    async def warnings(self, namespace: str, uid: str) -> tuple[str, ...]:
        """What Warning events say about an object, the oldest first."""
        query = {"fieldSelector": f"involvedObject.uid={uid},type=Warning", "limit": "100"}
        found = await self._client.ask("GET", f"/api/v1/namespaces/{namespace}/events", query=query)
        events = sorted(found["items"], key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
        return tuple(str(event.get("message") or "") for event in events)

    async def log(self, resource: Resource, namespace: str, name: str, **query: str | int) -> str:
        """The log of a pod."""
        within = aiohttp.ClientTimeout(total=CONNECT_SECONDS)
        path = f"{resource.path(namespace, name, 'log')}?{urlencode(query)}"
        async with aclosing(self._lines(path, within)) as lines:
            return "\n".join([line.decode(errors="replace") async for line in lines])

    async def apply(self, resource: Resource, manifest: Manifest, *, anew: bool = False) -> Manifest:
        """Server-side apply: the fields of `manifest` are ours, whoever set them. With `anew`, `Conflict` when there is such an object."""
        metadata = manifest["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": MANAGER, "force": "true"}
        body = {**manifest, "metadata": {**metadata, "resourceVersion": NOBODYS_VERSION}} if anew else dict(manifest)
        found: Manifest = await self._client.ask("PATCH", path, query=query, body=body, content_type=APPLY_PATCH)
        return found

    async def merge(self, resource: Resource, namespace: str, name: str, patch: Manifest) -> Manifest:
        """A merge patch."""
        path, query = resource.path(namespace, name), {"fieldManager": MANAGER}
        found: Manifest = await self._client.ask("PATCH", path, query=query, body=dict(patch), content_type=MERGE_PATCH)
        return found

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str, owning: bool = False) -> None:
        """Have this very object go; one that owns others after all of them. That it is gone already is no error."""
        options = {"propagationPolicy": "Foreground" if owning else "Background", "preconditions": {"uid": uid}}
        try:
            await self._client.ask("DELETE", resource.path(namespace, name), body=options)
        except (NotFound, Conflict):
            return

    async def _lines(self, path: str, within: aiohttp.ClientTimeout) -> AsyncGenerator[bytes, None]:
        """The lines of an answer as they come, of any length: an object may be a MiB, and aiohttp's own lines end at 64 KiB."""
        _, url, headers, *_ = await self._client.param_serialize(
            "GET", path, header_params={"Accept": "application/json, */*"}, auth_settings=["BearerToken"]
        )
        try:
            answer = await self._client.call_api("GET", url, headers, _request_timeout=within)
            if answer.status == 410:
                raise Gone
            if answer.status >= 400:
                raise failure(answer.status, await answer.read(), "GET", path)  # type: ignore[no-untyped-call]
            response: aiohttp.ClientResponse = answer.response
            try:
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line:
                            yield line
                if rest:
                    yield rest
            finally:
                response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"GET {path.split('?')[0]} was cut: {error or 'no answer'}; it is tried again") from error
