"""Conversations as tokens, with the assistant's marked as those that are learned; and a look at them for people."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops_api.reasons import FailureReason
from llmops_services.chat_template import ChatTemplates
from llmops_services.program import UserError
from llmops_services.training.data import Example

IGNORED = -100
"""Label of a token that gives no loss (torch's `ignore_index`)."""


@dataclass(frozen=True)
class Tokens:
    """One example: `labels[i]` is `input_ids[i]` where it is learned, `IGNORED` where not. `cut` tells whether it was longer."""

    input_ids: list[int]
    labels: list[int]
    line: int
    cut: bool

    @property
    def learned(self) -> int:
        """How many tokens give a loss: the first of a sequence never does, there is nothing before it."""
        return sum(label != IGNORED for label in self.labels[1:])


def tokenize(tokenizer: Any, templates: ChatTemplates, examples: Iterable[Example], max_length: int) -> list[Tokens]:
    """Render with the training template and cut after `max_length` tokens."""
    result = []
    for example in examples:
        coded = tokenizer.apply_chat_template(
            list(example.messages),
            chat_template=templates.training,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids = list(coded["input_ids"])
        labels = [token if learned else IGNORED for token, learned in zip(ids, coded["assistant_masks"], strict=True)]
        result.append(Tokens(ids[:max_length], labels[:max_length], example.line, len(ids) > max_length))
    return result


def check_tokens(path: Path, rows: Sequence[Tokens], ends: Iterable[int], max_length: int) -> None:
    """Raise `UserError` where training would silently learn nothing from an example, or never learn to stop.

    `ends` are the ids of the tokens that end a turn.
    """
    unlearned = [row for row in rows if not row.learned]
    if len(unlearned) == len(rows) and all(row.cut for row in rows):
        raise UserError(
            FailureReason.NOTHING_TO_LEARN,
            f"{path}: in all {len(rows)} examples the answer begins after maxLength ({max_length} tokens), so that no token "
            "is left to learn; raise data.maxLength, or shorten the prompts",
        )
    if unlearned:
        lines = ", ".join(str(row.line) for row in unlearned[:5]) + (", …" if len(unlearned) > 5 else "")
        why = "the answer begins after maxLength" if unlearned[0].cut else "the template marks no token of the answer"
        raise UserError(
            FailureReason.NOTHING_TO_LEARN,
            f"{path}: {len(unlearned)} of {len(rows)} examples have no token to learn (line {lines}: {why}, "
            f"{max_length} tokens); raise data.maxLength, or shorten or remove these lines",
        )
    stops = set(ends)
    if not any(label in stops for row in rows for label in row.labels[1:]):
        cut = sum(row.cut for row in rows)
        cure = (
            f"all of them are cut at maxLength ({max_length} tokens): raise data.maxLength"
            if cut == len(rows)
            else "put the end-of-turn token inside {% generation %} in the model's chat template"
        )
        raise UserError(
            FailureReason.END_OF_TURN_NOT_TRAINED,
            f"{path}: no example teaches the token that ends a turn, so the model would never stop answering; {cure}",
        )


def samples_text(tokenizer: Any, rows: Sequence[Tokens]) -> str:
    """The rows as text, what is learned between ⟦ and ⟧."""
    return "\n\n".join(
        _heading(row) + "".join(f"⟦{text}⟧" if on else text for on, text in _runs(tokenizer, row)) for row in rows
    )


def samples_html(tokenizer: Any, rows: Sequence[Tokens]) -> str:
    """The rows as a page, what is learned with a green ground."""
    parts = [
        f"<h2>{html.escape(_heading(row))}</h2><pre>"
        + "".join(
            f"<mark>{html.escape(text)}</mark>" if on else html.escape(text) for on, text in _runs(tokenizer, row)
        )
        + "</pre>"
        for row in rows
    ]
    style = "<style>mark{background:#b7e4b7}pre{white-space:pre-wrap;border:1px solid #ccc;padding:1em}</style>"
    return f"<!doctype html><meta charset=utf-8><title>What is learned</title>{style}{''.join(parts)}"


def _heading(row: Tokens) -> str:
    return f"line {row.line}: {row.learned} of {len(row.input_ids)} tokens are learned{' (cut)' if row.cut else ''}\n"


def _runs(tokenizer: Any, row: Tokens) -> list[tuple[bool, str]]:
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        learned = label != IGNORED
        if not runs or runs[-1][0] != learned:
            runs.append((learned, []))
        runs[-1][1].append(token)
    return [(learned, str(tokenizer.decode(tokens))) for learned, tokens in runs]
