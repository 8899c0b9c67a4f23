"""`POST /v1/chat/completions`: from the request to the last byte of the answer.

A plain ASGI application, because everything that is between the client and the engine is paid by every token.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from llmops_services.gateway.answers import Exchange, own_answer, own_events
from llmops_services.gateway.asgi import JSON, ClientGone, WhileConnected, header, read_body, reply
from llmops_services.gateway.cited_stream import DONE, CitedStream, encode
from llmops_services.gateway.connection import EngineLost
from llmops_services.gateway.engines import Reply, ask
from llmops_services.gateway.errors import ApiError, bad_request, timed_out
from llmops_services.gateway.limits import LIMITS, Limits
from llmops_services.gateway.live import Live, Revision
from llmops_services.gateway.metrics import Metrics
from llmops_services.gateway.prompting import (
    build,
    nothing_found,
    question_at,
    room_for_sources,
    search_text,
    source_tokens,
)
from llmops_services.gateway.requests import ChatRequest, RagOptions
from llmops_services.gateway.trace_record import MAX_TEXT, TraceRecord, now_ns
from llmops_services.gateway.traces import TraceSender, sample
from llmops_services.retrieval import select

log = logging.getLogger(__name__)

ROUTE = "/v1/chat/completions"
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
TOO_LONG = b"context length"
"""What vLLM's 400 says when prompt and answer are longer than the model reads."""
CLOSED_BY_CLIENT = 499
"""The code that answers to clients who went away are counted under (nginx's)."""


