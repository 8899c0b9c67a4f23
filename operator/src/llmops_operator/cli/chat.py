"""A question to a RagService's endpoint, its answer as a stream."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from llmops_operator.cli.faults import CommandError

TIMEOUT = httpx.Timeout(300.0, connect=5.0)
"""Seconds between two pieces of an answer: an engine on a CPU reads a long prompt for a minute."""


@dataclass(frozen=True)
class Question:
    """What is asked of the service `name` at `url`. `rag` overrides its retrieval for this question; `repair` is what helps when
    nothing answers there.
    """

    url: str
    name: str
    text: str
    rag: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int = 256
    repair: str = "see how it stands"


@dataclass
class Answer:
    """An answer as far as it has come. `id` is its trace's in MLflow, None when it leaves none."""

    text: str = ""
    citations: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    id: str | None = None


async def stream(question: Question) -> AsyncIterator[Answer]:
    """The answer, again and again as it grows; the last one is whole. It is traced whatever the service's sampling is.

    Raises `CommandError`.
    """
    trace = secrets.token_hex(16)
    body = {
        "model": question.name,
        "messages": [{"role": "user", "content": question.text}],
        "stream": True,
        "temperature": 0,
        "max_tokens": question.max_tokens,
        **({"rag": dict(question.rag)} if question.rag else {}),
    }
    headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
    answer = Answer()
    try:
        # Proxies are for the world outside; a service of this machine or cluster is reached without.
        async with (
            httpx.AsyncClient(trust_env=False, timeout=TIMEOUT) as client,
            client.stream("POST", f"{question.url}/v1/chat/completions", json=body, headers=headers) as response,
        ):
            if response.status_code != 200:
                raise CommandError(f"{question.name} refused the question: {_reason(await response.aread(), response)}")
            async for line in response.aiter_lines():
                if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                    _take(json.loads(data), answer, question.name)
                    yield answer
    except httpx.TimeoutException as error:
        raise CommandError(
            f"{question.name} at {question.url} does not answer in time; `llmops logs` tells more"
        ) from error
    except httpx.HTTPError as error:
        raise CommandError(
            f"{question.name} at {question.url} cannot be reached ({error}): {question.repair}; `llmops describe rag/{question.name}` tells more"
        ) from error
    except ValueError as error:
        raise CommandError(f"{question.name} at {question.url} does not speak OpenAI's API: {error}") from error
    answer.id = answer.about.get("traceId") if answer.about else f"tr-{trace}"
    yield answer


def _take(event: Mapping[str, Any], answer: Answer, name: str) -> None:
    if "error" in event:
        raise CommandError(f"{name} broke off: {event['error'].get('message')}")
    for choice in event.get("choices") or ():
        if choice.get("index", 0) == 0:
            answer.text += (choice.get("delta") or {}).get("content") or ""
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    answer.citations = event.get("citations", answer.citations)
    answer.about = event.get("llmops", answer.about)


def _reason(body: bytes, response: httpx.Response) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def source_line(citation: Mapping[str, Any]) -> str:
    """A numbered source: document, section and lines."""
    title, section = str(citation.get("title") or ""), str(citation.get("section") or "")
    # A section is a path of headings, and the first heading of many documents is their title.
    parts = [section] if title and section.split(" > ")[0] == title else [part for part in (title, section) if part]
    first, last = (citation.get("lines") or (None, None))[:2]
    lines = "" if first is None else f", line {first}" if first == last else f", lines {first}-{last}"
    return f"[{citation.get('n')}] {' > '.join(parts)}{lines} ({citation.get('path') or citation.get('uri')})"
