"""What the tests of decisions share: a moment, attempts before it, and what a condition says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from llmops_api.v1alpha1.meta import Attempt
from llmops_operator.domain.conditions import find
from llmops_operator.domain.decision import Decision
from llmops_operator.domain.timing import timestamp

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def ago(seconds: float) -> str:
    return timestamp(NOW - timedelta(seconds=seconds))


def over(
    number: int, reason: str = "Completed", *, code: int | None = 0, began: float = 60, ended: float = 30
) -> Attempt:
    return Attempt(
        number=number,
        start_time=ago(began),
        end_time=ago(ended),
        exit_code=code,
        reason=reason,
        message=f"{reason} said",
    )


def running(number: int = 1, since: float = 60) -> Attempt:
    return Attempt(number=number, start_time=ago(since))


def said(decision: Decision[Any], type_: str) -> tuple[str, str, str]:
    condition = find(decision.status.conditions, type_)
    assert condition is not None
    return condition.status, condition.reason, condition.message
