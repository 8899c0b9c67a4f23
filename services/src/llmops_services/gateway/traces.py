"""Answers as MLflow traces, sent by a thread of their own through a bounded queue.

An answer never waits for MLflow: when the queue is full (MLflow is away, or slower than the traffic) the trace is dropped and
counted. mlflow is imported by that thread, and its client writes the finished spans with the ids that were promised to the
client of the gateway: `mlflow.start_span` would choose its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import random
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmops_api.lineage import Tag
from llmops_api.programs import Env
from llmops_api.reasons import FailureReason
from llmops_services.gateway.lookup import Source
from llmops_services.program import UserError

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo

log = logging.getLogger(__name__)

SAMPLING_RATIO = "MLFLOW_TRACE_SAMPLING_RATIO"
DEFAULT_RATIO = 0.1
QUEUE = 1000
MAX_TEXT = 64 << 10
"""Characters of a text that a trace keeps."""
RETRY_SECONDS = 15.0
"""The longest pause before MLflow is asked again after it did not answer."""

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")


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


def sampling_ratio() -> float:
    """The share of the answers that is traced, from the environment. Raises `UserError`."""
    text = os.environ.get(SAMPLING_RATIO, "")
    try:
        ratio = float(text) if text else DEFAULT_RATIO
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise UserError(FailureReason.ENVIRONMENT_INVALID, f"{SAMPLING_RATIO} is {text!r}: write a number from 0 to 1")
    return ratio


def sample(ratio: float, traceparent: bytes | None) -> str | None:
    """The id of the trace that a request is to leave, 32 hex digits, or None. A caller that samples (W3C traceparent with the
    sampled flag) is always followed, with its id.
    """
    match = _TRACEPARENT.fullmatch(traceparent.strip().lower()) if traceparent is not None else None
    if match and int(match[2], 16) & 1 and match[1].strip(b"0"):
        return match[1].decode()
    if ratio and random.random() < ratio:  # noqa: S311
        return secrets.token_hex(16)
    return None


class TraceSender:
    """The queue and its thread. `sent`, `dropped` and `failed` count."""

    def __init__(self, tracking_uri: str, *, size: int = QUEUE) -> None:
        self._uri = tracking_uri
        self._queue: queue.Queue[TraceRecord | None] = queue.Queue(size)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="traces", daemon=True)
        self._experiments: dict[str, str] = {}
        self.sent = self.dropped = self.failed = 0

    def start(self) -> None:
        """Import mlflow, then send what comes."""
        self._thread.start()

    def put(self, record: TraceRecord) -> None:
        """Take a trace, or drop it when too many are waiting. Never blocks."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def stop(self, seconds: float) -> None:
        """Send what waits, for at most `seconds`."""
        if not self._thread.is_alive():
            return
        self._stopping.set()
        with contextlib.suppress(queue.Full):  # when it is full, the thread does not sleep on it
            self._queue.put_nowait(None)
        self._thread.join(seconds)
        left = self._queue.qsize()
        if left:
            self.dropped += left
            log.warning("%d traces could not be sent before the end", left)

    def _work(self) -> None:
        # a server that is away must not hold the thread for minutes; what fails is tried again below
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_ASYNC_TRACE_LOGGING_RETRY_TIMEOUT", "10")
        try:
            import mlflow.tracing.client  # noqa: F401
        except ImportError as error:
            log.warning("no traces: mlflow cannot be imported (%s)", error)
        while (record := self._queue.get()) is not None and self._deliver(record):
            if self._stopping.is_set() and self._queue.empty():
                return

    def _deliver(self, record: TraceRecord) -> bool:
        """Send a record, however often that has to be tried; false when MLflow is away and the end has come."""
        pause = 0.5
        while True:
            try:
                self._send(record)
            except Exception as error:  # nothing about traces may ever end the thread
                if not _may_work_later(error):
                    self.failed += 1
                    self._experiments.pop(record.experiment, None)
                    log.warning("a trace was not recorded: %s", " ".join(str(error).split())[:300])
                    return True
                if self._stopping.is_set():
                    self.failed += 1
                    return False
                if pause == 0.5:
                    log.warning("MLflow does not answer; traces wait: %s", " ".join(str(error).split())[:300])
                self._stopping.wait(pause)
                pause = min(pause * 2, RETRY_SECONDS)
            else:
                self.sent += 1
                return True

    def _send(self, record: TraceRecord) -> None:
        from mlflow.tracing.client import TracingClient

        experiment = self._experiment_id(record.experiment)
        info, spans = assemble(record, experiment)
        client = TracingClient(self._uri)
        client.start_trace(info)
        client.log_spans(experiment, spans)

    def _experiment_id(self, name: str) -> str:
        if name not in self._experiments:
            from mlflow import MlflowClient

            client = MlflowClient(self._uri)
            found = client.get_experiment_by_name(name)
            self._experiments[name] = found.experiment_id if found else client.create_experiment(name)
        return self._experiments[name]


def _may_work_later(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
        return status == 429 or status >= 500
    return isinstance(error, RequestException | OSError)


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


def now_ns() -> int:
    """The time of day in nanoseconds."""
    return time.time_ns()


def tracking_uri() -> str | None:
    """MLflow's address, from the environment."""
    return os.environ.get(Env.MLFLOW_TRACKING_URI) or None
