"""Which source supports a sentence, by the words they share.

Small models often state a fact from a source and forget to write its number. A sentence is given to a source when

- it shares at least `MIN_SHARED` content words with it (numbers count), and
- at least the share `MIN_SHARE` of the sentence's content words stand in the source, and
- every number and every name of the sentence (a word with a capital that does not begin it) stands in the source:
  near-duplicates by year or region differ in little else.

An answer of fewer content words, like "15 minutes.", says the rest of its sentence in the question: all its words have to stand
in the source, and the question's words count as shared.

Of several such sources the one wins whose shared words are rarest among the sources, the earlier one on a tie. Content words
are words of at least three letters that are not stop words, cut to six letters, a crude stemmer that works for most European
languages. A sentence that says what the sources lack is given to none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

MIN_SHARED = 3
MIN_SHARE = 0.6
STEM = 6

_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]{3,}")
_ENUMERATOR = re.compile(r"^\s*\d{1,2}[.)]\s")
_LACKING = re.compile(
    r"\b(?:sources?|documents?|context|information)\b.*\b(?:not|no|n't|nothing)\b|\b(?:not|no|nothing)\b.*\b(?:sources?|documents?|context)\b",
    re.IGNORECASE,
)
_STOP = frozenset(
    """about after again all also although and any are because been before being below between both but can could did does doing
    down during each every few for from further had has have having her here hers him his how however into its itself just may
    more most must nor not now off once only other our ours out over own per please same shall she should some such than that the
    their theirs them then there therefore these they this those through too under until upon very was were what when where
    which while who whom why will with within without would you your yours
    aber als auch auf aus bei bis das dass dem den der des die dies diese ein eine einem einen einer eines für hat ist kann mit
    nach nicht noch nur oder sich sie sind und uns von vor war was wenn werden wie wir wird zum zur
    les des une dans pour par sur est sont avec que qui pas plus nous vous""".split()  # noqa: SIM905
)  # fmt: skip


def content_words(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """The content words of a text, and those of them that are numbers (thousands separators removed) or names."""
    words, particular = set(), set()
    for position, token in enumerate(_TOKEN.findall(text)):
        word = token.lower()
        if word[0].isdigit():
            word = re.sub(r",(?=\d{3}\b)", "", word)
            particular.add(word)
        elif word in _STOP:
            continue
        else:
            word = word[:STEM]
            if position and token[0].isupper():
                particular.add(word)
        words.add(word)
    return frozenset(words), frozenset(particular)


class Attribution:
    """Finds the supporting source among the texts of the sources in the prompt (with their titles and headings)."""

    def __init__(self, sources: Sequence[str], question: str = "") -> None:
        self._texts = sources
        self._question = question
        self._words: list[frozenset[str]] | None = None

    def best(self, sentence: str) -> int | None:
        """The position of the source that supports the sentence best; None when no source passes the thresholds."""
        words, particular = content_words(_ENUMERATOR.sub("", sentence))
        if not words or _LACKING.search(sentence):
            return None
        if len(words) < MIN_SHARED:
            words, particular = words | content_words(self._question)[0], words
        if self._words is None:
            self._words = [content_words(text)[0] for text in self._texts]
        best, best_score = None, 0.0
        for position, known in enumerate(self._words):
            shared = words & known
            if len(shared) < MIN_SHARED or len(shared) < MIN_SHARE * len(words) or not particular <= known:
                continue
            score = sum(self._rarity(word) for word in shared)
            if score > best_score:
                best, best_score = position, score
        return best

    def _rarity(self, word: str) -> float:
        assert self._words is not None
        holders = sum(word in known for known in self._words)
        return math.log(1 + len(self._words) / holders)
