"""The gate's decision and the sentence that explains it."""

from __future__ import annotations

import pytest

from llmops_api.v1alpha1.training_job import Scores, ScoreTable, TrainingGate
from llmops_services.evaluation.gate import decide_gate


def _table(loss: str, f1: str, general_loss: str | None = None, general_f1: str = "0.5") -> ScoreTable:
    general = None
    if general_loss is not None:
        general = Scores(examples=2, loss=general_loss, perplexity="1", token_f1=general_f1)
    return ScoreTable(domain=Scores(examples=2, loss=loss, perplexity="1", token_f1=f1), general=general)


@pytest.mark.parametrize(
    ("gate", "before", "after", "passed", "says"),
    [
        ({}, _table("2.5", "0.1"), _table("2.5", "0.0"), True, "loss went from 2.5 to 2.5, unchanged; at least 0 was asked"),
        ({}, _table("2.5", "0.1"), _table("2.6", "0.9"), False, "0.1 worse; short of the 0 that was asked"),
        ({"minImprovement": "0.1"}, _table("0.4", "0"), _table("0.3", "0"), True, "0.1 better; at least 0.1 was asked"),
        ({"minImprovement": "0.1"}, _table("2.5", "0"), _table("2.41", "0"), False, "0.09 better; short of the 0.1"),
        ({"minImprovement": "-0.2"}, _table("2.5", "0"), _table("2.6", "0"), True, "0.1 worse; at least -0.2"),
        ({"metric": "TokenF1", "minImprovement": "0.05"}, _table("1", "0.10"), _table("9", "0.15"), True, "token F1 went from 0.10 to 0.15"),
        ({"metric": "TokenF1"}, _table("9", "0.2"), _table("1", "0.1"), False, "0.1 worse"),
        ({"maxGeneralRegression": "0.3"}, _table("2", "0", "1.0"), _table("1", "0", "1.3"), True, "within the 0.3"),
        ({"maxGeneralRegression": "0.3"}, _table("2", "0", "1.0"), _table("1", "0", "1.31"), False, "0.31 worse; beyond the 0.3"),
        ({"maxGeneralRegression": "0"}, _table("2", "0", "1.0"), _table("1", "0", "0.9"), True, "0.1 better; within the 0"),
        ({"metric": "TokenF1", "maxGeneralRegression": "0.1"}, _table("2", "0", "1", "0.5"), _table("1", "1", "1", "0.3"), False, "0.2 worse; beyond the 0.1"),
    ],
)  # fmt: skip
def test_gate(gate: dict[str, str], before: ScoreTable, after: ScoreTable, passed: bool, says: str) -> None:
    got, message = decide_gate(TrainingGate.model_validate(gate), before, after)
    assert got is passed
    assert says in message


def test_without_a_gate_everything_passes() -> None:
    assert decide_gate(None, _table("1", "1"), _table("9", "0"))[0]
