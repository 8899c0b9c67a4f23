"""Answers as MLflow traces, sent by a thread of their own through a bounded queue.

An answer never waits for MLflow: when the queue is full (MLflow is away, or slower than the traffic) the trace is dropped and
counted. mlflow is imported by that thread, and its client writes the finished spans with the ids that were promised to the
client of the gateway: `mlflow.start_span` would choose its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import re
import secrets
import threading

from llmops_api.programs import Env
from llmops_api.reasons import FailureReason
from llmops_services.gateway.trace_record import TraceRecord, assemble
from llmops_services.program import UserError

log = logging.getLogger(__name__)

SAMPLING_RATIO = "MLFLOW_TRACE_SAMPLING_RATIO"
DEFAULT_RATIO = 0.1
QUEUE = 1000
RETRY_SECONDS = 15.0
"""The longest pause before MLflow is asked again after it did not answer."""

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")


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


def tracking_uri() -> str | None:
    """MLflow's address, from the environment."""
    return os.environ.get(Env.MLFLOW_TRACKING_URI) or None
