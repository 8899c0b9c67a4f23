"""The decision whether a trained model gets its alias."""

from __future__ import annotations

from decimal import Decimal

from llmops_api.v1alpha1.meta import decimal
from llmops_api.v1alpha1.training_job import GateMetric, Scores, ScoreTable, TrainingGate


def decide_gate(gate: TrainingGate | None, before: ScoreTable, after: ScoreTable) -> tuple[bool, str]:
    """Whether the gate passes, and a sentence with the numbers. No gate passes always."""
    if gate is None:
        return True, "There is no gate: every version passes."
    name = "loss" if gate.metric is GateMetric.LOSS else "token F1"
    improvement = _improvement(gate.metric, before.domain, after.domain)
    wanted = decimal(gate.min_improvement)
    passed = improvement >= wanted
    said = [
        f"On the domain set {name} went from {_value(gate.metric, before.domain)} to {_value(gate.metric, after.domain)}, "
        f"{_better(improvement)}; {'at least' if passed else 'short of the'} {wanted} {'was' if passed else 'that was'} asked for."
    ]
    if gate.max_general_regression is not None and before.general is not None and after.general is not None:
        regression = -_improvement(gate.metric, before.general, after.general)
        allowed = decimal(gate.max_general_regression)
        kept = regression <= allowed
        passed = passed and kept
        said.append(
            f"On the general set it went from {_value(gate.metric, before.general)} to {_value(gate.metric, after.general)}, "
            f"{_better(-regression)}; {'within' if kept else 'beyond'} the {allowed} by which it may get worse."
        )
    return passed, " ".join(said)


def _value(metric: GateMetric, scores: Scores) -> Decimal:
    return decimal(scores.loss if metric is GateMetric.LOSS else scores.token_f1)


def _improvement(metric: GateMetric, before: Scores, after: Scores) -> Decimal:
    rise = _value(metric, after) - _value(metric, before)
    return -rise if metric is GateMetric.LOSS else rise


def _better(improvement: Decimal) -> str:
    return f"{abs(improvement)} {'worse' if improvement < 0 else 'better'}" if improvement else "unchanged"
