"""What an answer consists of beside the engine's text: headers, citations, the `llmops` object; and answers without an engine."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Send

from llmops_services.gateway.attribution import Attribution
from llmops_services.gateway.citations import Citer
from llmops_services.gateway.live import Revision
from llmops_services.gateway.lookup import Source
from llmops_services.gateway.requests import ChatRequest
from llmops_services.gateway.trace_record import TraceRecord

NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@dataclass
class Exchange:
    """One request on its way: what the later steps need of the earlier ones."""

    revision: Revision
    chat: ChatRequest
    send: Send
    began: float
    trace: TraceRecord | None
    traceparent: bytes | None
    query: str = ""
    """What the sources were looked up with."""
    sources: tuple[Source, ...] = ()
    started: bool = False
    """Whether the status line has been sent."""

    def headers(self, content: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """The headers of the answer."""
        headers = [content, (b"x-llmops-revision", self.revision.config.revision.encode("latin-1", "replace"))]
        if self.trace is not None:
            headers.append((b"x-llmops-trace-id", self.trace.public_id.encode()))
        return headers

    def about(self) -> dict[str, Any]:
        """The `llmops` object of an answer."""
        return {
            "revision": self.revision.config.revision,
            "model": self.revision.config.model,
            "collections": self.revision.lookup.collections(),
            "traceId": self.trace.public_id if self.trace is not None else None,
            "retrieved": len(self.sources),
        }

    def citer(self) -> Callable[[], Citer]:
        """Makes citers that share one look at the sources."""
        attribution = Attribution([source.block() for source in self.sources], self.query)
        return lambda: Citer(len(self.sources), attribution.best)

    def closing(self, citers: Mapping[int, Citer]) -> dict[str, Any]:
        """What the reply, or the last event of a stream, carries beside: the citations of the first choice and `llmops`; with
        more than one choice also `citationsByChoice`.
        """
        lists = {index: citations(citer, self.sources) for index, citer in sorted(citers.items())}
        first = lists.get(0, [])
        if self.trace is not None:
            self.trace.citations = tuple(first)
        closing: dict[str, Any] = {"citations": first, "llmops": self.about()}
        if len(lists) > 1:
            closing["citationsByChoice"] = {str(index): found for index, found in lists.items()}
        return closing


def citations(citer: Citer, sources: tuple[Source, ...]) -> list[dict[str, Any]]:
    """The cited sources in the order of their numbers in the answer."""
    return [
        {"n": n, **sources[number - 1].citation(), "attribution": by.value}
        for n, (number, by) in enumerate(citer.used.items(), 1)
    ]


def own_answer(exchange: Exchange, text: str) -> dict[str, Any]:
    """A whole answer of the gateway itself."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": "stop"}
    head = _head(exchange, "chat.completion")
    return {**head, "choices": [choice], "usage": NO_USAGE, **exchange.closing({})}


def own_events(exchange: Exchange, text: str) -> list[dict[str, Any]]:
    """The events of a streamed answer of the gateway itself."""
    head = _head(exchange, "chat.completion.chunk")
    deltas: tuple[dict[str, str], ...] = ({"role": "assistant", "content": ""}, {"content": text}, {})
    events: list[dict[str, Any]] = []
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None if delta else "stop"}
        events.append({**head, "choices": [choice]})
    options = exchange.chat.body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        events.append({**head, "choices": [], "usage": NO_USAGE})
    events[-1].update(exchange.closing({}))
    return events


def _head(exchange: Exchange, kind: str) -> dict[str, Any]:
    model = exchange.revision.config.model
    return {"id": f"chatcmpl-{secrets.token_hex(16)}", "object": kind, "created": int(time.time()), "model": model}
