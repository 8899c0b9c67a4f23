"""A streamed answer whose marks are made right on the way: events of the engine in, events of the gateway out.

Only the content of the choices is touched. Tool calls, log probabilities, usage and what else an engine sends pass as they came;
with more than one choice each has numbers and citations of its own. The last event before [DONE] carries what `closing` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from llmops_services.gateway.citations import Citer

Event = dict[str, Any]

MAX_EVENT = 8 << 20
DONE = b"data: [DONE]\n\n"


def encode(event: Event) -> bytes:
    """An event as it goes over the wire."""
    return b"data: " + orjson.dumps(event) + b"\n\n"


class CitedStream:
    """Rewrites one stream. `citer` makes one for each choice, `closing` what the last event carries beside."""

    def __init__(self, citer: Callable[[], Citer], closing: Callable[[dict[int, Citer]], Event]) -> None:
        self._new_citer, self._closing = citer, closing
        self._citers: dict[int, Citer] = {}
        self._open: set[int] = set()
        self._buffer = b""
        self._held: Event | None = None
        self._finishing = False
        self.done = False
        self.text = ""
        """The text of the first choice, as shown."""
        self.finish_reason: str | None = None
        self.usage: Event | None = None

    def feed(self, data: bytes) -> bytes:
        """Bytes of the engine's stream; returns the bytes that the client gets. Raises `ValueError` for what is no event stream."""
        self._buffer += data
        lines = self._buffer.split(b"\n")
        self._buffer = lines.pop()
        if len(self._buffer) > MAX_EVENT:
            raise ValueError(f"an event of more than {MAX_EVENT} bytes")
        return b"".join([self._line(line.rstrip(b"\r")) for line in lines])

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:"):
            return line + b"\n\n" if line.startswith(b":") else b""  # a comment keeps the connection alive
        data = line[5:].strip()
        if data == b"[DONE]":
            return self._end()
        event = orjson.loads(data)
        if not isinstance(event, dict):
            raise ValueError("an event that is no object")
        return self._event(event)

    def _event(self, event: Event) -> bytes:
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        choices = event.get("choices")
        if choices:
            kept = [choice for choice in choices if self._choice(choice)]
            if not kept and not event.get("usage"):
                return b""
            event["choices"] = kept or choices
        if not self._finishing:
            return encode(event)
        # one event is held from the first finished choice on: [DONE] may come next
        before, self._held = self._held, event
        return encode(before) if before is not None else b""

    def _choice(self, choice: Event) -> bool:
        """Rewrite a choice; whether there is anything left in it to show."""
        delta, index = choice.get("delta") or {}, choice.get("index", 0)
        content = delta.get("content")
        empty = False
        if isinstance(content, str) and content:
            delta["content"] = self._citer(index).feed(content)
            empty = not delta["content"]
        if choice.get("finish_reason") is not None:
            if rest := self._finish(index):
                delta["content"] = (delta.get("content") or "") + rest
                choice["delta"] = delta
            self._finishing = True
            if index == 0:
                self.finish_reason = choice["finish_reason"]
        shown = delta.get("content")
        if index == 0 and isinstance(shown, str):
            self.text += shown
        return (
            not empty
            or choice.get("finish_reason") is not None
            or any(value for key, value in (*delta.items(), ("logprobs", choice.get("logprobs"))) if key != "content")
        )

    def _citer(self, index: int) -> Citer:
        if index not in self._citers:
            self._citers[index] = self._new_citer()
            self._open.add(index)
        return self._citers[index]

    def _finish(self, index: int) -> str:
        citer = self._citer(index)
        if index not in self._open:
            return ""
        self._open.discard(index)
        return citer.finish()

    def _end(self) -> bytes:
        self.done = True
        out = []
        for index in sorted(self._open):
            if rest := self._finish(index):
                if index == 0:
                    self.text += rest
                choice = {"index": index, "delta": {"content": rest}, "finish_reason": None}
                out.append(encode({"object": "chat.completion.chunk", "choices": [choice]}))
        last = self._held or {"object": "chat.completion.chunk", "choices": []}
        out.append(encode({**last, **self._closing(self._citers)}))
        return b"".join([*out, DONE])
