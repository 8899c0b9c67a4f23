"""The collections of deleted indexes, dropped over Qdrant's REST API: a program started for it would need a namespace to run in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from llmops_api.names import COLLECTION_METADATA, is_version_of
from llmops_api.programs import Env
from llmops_operator.controllers.ports import NotYet, Unavailable

log = logging.getLogger(__name__)

AT_ONCE = 4
"""The collections of so many indexes are dropped at the same time: a store that hangs holds up so many workers at most."""
SECONDS = 20.0
"""How long that may take for one index. What is not done by then goes on at the next try."""
TIMEOUT = httpx.Timeout(10.0, connect=3.0)

Address = Callable[[], Awaitable[tuple[str, str | None]]]
"""The store's URL and API key, asked for before each request: both may change. Raises `Unavailable`."""


class QdrantCollections:
    """Implements `controllers.ports.Collections`."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._dropping = 0

    async def drop(self, alias: str, uid: str) -> None:
        """Remove the collections of an index. Qdrant removes an alias with its collection."""
        if self._dropping >= AT_ONCE:
            raise NotYet(f"the collections of {AT_ONCE} other indexes are being dropped")
        self._dropping += 1
        try:
            async with asyncio.timeout(SECONDS), httpx.AsyncClient(timeout=TIMEOUT) as client:
                await self._drop(client, alias, uid)
        except TimeoutError:
            url, _ = await self._address()
            raise Unavailable(
                f"the vector store at {url} has not dropped all within {SECONDS:g} s: look at its log"
            ) from None
        finally:
            self._dropping -= 1

    async def _drop(self, client: httpx.AsyncClient, alias: str, uid: str) -> None:
        for name in await self._ask(client, "GET", "/collections", _names):
            path = f"/collections/{name}"
            if is_version_of(alias, name) and await self._ask(client, "GET", path, _uid) == uid:
                await self._ask(client, "DELETE", path, bool)
                log.info("dropped %s", name)

    async def _ask(self, client: httpx.AsyncClient, method: str, path: str, read: Callable[[Any], Any]) -> Any:
        """What is read of the answer's result; None where there is no such collection."""
        url, key = await self._address()
        if key and not (key.isascii() and key.isprintable()):
            raise Unavailable(
                f"{Env.QDRANT_API_KEY} has a character that no header can carry: write it anew, without a line's end"
            )
        store = f"the vector store at {url}"
        try:
            answer = await client.request(method, url.rstrip("/") + path, headers={"api-key": key} if key else {})
            if answer.status_code in (401, 403):
                raise Unavailable(f"{store} refuses the key: correct {Env.QDRANT_API_KEY}")
            if answer.status_code == 404 and path != "/collections":
                return None
            if answer.status_code == 200:
                return read(answer.json()["result"])
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            cause = f"{type(error).__name__} {error}".strip()
            raise Unavailable(
                f"{store} does not answer ({cause}): see whether it runs, and whether it can be reached from the control plane"
            ) from error
        except (AttributeError, KeyError, TypeError, ValueError):
            pass
        raise Unavailable(
            f"{store} answers {method} {path} with {answer.status_code}, and not as Qdrant does: correct its address, or look at its log"
        )


def _names(result: Any) -> list[str]:
    return [str(one["name"]) for one in result["collections"]]


def _uid(result: Any) -> Any:
    """Which index has made a collection, if one has."""
    return ((result["config"].get("metadata") or {}).get(COLLECTION_METADATA) or {}).get("uid")
