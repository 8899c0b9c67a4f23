"""Why an EmbeddingIndex is synced now, or when there may be a reason."""

from __future__ import annotations

from datetime import datetime

from llmops_api.v1alpha1.embedding_index import EmbeddingIndex
from llmops_api.v1alpha1.meta import Attempt
from llmops_operator.domain import attempts as tries_of
from llmops_operator.domain.timing import Timing, parse_timestamp, seconds_since

SYNC_REQUESTED = "llmops.dev/sync-requested-at"
"""An annotation with a time: a sync that began before it is not good enough."""
FIRST = "it was never synced"
SPEC = "the spec has changed"
RESUMED = "it is no longer suspended"
REQUESTED = "it was asked for"
RETRY = "the one before failed"
REFRESH = "refresh.everySeconds is over"


def due(
    index: EmbeddingIndex, attempts: tuple[Attempt, ...], *, changed: bool, now: datetime, timing: Timing
) -> tuple[str | None, float | None]:
    """Why a sync is to start now, or after how many seconds there may be a reason."""
    if not attempts:
        return FIRST, None
    last = attempts[-1]
    if changed:
        return SPEC, None
    if last.reason == tries_of.SUSPENDED:
        return RESUMED, None
    requested = requested_at(index)
    if isinstance(requested, datetime) and requested > parse_timestamp(last.start_time):
        return REQUESTED, None
    ended_ago = seconds_since(str(last.end_time), now)
    refresh = index.spec.refresh
    pauses: list[tuple[float, str]] = []
    if tries_of.failed(last) and not tries_of.final(last):
        pauses.append((timing.retry_delay(_failures_in_a_row(attempts)), RETRY))
    if refresh:
        pauses.append((float(refresh.every_seconds), REFRESH))
    if not pauses:
        return None, None
    pause, cause = min(pauses)
    return (cause, None) if ended_ago >= pause else (None, pause - ended_ago)


def _failures_in_a_row(attempts: tuple[Attempt, ...]) -> int:
    count = 0
    for attempt in reversed(attempts):
        if not tries_of.failed(attempt):
            break
        count += 1
    return count


def requested_at(index: EmbeddingIndex) -> datetime | str | None:
    """When a sync was asked for by annotation, or what is wrong with it."""
    text = index.metadata.annotations.get(SYNC_REQUESTED)
    if text is None:
        return None
    try:
        return parse_timestamp(text)
    except ValueError:
        return f"the annotation {SYNC_REQUESTED} is {text!r}: write a time like 2026-11-23T06:17:36Z"
