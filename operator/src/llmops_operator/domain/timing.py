"""Time as the decisions see it: it is passed in, written as RFC 3339 with milliseconds, and never read from a clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Timing:
    """How long things wait, in seconds. The defaults suit a cluster; a laptop and tests go faster."""

    retry_first: float = 10.0
    """Before the second attempt; doubled for each further one."""
    retry_cap: float = 300.0
    progress_interval: float = 10.0
    """Progress alone is written into a status at most this often."""
    reference_grace: float = 10.0
    """How long what an object refers to may be missing before it is trouble: manifests are applied in any order."""
    drop_deadline: float = 120.0
    """How long the deletion of an EmbeddingIndex may wait for its collections to be dropped."""

    def retry_delay(self, failures: int) -> float:
        """Seconds between the end of the failure number `failures` (from 1) and the next attempt."""
        return min(self.retry_cap, self.retry_first * 2.0 ** min(failures - 1, 30))


def soonest(*seconds: float | None) -> float | None:
    """The least of them that are there."""
    return min((each for each in seconds if each is not None), default=None)


def timestamp(moment: datetime) -> str:
    """`2026-11-23T06:17:36.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_timestamp(text: str) -> datetime:
    """The moment that an RFC 3339 time with a zone names. Raises `ValueError` for anything else."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone: write it like 2026-11-23T06:17:36Z")
    return moment


def seconds_since(text: str, now: datetime) -> float:
    """Seconds from a written time to `now`; below zero when it lies ahead."""
    return (now - parse_timestamp(text)).total_seconds()
