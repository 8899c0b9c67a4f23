"""Where an object stands, and how that is shown."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from llmops_operator.cli.screen import LineScreen, Row, TableScreen, length, row_of
from llmops_operator.cli.standing import RECOVER_SECONDS, SETTLE_SECONDS, State, reused, standing
from llmops_operator.cli.tables import age

SINCE = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
BEFORE, AFTER = "2026-01-01T11:59:59.500Z", "2026-01-01T12:00:00.000Z"


def condition(type_: str, status: str, reason: str = "", message: str = "", generation: int = 2) -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": reason, "message": message, "observedGeneration": generation}


def thing(kind: str, *conditions: dict[str, Any], spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    metadata = {"name": "x", "namespace": "default", "uid": "u", "generation": 2}
    return {
        "kind": kind,
        "metadata": metadata,
        "spec": spec or {},
        "status": {"conditions": list(conditions), **status},
    }


SUCCEEDED = condition("Succeeded", "True", "Succeeded", "x version 3 is registered")
SYNCED = condition("Synced", "True")
READY = condition("Ready", "True", "Ready", "serving")


def sync(start: str, **how: Any) -> dict[str, Any]:
    return {"attempts": [{"number": 1, "startTime": start, "endTime": start, **how}]}


STANDINGS: dict[str, tuple[dict[str, Any], State, str]] = {
    "nothing was looked at yet": (thing("TrainingJob"), State.UNDERWAY, ""),
    "a job that trains": (thing("TrainingJob", condition("Succeeded", "Unknown", "Training")), State.UNDERWAY, ""),
    "a job that is done": (thing("TrainingJob", SUCCEEDED), State.DONE, "x version 3 is registered"),
    "a job that waits for another try": (
        thing("TrainingJob", condition("Succeeded", "Unknown", "TryAgain", "ended")), State.UNDERWAY, ""),
    "a job that gave up": (
        thing("TrainingJob", condition("Succeeded", "False", "DataInvalid", "line 17"), completionTime=AFTER),
        State.FAILED, "line 17 (to train anew: llmops delete tj/x, then run this again)"),
    "an object that is none": (
        thing("RagService", condition("Accepted", "False", "Invalid", "spec.x is wrong")), State.FAILED, "spec.x is wrong"),
    "an object that was none before it was edited": (
        thing("RagService", condition("Accepted", "False", "Invalid", "old", generation=1)), State.UNDERWAY, ""),
    "an object that is suspended": (
        thing("RagService", spec={"suspend": True}), State.DONE, "suspended: spec.suspend is set"),
    "an index that was synced before it was asked to": (
        thing("EmbeddingIndex", SYNCED, READY, **sync(BEFORE)), State.UNDERWAY, ""),
    "an index that is synced": (
        thing("EmbeddingIndex", SYNCED, READY, documents=2, chunks=5, **sync(AFTER)), State.DONE, "2 documents, 5 chunks"),
    "an index whose spec was edited": (
        thing("EmbeddingIndex", condition("Synced", "True", generation=1), READY, **sync(AFTER)), State.UNDERWAY, ""),
    "an index whose sync failed for good": (
        thing("EmbeddingIndex", SYNCED, condition("Ready", "False", "X", "too long"), **sync(AFTER, exitCode=64)),
        State.FAILED, "too long"),
    "an index whose sync is tried again": (
        thing("EmbeddingIndex", SYNCED, condition("Ready", "False", "X", "away"), **sync(AFTER, exitCode=75)),
        State.UNDERWAY, ""),
    "an index that did not pass its gate": (
        thing("EmbeddingIndex", SYNCED, condition("GatePassed", "False", "GateNotPassed"),
              condition("Ready", "False", "GateNotPassed", "recall is 0.5"), **sync(AFTER, exitCode=0)),
        State.FAILED, "recall is 0.5"),
    "a service that answers": (thing("RagService", READY), State.DONE, "serving"),
    "a service that answered as it was before": (
        thing("RagService", condition("Ready", "True", generation=1)), State.UNDERWAY, ""),
    "a service whose job runs": (
        thing("RagService", condition("Ready", "False", "TrainingJobNotFinished", "waits")), State.UNDERWAY, ""),
    "a service whose job failed": (
        thing("RagService", condition("Ready", "False", "TrainingJobFailed", "the job failed"),
              condition("ModelResolved", "False", "TrainingJobFailed", "the job failed")), State.FAILED, "the job failed"),
    "a service whose engine dies": (
        thing("RagService", condition("Ready", "False", "Exit1", "no memory")), State.FAILED, "no memory"),
}  # fmt: skip


@pytest.mark.parametrize(("item", "state", "sentence"), STANDINGS.values(), ids=STANDINGS.keys())
def test_where_an_object_stands(item: dict[str, Any], state: State, sentence: str) -> None:
    found = standing(item, SINCE)
    assert (found.state, found.sentence) == (state, sentence)


def test_what_may_pass_is_believed_when_it_lasts() -> None:
    def after(name: str) -> float:
        return standing(STANDINGS[name][0], SINCE).after_seconds

    assert after("a job that gave up") == 0
    assert after("a service whose job failed") == SETTLE_SECONDS
    assert after("a service whose engine dies") == RECOVER_SECONDS


def test_what_was_reused_is_told() -> None:
    trained = thing("TrainingJob", SUCCEEDED, model={"name": "x", "version": "3"})
    assert reused(trained, trained) == "x: unchanged, not trained again (version 3)"
    assert reused(None, trained) is None
    assert reused(thing("TrainingJob"), trained) is None, "it has been trained just now"
    another = {**trained, "metadata": {**trained["metadata"], "uid": "v"}}
    assert reused(another, trained) is None, "it was deleted and made anew"
    counts = {"added": 0, "updated": 1, "deleted": 0, "unchanged": 63, "embedded": 4}
    index = thing("EmbeddingIndex", lastSync=counts)
    assert reused(index, index) == "x: 63 documents unchanged, 1 updated, 4 chunks embedded"
    assert reused(index, thing("EmbeddingIndex", lastSync={**counts, "unchanged": 0})) is None


def test_a_row_tells_what_is_done_and_how_far_that_is() -> None:
    progress = {"doing": "training", "step": 12, "total": 24, "percent": 50, "secondsLeft": 80, "loss": "1.5"}
    row = row_of(thing("TrainingJob", condition("Succeeded", "Unknown", "Training"), progress=progress))
    assert row == Row("trainingjob/x", State.UNDERWAY, "training, 12 of 24, loss 1.5", 50, 80)
    assert row_of(thing("TrainingJob")).doing == "waits for the controller"
    waits = row_of(thing("RagService", condition("Ready", "False", "IndexNotServing", "waits for EmbeddingIndex a")))
    assert (waits.doing, waits.percent) == ("waits for EmbeddingIndex a", None)
    assert row_of(STANDINGS["a job that is done"][0]).percent == 100


def test_lines_come_at_changes_and_at_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    screen = LineScreen()
    for percent, doing in ((0, "training, 0 of 9"), (4, "training, 1 of 9"), (12, "training, 2 of 9"), (12, "testing")):
        screen.show([Row("trainingjob/x", State.UNDERWAY, doing, percent, 90)])
    screen.show([Row("trainingjob/x", State.DONE, "version 3", 100)])
    screen.show([Row("trainingjob/x", State.DONE, "version 3", 100)])
    said = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "trainingjob/x: training, 0 of 9, 0 %, 1 min 30 s left",
        "trainingjob/x: training, 2 of 9, 12 %, 1 min 30 s left",
        "trainingjob/x: testing, 12 %, 1 min 30 s left",
        "trainingjob/x: done. version 3",
    ]


def test_a_terminal_gets_a_table() -> None:
    out = io.StringIO()
    screen = TableScreen(Console(file=out, force_terminal=True, width=100, color_system=None))
    screen.note("starting")
    screen.show(
        [Row("trainingjob/x", State.UNDERWAY, "training", 50, 90), Row("ragservice/y", State.FAILED, "no engine")]
    )
    screen.close()
    text = out.getvalue()
    for words in ("starting", "OBJECT", "trainingjob/x", "50 %", "1 min 30 s", "ragservice/y", "no engine"):
        assert words in text


@pytest.mark.parametrize(
    ("seconds", "long", "short"),
    [(0, "0 s", "0s"), (59, "59 s", "59s"), (60, "1 min", "60s"), (200, "3 min 20 s", "3m20s"), (7500, "2 h 5 min", "125m"),
     (200_000, "55 h 33 min", "2d")],
)  # fmt: skip
def test_lengths_of_time_read_as_people_and_as_kubectl_write_them(seconds: int, long: str, short: str) -> None:
    assert length(seconds) == long
    since = datetime.fromtimestamp(SINCE.timestamp() - seconds, UTC).isoformat()
    assert age(since, SINCE) == short
