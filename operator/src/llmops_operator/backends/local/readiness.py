"""Whether a replica answers: one GET after the other, and what was answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from llmops_operator.domain.workload import Readiness

PATIENCE = 3
"""So many unanswered requests in a row make a ready replica unready; an answer that says no does so at once."""

SHOWN = 300


@dataclass(frozen=True)
class Answer:
    """What became of one request. `answered` is false when nothing came back; `message` says why it is not ready."""

    ready: bool
    answered: bool
    message: str = ""
    report: Mapping[str, Any] | None = None


async def ask(client: httpx.AsyncClient, base_url: str, readiness: Readiness) -> Answer:
    """Ask once."""
    url = base_url + readiness.path
    try:
        async with asyncio.timeout(readiness.timeout_seconds):
            response = await client.get(url, timeout=readiness.timeout_seconds)
    except TimeoutError:
        return Answer(False, False, f"GET {url} is not answered within {readiness.timeout_seconds:g} s")
    except httpx.HTTPError as error:
        return Answer(False, False, f"GET {url} is not answered yet ({error or type(error).__name__})")
    report = _json_object(response)
    if response.status_code == httpx.codes.OK:
        return Answer(True, True, "", report)
    said = str((report or {}).get("message") or response.text)[:SHOWN]
    return Answer(False, True, said or f"GET {url} is answered with {response.status_code}", report)


def _json_object(response: httpx.Response) -> Mapping[str, Any] | None:
    try:
        value = response.json()
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
