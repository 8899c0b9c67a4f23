"""Formulas of the scores."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmops_api.v1alpha1.training_job import Scores

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Measured:
    """What a model did on one example. `loss_sum` is in nats over `tokens` learned tokens; `answer` and `token_f1` are None
    where no answer was generated.
    """

    index: int
    loss_sum: float
    tokens: int
    answer: str | None = None
    token_f1: float | None = None


def normalize_answer(text: str) -> list[str]:
    """Lower case, no punctuation, no English articles, split at white space: the normalisation of SQuAD's evaluation script
    (Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", section 6).
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the normalised words that both share, counted with multiplicity (SQuAD's
    F1); 1 if neither has a word, 0 if one of them has none.
    """
    said, wanted = normalize_answer(answer), normalize_answer(reference)
    if not said or not wanted:
        return float(said == wanted)
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted))


def summarize(measured: Iterable[Measured]) -> Scores:
    """Scores of a data set: the loss is the mean over all learned tokens, so long answers weigh more; perplexity is its
    exponential; token F1 is the mean over the examples for which an answer was generated.
    """
    rows: Sequence[Measured] = tuple(measured)
    tokens = sum(row.tokens for row in rows)
    loss = sum(row.loss_sum for row in rows) / tokens if tokens else 0.0
    answered = [row.token_f1 for row in rows if row.token_f1 is not None]
    return Scores(
        examples=len(rows),
        generated=len(answered),
        loss=decimal_string(loss),
        perplexity=decimal_string(math.exp(min(loss, 700.0))),  # exp(710) is more than a float holds
        token_f1=decimal_string(sum(answered) / len(answered) if answered else 0.0),
    )


def decimal_string(value: float) -> str:
    """A number as the API writes it: four decimals, with an exponent where it is huge. Raises `ValueError` for NaN, infinity."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a number that can be reported")
    return f"{value:.4f}" if abs(value) < 1e9 else f"{value:.4e}".replace("e+", "e")