class Chat:
    """The route. `ratio` is the share of answers that is traced when there is a `sender`."""

    def __init__(
        self,
        live: Live,
        metrics: Metrics,
        sender: TraceSender | None = None,
        *,
        ratio: float = 0.0,
        limits: Limits = LIMITS,
    ) -> None:
        self._live, self._metrics, self._sender, self._ratio, self._limits = live, metrics, sender, ratio, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; never raises but for a bug."""
        began, metrics = time.perf_counter(), self._metrics
        metrics.enter()
        code, exchange = 500, None
        try:
            if metrics.in_flight > self._limits.in_flight:
                raise ApiError(
                    429,
                    "Too many requests at once. Try again.",
                    kind="rate_limit_error",
                    code="overloaded",
                    retry_after=1,
                )
            body = await read_body(scope, receive, self._limits.body)
            traceparent = header(scope, b"traceparent")
            async with WhileConnected(receive), asyncio.timeout(self._limits.seconds):
                while True:
                    exchange = self._exchange(body, send, began, traceparent)
                    try:
                        code = await self._answer(exchange)
                        break
                    except ApiError as error:
                        # what its revision answers with may be gone since another one took over: that one is asked
                        if error.status != 503 or exchange.revision is self._live.revision:
                            raise
        except ApiError as error:
            code = error.status
            await self._fail(send, exchange, error)
        except TimeoutError:
            code = 504
            await self._fail(send, exchange, timed_out(f"No whole answer in {self._limits.seconds:g} s."))
        except ClientGone:
            code = CLOSED_BY_CLIENT
            metrics.cancelled.inc()
            if exchange is not None and exchange.trace is not None:
                exchange.trace.error = "the client went away"
        except Exception:
            log.exception("a bug in the gateway")
            await self._fail(
                send, exchange, ApiError(500, "The gateway failed.", kind="server_error", code="internal_error")
            )
        finally:
            metrics.leave()
            metrics.requested(ROUTE, code)
            metrics.duration.observe(time.perf_counter() - began)
            if exchange is not None and exchange.trace is not None and self._sender is not None:
                exchange.trace.ended = now_ns()
                self._sender.put(exchange.trace)

    def _exchange(self, body: bytes, send: Send, began: float, traceparent: bytes | None) -> Exchange:
        """The request on its way with the revision that serves now."""
        revision = self._live.revision
        model = revision.config.model
        chat = ChatRequest.parse(body, names=(revision.name, model), engine_model=model)
        return Exchange(revision, chat, send, began, self._trace(revision, chat, traceparent), traceparent)

    def _trace(self, revision: Revision, chat: ChatRequest, traceparent: bytes | None) -> TraceRecord | None:
        config = revision.config
        if self._sender is None or config.mlflow_experiment is None:
            return None
        trace_id = sample(self._ratio, traceparent)
        if trace_id is None:
            return None
        return TraceRecord(
            trace_id=trace_id,
            started=now_ns(),
            experiment=config.mlflow_experiment,
            model_id=config.mlflow_model_id,
            service=f"{config.object.namespace}/{config.object.name}",
            revision=config.revision,
            model=config.model,
            request=dict(chat.body),
        )

    async def _fail(self, send: Send, exchange: Exchange | None, error: ApiError) -> None:
        if exchange is not None and exchange.trace is not None:
            exchange.trace.error = error.message
        if exchange is None or not exchange.started:
            await reply(send, error.status, error.body(), error.headers())
        else:  # vLLM ends a stream that failed in this way, and so do its clients expect it
            await send({"type": "http.response.body", "body": b"data: " + error.body() + b"\n\n" + DONE})

    async def _answer(self, exchange: Exchange) -> int:
        chat, lookup = exchange.chat, exchange.revision.lookup
        options = chat.rag or RagOptions()
        if not options.enabled or not lookup.names:
            if options.enabled and options.indexes:
                raise bad_request("This service has no indexes: leave rag.indexes out.", "rag.indexes")
            return await self._pass_on(exchange, await self._ask(exchange, chat.body))
        question = question_at(chat.messages)
        if question is None:
            return await self._pass_on(exchange, await self._ask(exchange, chat.body))
        await self._retrieve(exchange, options, question)
        if not exchange.sources:
            return await self._say(exchange, nothing_found(options.indexes or lookup.names))
        answer = await self._ask_with_sources(exchange, question)
        if answer.status != 200:
            return await self._pass_on(exchange, answer)
        return await (self._stream_cited(exchange, answer) if chat.stream else self._reply_cited(exchange, answer))

    async def _retrieve(self, exchange: Exchange, options: RagOptions, question: int) -> None:
        """Put the sources that go into the prompt into the exchange."""
        config, chat, trace = exchange.revision.config, exchange.chat, exchange.trace
        wish = options.over(config.retrieval)
        query = exchange.query = search_text(chat.messages, question)
        began, began_ns = time.perf_counter(), now_ns()
        found = await exchange.revision.lookup.find(
            query, mode=wish.mode, candidates=wish.candidates, where=wish.where, names=wish.names
        )
        self._metrics.retrieval.observe(time.perf_counter() - began)
        room = room_for_sources(
            chat.messages,
            question,
            config.prompt,
            context_tokens=config.retrieval.context_tokens,
            max_model_len=config.max_model_len,
            answer=chat.max_tokens,
            indexes=config.indexes,
        )
        by_id = {(source.hit.collection, source.hit.id): source for source in found}
        chosen = select(
            [source.hit for source in found],
            top_k=wish.top_k,
            min_score=wish.min_score,
            context_tokens=room,
            count_tokens=source_tokens,
        )
        exchange.sources = tuple(by_id[hit.collection, hit.id] for hit in chosen.hits)
        if not chosen.hits and any(source.hit.score >= wish.min_score for source in found):
            raise bad_request(
                f"No source fits beside this conversation: {chosen.reason}. Send a shorter conversation or lower max_tokens.",
                "messages",
                "context_length_exceeded",
            )
        if trace is not None:
            trace.query, trace.retrieval, trace.sources = query, (began_ns, now_ns()), exchange.sources
            trace.collections = exchange.revision.lookup.collections()

    async def _ask(self, exchange: Exchange, body: dict[str, Any]) -> Reply:
        config, trace = exchange.revision.config, exchange.trace
        headers = {"traceparent": exchange.traceparent.decode("latin-1")} if exchange.traceparent is not None else {}
        began = now_ns()
        if trace is not None:
            trace.prompt = body
        answer = await ask(
            exchange.revision.engines, config.model, orjson.dumps(body), headers, stream=exchange.chat.stream
        )
        if exchange.chat.stream:
            self._metrics.first_token.observe(time.perf_counter() - exchange.began)
        if trace is not None:
            trace.asked = (began, now_ns())
            trace.first_token = now_ns() if exchange.chat.stream else None
        return answer

    async def _ask_with_sources(self, exchange: Exchange, question: int) -> Reply:
        """Ask; when the engine says that the prompt is too long, ask again with half of the sources."""
        while True:
            chat, config = exchange.chat, exchange.revision.config
            messages = build(chat.messages, question, config.prompt, exchange.sources, config.indexes)
            answer = await self._ask(exchange, {**chat.body, "messages": messages})
            if answer.status != 400 or len(exchange.sources) < 2 or TOO_LONG not in answer.first:
                return answer
            answer.answer.close()
            exchange.sources = exchange.sources[: len(exchange.sources) // 2]
            log.info("the prompt was too long for the engine: asking again with %d sources", len(exchange.sources))

    async def _pass_on(self, exchange: Exchange, answer: Reply) -> int:
        """The engine's answer as it is; a whole one gets the `llmops` object."""
        trace = exchange.trace
        with answer.answer as rest:
            if answer.complete:
                body = answer.first
                if answer.status == 200:
                    parsed = orjson.loads(body)
                    self._note(trace, parsed)
                    body = orjson.dumps({**parsed, "llmops": exchange.about()})
                elif trace is not None:
                    trace.error = body[:MAX_TEXT].decode(errors="replace")
                await reply(exchange.send, answer.status, body, exchange.headers(JSON))
                return answer.status
            await self._start(exchange)
            piece = answer.first
            try:
                while piece:
                    if trace is not None and len(trace.raw) < 4 * MAX_TEXT:
                        trace.raw += piece
                    await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
                    piece = await rest.read()
            except EngineLost as error:
                raise lost(error) from error
            await exchange.send({"type": "http.response.body", "body": b""})
            if trace is not None and trace.asked is not None:
                trace.asked = (trace.asked[0], now_ns())
            return 200

    async def _reply_cited(self, exchange: Exchange, answer: Reply) -> int:
        with answer.answer:
            parsed = orjson.loads(answer.first)
            new, citers = exchange.citer(), {}
            for choice in parsed.get("choices") or ():
                message = choice.get("message") or {}
                citers[choice.get("index", 0)] = citer = new()
                if isinstance(message.get("content"), str):
                    message["content"] = citer.feed(message["content"]) + citer.finish()
            self._note(exchange.trace, parsed)
            body = orjson.dumps({**parsed, **exchange.closing(citers)})
            await reply(exchange.send, 200, body, exchange.headers(JSON))
            return 200

    async def _stream_cited(self, exchange: Exchange, answer: Reply) -> int:
        stream, trace = CitedStream(exchange.citer(), exchange.closing), exchange.trace
        try:
            with answer.answer as rest:
                await self._start(exchange)
                piece = answer.first
                while piece:
                    if shown := stream.feed(piece):
                        await exchange.send({"type": "http.response.body", "body": shown, "more_body": True})
                    piece = await rest.read()
                if not stream.done:
                    raise EngineLost("its stream ended without [DONE]")
        except (EngineLost, ValueError) as error:
            raise lost(error) from error
        finally:
            if trace is not None:
                trace.answer, trace.finish_reason, trace.usage = stream.text, stream.finish_reason, stream.usage
                if trace.asked is not None:
                    trace.asked = (trace.asked[0], now_ns())
        await exchange.send({"type": "http.response.body", "body": b""})
        return 200

    async def _start(self, exchange: Exchange) -> None:
        headers = [*exchange.headers(EVENT_STREAM), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        exchange.started = True
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _say(self, exchange: Exchange, text: str) -> int:
        """An answer of the gateway itself."""
        if exchange.trace is not None:
            exchange.trace.answer, exchange.trace.finish_reason = text, "stop"
        if not exchange.chat.stream:
            await reply(exchange.send, 200, orjson.dumps(own_answer(exchange, text)), exchange.headers(JSON))
            return 200
        await self._start(exchange)
        events = b"".join(map(encode, own_events(exchange, text)))
        await exchange.send({"type": "http.response.body", "body": events + DONE})
        return 200

    @staticmethod
    def _note(trace: TraceRecord | None, parsed: dict[str, Any]) -> None:
        if trace is None:
            return
        choices = parsed.get("choices") or [{}]
        trace.answer = str((choices[0].get("message") or {}).get("content") or "")[:MAX_TEXT]
        trace.finish_reason, trace.usage = choices[0].get("finish_reason"), parsed.get("usage")


def lost(error: Exception) -> ApiError:
    """The engine went away in the middle of a stream: what has been sent cannot be taken back."""
    log.warning("an engine was lost in the middle of an answer: %s", error)
    return ApiError(502, "The engine was lost in the middle of the answer.", kind="server_error", code="engine_lost")
