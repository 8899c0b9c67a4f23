"""Scores: SQuAD's token F1, token-weighted loss, perplexity; and what a real model's measuring comes to."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from llmops_api.v1alpha1.training_job import GateMetric
from llmops_services.evaluation.measure import MAX_GENERATED, MAX_NEW_TOKENS, HeldOut, evenly_spaced, measure
from llmops_services.evaluation.scores import Measured, decimal_string, normalize_answer, summarize, token_f1


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("Paris", "paris.", 1.0),
        ("The capital is Paris", "Paris", 0.5),
        ("in the IT portal", "portal", 0.5),
        ("Rome", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("the", "a", 1.0),
        ("no no no", "no", 0.5),
        ("thirty-one days", "thirtyone days", 1.0),
    ],
)
def test_token_f1(answer: str, reference: str, f1: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(f1)
    assert token_f1(reference, answer) == pytest.approx(f1)


def test_normalisation_drops_case_punctuation_articles_and_space() -> None:
    assert normalize_answer("  The  Theatre, an A-team's [1]! ") == ["theatre", "ateams", "1"]


def test_long_answers_weigh_more_in_the_loss_and_f1_is_over_the_answered() -> None:
    scores = summarize([Measured(0, 2.0, 1, "x", 1.0), Measured(1, 3.0, 9), Measured(2, 0.0, 0, "y", 0.5)])
    assert (scores.examples, scores.generated, scores.loss, scores.token_f1) == (3, 2, "0.5000", "0.7500")
    assert float(scores.perplexity) == pytest.approx(math.exp(0.5), abs=1e-4)


def test_numbers_as_the_api_writes_them() -> None:
    assert [decimal_string(value) for value in (1.23456, -0.5, 1.5e30)] == ["1.2346", "-0.5000", "1.5000e30"]
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not a number"):
            decimal_string(value)
    assert summarize([Measured(0, 1e6, 1)]).perplexity == "1.0142e304"


def test_generated_examples_are_spread_over_the_set() -> None:
    assert evenly_spaced(3, 5) == {0, 1, 2}
    assert evenly_spaced(10, 5) == {0, 2, 4, 6, 8}


def test_the_reference_says_for_how_many_examples_and_tokens_answers_are_generated() -> None:
    assert f"at most {MAX_GENERATED} of a set, evenly spaced over it, and cut at {MAX_NEW_TOKENS} tokens" in " ".join(
        str(GateMetric.__doc__).split()
    )


def test_batched_loss_is_the_loss_of_each_example_alone(tiny_chat_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_chat_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_chat_model, dtype=torch.float32)
    model.train()
    rows = []
    for index, (prompt, answer) in enumerate(
        [("Hi", "Hello there"), ("A much longer question than that?", "No"), ("x", "y")]
    ):
        asked, said = tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]
        labels = [-100] * len(asked) + said
        rows.append(HeldOut(index, asked + said, labels, asked, answer, generate=index != 1))
    steps: list[int] = []
    found = measure(model, tokenizer, rows, [tokenizer.eos_token_id], steps.append)
    assert model.training
    assert sum(steps) == 5
    for row, got in zip(rows, found, strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        assert got.tokens == sum(label != -100 for label in row.labels)
        assert got.loss_sum / got.tokens == pytest.approx(float(alone), rel=1e-4)
        assert (got.answer is None) == (got.token_f1 is None) == (not row.generate)
    with torch.no_grad():
        greedy = model.generate(torch.tensor([rows[2].prompt_ids]), max_new_tokens=48, do_sample=False)
    alone = tokenizer.decode(greedy[0, len(rows[2].prompt_ids) :], skip_special_tokens=True).strip()
    assert found[2].answer == alone
