"""A stand-in for a vLLM engine whose timing is known exactly, so that what a gateway adds can be measured.

Speaks HTTP/1.1 with keep-alive: POST /v1/chat/completions (streamed and not), GET /v1/models, /health and /stats, with the
fields that vLLM sends. Token i is due at arrival + TTFT + i * ITL on an absolute schedule, so that late timers do not add up; a
whole answer is due when its last token is. A raw `asyncio.Protocol`, because it has to cost much less than what is measured.

The answer is `--tokens` words, or `--answer TEXT`, or with `--answer echo` the request itself as JSON (so that a test sees what
reached the engine). POST /fail with {"status": 500} makes every later chat fail so, {"status": 200} ends that. A model goes as
vLLM's adapters do, by POST /v1/unload_lora_adapter with {"lora_name": "stub"}.

    python bench/gateway/stub_engine.py --port 9001 --ttft-ms 50 --itl-ms 10 --tokens 20
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import resource
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import uvloop

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 411: "Length Required", 500: "Internal Server Error",
           503: "Service Unavailable"}  # fmt: skip
ECHO = "echo"
FINGERPRINT = "vllm-stub"
Json = dict[str, Any]


@dataclass
class Engine:
    """What is answered and when; shared by all connections. Times in seconds."""

    models: tuple[str, ...]
    ttft: float
    itl: float
    pieces: tuple[str, ...]
    """The answer's tokens; none to echo the request."""
    max_model_len: int
    fail: int = 200
    requests: int = 0
    streams_open: int = 0
    streams_peak: int = 0
    aborted: int = 0
    last_head: str = ""

    def cards(self) -> bytes:
        """The body of /v1/models."""
        permission: Json = {
            "id": "modelperm-stub", "object": "model_permission", "created": 1, "allow_create_engine": False, "allow_sampling": True,
            "allow_logprobs": True, "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False, "organization": "*",
            "group": None, "is_blocking": False,
        }  # fmt: skip
        cards: list[Json] = [
            {"id": name, "object": "model", "created": 1, "owned_by": "vllm", "root": name, "parent": None,
             "max_model_len": self.max_model_len, "permission": [permission]}
            for name in self.models
        ]  # fmt: skip
        return json.dumps({"object": "list", "data": cards}).encode()

    def stats(self) -> bytes:
        """The body of /stats."""
        names = ("requests", "streams_open", "streams_peak", "aborted", "last_head")
        return json.dumps({name: getattr(self, name) for name in names}).encode()

    def tokens_for(self, request: Json) -> tuple[str, ...]:
        """The tokens of the answer to this request."""
        if self.pieces:
            return self.pieces
        text = json.dumps(request)
        return tuple(text[i : i + 8] for i in range(0, len(text), 8))


def usage(tokens: int) -> Json:
    """vLLM's usage object; the prompt always counts ten."""
    return {"prompt_tokens": 10, "total_tokens": 10 + tokens, "completion_tokens": tokens}


def error(status: int, message: str, param: str | None = None) -> bytes:
    """An error in vLLM's shape."""
    kind = {400: "BadRequestError", 404: "NotFoundError"}.get(status, "InternalServerError")
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}}).encode()


def whole(model: str, tokens: tuple[str, ...]) -> bytes:
    """The body of an answer that is not streamed."""
    message = {"role": "assistant", "content": "".join(tokens), "refusal": None, "annotations": None, "audio": None,
               "function_call": None, "reasoning": None}  # fmt: skip
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None,
              "token_ids": None, "routed_experts": None}  # fmt: skip
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    return json.dumps(
        {"id": "chatcmpl-stub", "object": "chat.completion", "created": 1, "model": model, "choices": [choice],
         "service_tier": None, "system_fingerprint": FINGERPRINT, "usage": usage(len(tokens)) | details,
         "prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None, "kv_transfer_params": None,
         "ec_transfer_params": None, "metrics": None}
    ).encode()  # fmt: skip


@lru_cache(maxsize=256)
def frames(model: str, tokens: tuple[str, ...], with_usage: bool) -> tuple[bytes, ...]:
    """The HTTP chunks of a stream: one a token, the first with the role before it, the last with the end behind it."""

    def event(choices: list[Json], **more: Any) -> bytes:
        body = {
            "id": "chatcmpl-stub",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": model,
            "choices": choices,
        }
        return b"data: " + json.dumps({**body, **more}, separators=(",", ":")).encode() + b"\n\n"

    def choice(delta: Json, finish: str | None = None, **more: Any) -> Json:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, **more}

    fingerprint = {"system_fingerprint": FINGERPRINT}  # in the last event only
    role = choice({"role": "assistant", "content": ""})
    end = choice({"content": ""}, "stop", stop_reason=None, token_ids=None)
    parts = [[event([choice({"content": token}, token_ids=None)])] for token in tokens]
    parts[0].insert(0, event([role], prompt_token_ids=None, prompt_text=None))
    parts[-1].append(event([end], **({} if with_usage else fingerprint)))
    if with_usage:
        parts[-1].append(event([], usage=usage(len(tokens)), **fingerprint))
    parts[-1].append(b"data: [DONE]\n\n")
    chunks = [frame(b"".join(part)) for part in parts]
    chunks[-1] += b"0\r\n\r\n"
    return tuple(chunks)


