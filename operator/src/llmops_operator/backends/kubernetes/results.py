"""What programs say on standard output, read from the logs of their pods: how far they are, and what they leave.

A result is read once, when a program has ended, and kept as an annotation of its Job or RayJob, so that it outlives the pod.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kubernetes.aio.client.exceptions import ApiException
from pydantic import ValidationError

from llmops_api.programs import Said
from llmops_api.v1alpha1.meta import Progress
from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.children import POD
from llmops_operator.backends.kubernetes.said import last_said
from llmops_operator.controllers.ports import NotFound, Unavailable

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""How often the log of a running program is looked at."""
PATIENCE_SECONDS = 60.0
"""So long a program that has ended may owe its result while the API server answers: its log cannot be read, or holds none."""
MOST = 8
"""Logs that are read at the same time."""
TAIL_LINES, TAIL_BYTES = 400, 256 * 1024


class Logs:
    """Reads the ends of logs, few at a time."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._places = asyncio.Semaphore(MOST)

    async def last(self, what: Said, pod: Mapping[str, Any]) -> dict[str, Any] | None:
        """The JSON object of the last line of this sort. None when there is none, or no log."""
        metadata = pod["metadata"]
        query: dict[str, str | int] = {"tailLines": TAIL_LINES, "limitBytes": TAIL_BYTES}
        try:
            async with self._places:
                text = await self._api.log(POD, metadata["namespace"], metadata["name"], **query)
        except (ApiException, NotFound, Unavailable) as error:
            log.info("the log of pod %s/%s cannot be read: %s", metadata["namespace"], metadata["name"], error)
            return None
        return last_said(what, text)


def progress_of(said: Mapping[str, Any] | None) -> Progress | None:
    """A progress as a program said it; None for what is none."""
    try:
        return Progress.model_validate(said) if said else None
    except ValidationError:
        return None


def seconds_since(text: str | None) -> float:
    """Since a time that Kubernetes wrote; endless when it wrote none."""
    if not text:
        return float("inf")
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
