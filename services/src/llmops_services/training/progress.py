"""How the parts of a job add up to one percentage, and how a worker tells it."""

from __future__ import annotations

from llmops_services.training.journal import JournalWriter

LOADING = "loading model"
BEFORE = "evaluating before"
TRAINING = "training"
AFTER = "evaluating after"
REGISTERING = "registering"

_STARTS = {LOADING: 0, BEFORE: 5, TRAINING: 20, AFTER: 80, REGISTERING: 95}
"""Where each part begins, in percent of the job: what a short job on a laptop was seen to take."""


def percent_of_job(doing: str, share: float) -> int:
    """The percentage of the whole job when `share` (0…1) of one part is done."""
    ends = [*list(_STARTS.values())[1:], 100]
    start, end = _STARTS[doing], ends[list(_STARTS).index(doing)]
    return int(start + (end - start) * min(1.0, max(0.0, share)))


class Reporter:
    """Writes progress and metrics to the journal. Without one (all workers but the first) it is silent."""

    def __init__(self, journal: JournalWriter | None) -> None:
        self._journal = journal

    def say(
        self,
        doing: str,
        step: int = 0,
        total: int = 0,
        *,
        seconds_left: float | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """`step` of `total` of this part is done; `seconds_left` is an estimate for this part."""
        if self._journal:
            self._journal.write(
                doing,
                step=step,
                total=total,
                percent=percent_of_job(doing, step / total if total else 0.0),
                seconds_left=None if seconds_left is None else round(seconds_left),
                metrics=metrics,
            )