def frame(payload: bytes) -> bytes:
    """One chunk of HTTP's chunked encoding."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def head(status: int, content_type: str, length: int | None) -> bytes:
    """Status line and headers; without a length the body is chunked."""
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: {content_type}\r\n{size}\r\n\r\n".encode()


STREAM_HEAD = head(200, "text/event-stream; charset=utf-8", None)


class Connection(asyncio.Protocol):
    """One client connection; its requests are answered one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._answering = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """A client that goes away in the middle of an answer is counted."""
        if self._timer is not None:
            self._timer.cancel()
        if self._answering:
            self._engine.aborted += 1
            self._engine.streams_open -= 1
            self._answering = False

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        self._buffer += data
        if not self._answering:
            self._next_request()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _next_request(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        request_head = bytes(self._buffer[:end])
        match = re.search(rb"\r\ncontent-length: *(\d+)", request_head, re.IGNORECASE)
        length = int(match[1]) if match else 0
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        method, path, _ = request_head.split(b" ", 2)
        self._route(method, path.partition(b"?")[0], request_head, body)

    def _route(self, method: bytes, path: bytes, request_head: bytes, body: bytes) -> None:
        engine = self._engine
        if method == b"POST" and path == b"/v1/chat/completions":
            engine.last_head = request_head.decode("latin-1")
            self._chat(body)
        elif method == b"POST" and path == b"/fail":
            engine.fail = int(json.loads(body)["status"])
            self._reply(200, b"{}")
        elif method == b"POST" and path == b"/v1/unload_lora_adapter":
            gone = json.loads(body)["lora_name"]
            engine.models = tuple(name for name in engine.models if name != gone)
            self._reply(200, b"")
        elif method == b"GET" and path == b"/v1/models":
            self._reply(200, engine.cards())
        elif method == b"GET" and path == b"/stats":
            self._reply(200, engine.stats())
        elif method == b"GET" and path == b"/health":
            self._reply(200, b"")
        else:
            self._reply(404, b'{"detail":"Not Found"}')

    def _reply(self, status: int, body: bytes) -> None:
        self._write(head(status, "application/json", len(body)) + body)
        if self._buffer:
            self._loop.call_soon(self._next_request)

    def _chat(self, body: bytes) -> None:
        engine = self._engine
        try:
            request = json.loads(body)
            stream, model = bool(request.get("stream")), str(request["model"])
        except (ValueError, AttributeError, KeyError):
            return self._reply(400, error(400, "the body is not a JSON object with a model"))
        if engine.fail != 200:
            return self._reply(engine.fail, error(engine.fail, "made to fail"))
        if model not in engine.models:
            return self._reply(404, error(404, f"The model `{model}` does not exist.", "model"))
        longest = engine.max_model_len
        if len(body) > 4 * longest:  # a token is about four bytes
            message = f"This model's maximum context length is {longest} tokens."
            return self._reply(400, error(400, message, "input_text"))
        engine.requests += 1
        engine.streams_open += 1
        engine.streams_peak = max(engine.streams_peak, engine.streams_open)
        self._answering = True
        tokens = engine.tokens_for(request)
        due = self._loop.time() + engine.ttft
        if stream:
            options = request.get("stream_options") or {}
            parts = frames(model, tokens, bool(options.get("include_usage")))
            self._timer = self._loop.call_at(due, self._token, parts, 0, due)
        else:
            self._timer = self._loop.call_at(due + engine.itl * (len(tokens) - 1), self._whole, whole(model, tokens))
        return None

    def _token(self, parts: tuple[bytes, ...], i: int, due: float) -> None:
        self._write(STREAM_HEAD + parts[i] if i == 0 else parts[i])
        if i + 1 == len(parts):
            self._finished()
        else:
            self._timer = self._loop.call_at(due + self._engine.itl * (i + 1), self._token, parts, i + 1, due)

    def _whole(self, body: bytes) -> None:
        self._write(head(200, "application/json", len(body)) + body)
        self._finished()

    def _finished(self) -> None:
        self._engine.streams_open -= 1
        self._answering, self._timer = False, None
        if self._buffer:
            self._next_request()


async def serve(engine: Engine, port: int) -> None:
    """Listen on the loopback; prints the port, which is a free one for 0."""
    server = await asyncio.get_running_loop().create_server(lambda: Connection(engine), "127.0.0.1", port, backlog=4096)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


def pieces_of(answer: str | None, tokens: int) -> tuple[str, ...]:
    """The answer's tokens: words with the space before them."""
    if answer == ECHO:
        return ()
    return tuple(re.findall(r"\s*\S+|\s+$", answer)) if answer else tuple(f"tok{i} " for i in range(tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--model", action="append", help="a model that is served; repeatable (default: stub)")
    parser.add_argument("--ttft-ms", type=float, default=50.0, help="arrival to first token")
    parser.add_argument("--itl-ms", type=float, default=10.0, help="between tokens")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--answer", help=f"the text of all answers; {ECHO!r} answers with the request")
    parser.add_argument("--max-model-len", type=int, default=64000)
    arguments = parser.parse_args()
    if arguments.tokens < 1:
        parser.error("--tokens is at least 1")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    engine = Engine(
        models=tuple(arguments.model or ("stub",)),
        ttft=arguments.ttft_ms / 1e3,
        itl=arguments.itl_ms / 1e3,
        pieces=pieces_of(arguments.answer, arguments.tokens),
        max_model_len=arguments.max_model_len,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(engine, arguments.port))


if __name__ == "__main__":
    main()
