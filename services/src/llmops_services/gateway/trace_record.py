"""One answer as it is collected while it is given, and as a trace of MLflow's: a root span with retrieval and generation under it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmops_api.lineage import Tag
from llmops_services.gateway.lookup import Source

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo

MAX_TEXT = 64 << 10
"""Characters of a text that a trace keeps."""


@dataclass
class TraceRecord:
    """One answer, as it is collected while it is given. Times are nanoseconds since the epoch."""

    trace_id: str
    """32 hex digits; MLflow shows it as `tr-…`."""
    started: int
    experiment: str
    model_id: str | None
    service: str
    revision: str
    model: str
    request: Mapping[str, Any]
    collections: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    retrieval: tuple[int, int] | None = None
    sources: tuple[Source, ...] = ()
    asked: tuple[int, int] | None = None
    prompt: Any = None
    first_token: int | None = None
    answer: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    citations: tuple[Mapping[str, Any], ...] = ()
    raw: bytearray = field(default_factory=bytearray)
    """The engine's event stream, where it was passed on unread."""
    error: str | None = None
    ended: int = 0

    @property
    def public_id(self) -> str:
        """The id as MLflow has it."""
        return f"tr-{self.trace_id}"


def now_ns() -> int:
    """The time of day in nanoseconds."""
    return time.time_ns()


def assemble(record: TraceRecord, experiment_id: str) -> tuple[TraceInfo, list[Span]]:
    """The MLflow entities of a record: root CHAIN span, RETRIEVER and LLM spans under it."""
    from mlflow.entities import SpanType, TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.constant import SpanAttributeKey, TraceMetadataKey, TraceTagKey

    if record.raw:
        _read_stream(record)
    question = _question(record.request)
    outputs = {"role": "assistant", "content": record.answer, "citations": list(record.citations)}
    root_id = secrets.randbits(64) | 1
    spans = [
        _span(
            record,
            "chat",
            SpanType.CHAIN,
            root_id,
            None,
            (record.started, record.ended),
            record.request,
            outputs,
            failed=record.error,
        )
    ]
    if record.retrieval is not None:
        documents = [
            {
                "page_content": source.hit.text,
                "metadata": {
                    "doc_uri": source.hit.uri,
                    "chunk_id": source.hit.id,
                    "score": source.hit.score,
                    "index": source.index,
                    "lines": list(source.hit.lines),
                },
            }
            for source in record.sources
        ]
        spans.append(
            _span(record, "retrieve", SpanType.RETRIEVER, secrets.randbits(64) | 1, root_id, record.retrieval, {"query": record.query}, documents)
        )  # fmt: skip
    if record.asked is not None:
        more: dict[str, Any] = {SpanAttributeKey.MODEL: record.model, "llmops.finishReason": record.finish_reason}
        if record.first_token is not None:
            more["llmops.ttftMs"] = (record.first_token - record.started) / 1e6
        usage = record.usage or {}
        if "prompt_tokens" in usage:
            more[SpanAttributeKey.CHAT_USAGE] = {
                "input_tokens": usage["prompt_tokens"],
                "output_tokens": usage.get("completion_tokens") or 0,
                "total_tokens": usage.get("total_tokens") or usage["prompt_tokens"],
            }
        spans.append(
            _span(record, "generate", SpanType.LLM, secrets.randbits(64) | 1, root_id, record.asked, record.prompt,
                  {"role": "assistant", "content": record.answer}, more, failed=record.error)
        )  # fmt: skip
    tags = {
        Tag.SERVICE.value: record.service,
        Tag.REVISION.value: record.revision,
        Tag.MODEL.value: record.model,
        Tag.COLLECTIONS.value: json.dumps(record.collections),
    }
    metadata = {key: value for key, value in tags.items() if len(value) <= 250}
    metadata |= {TraceMetadataKey.INPUTS: question[:250], TraceMetadataKey.OUTPUTS: record.answer[:250]}
    if record.model_id:
        metadata[TraceMetadataKey.MODEL_ID] = record.model_id
    info = TraceInfo(
        trace_id=record.public_id,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=record.started // 1_000_000,
        execution_duration=max(0, record.ended - record.started) // 1_000_000,
        state=TraceState.ERROR if record.error else TraceState.OK,
        request_preview=question[:1000],
        response_preview=(record.error or record.answer)[:1000],
        trace_metadata=metadata,
        tags={TraceTagKey.TRACE_NAME: "chat", **tags},
    )
    return info, spans


def _span(
    record: TraceRecord,
    name: str,
    kind: str,
    span_id: int,
    parent: int | None,
    times: tuple[int, int],
    inputs: object,
    outputs: object,
    more: Mapping[str, Any] | None = None,
    *,
    failed: str | None = None,
) -> Span:
    from mlflow.entities import Span
    from mlflow.tracing.constant import SpanAttributeKey
    from mlflow.tracing.utils import build_otel_context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Status, StatusCode

    trace_id = int(record.trace_id, 16)
    attributes = {
        SpanAttributeKey.REQUEST_ID: record.public_id,
        SpanAttributeKey.SPAN_TYPE: kind,
        SpanAttributeKey.INPUTS: inputs,
        SpanAttributeKey.OUTPUTS: outputs,
        **(more or {}),
    }
    return Span(
        ReadableSpan(
            name=name,
            context=build_otel_context(trace_id, span_id),
            parent=build_otel_context(trace_id, parent) if parent is not None else None,
            attributes={key: json.dumps(value) for key, value in attributes.items() if value is not None},
            start_time=times[0],
            end_time=times[1],
            status=Status(StatusCode.ERROR, failed) if failed else Status(StatusCode.OK),
        )
    )


def _question(request: Mapping[str, Any]) -> str:
    from llmops_services.gateway.prompting import question_at, text_of

    messages = request.get("messages") or []
    position = question_at(messages)
    return text_of(messages[position]) if position is not None else ""


def _read_stream(record: TraceRecord) -> None:
    """Answer, finish reason and usage from the bytes of a stream that was passed on unread."""
    texts = []
    for line in bytes(record.raw).split(b"\n"):
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            continue
        try:
            event = json.loads(line[5:])
        except ValueError:  # cut at the limit
            continue
        record.usage = event.get("usage") or record.usage
        for choice in event.get("choices") or ():
            if choice.get("index", 0) == 0:
                texts.append((choice.get("delta") or {}).get("content") or "")
                record.finish_reason = choice.get("finish_reason") or record.finish_reason
    record.answer = "".join(texts)[:MAX_TEXT]
    record.raw = bytearray()
