"""Marks like [1] in an answer, made right while it streams.

`Citer.feed` takes the model's text piece by piece and gives back what may be shown by now; however the text is cut, the pieces
put together are the same. It decides on single characters and holds back only what the next one may change: spaces, a possible
mark, and the end of a sentence until it is clear that no mark follows it.

- A mark counts the sources of the prompt; in the answer sources are counted in the order of their use.
- A mark of a source that was not in the prompt is removed, with the space before it.
- A sentence without a mark gets the mark of the source that supports it (`attribution`), before its full stop.
- Code between backticks is left alone, and so are headings, table rows and lines that end in a colon (given no mark).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum

_MARK = re.compile(r"\[ *\d{1,3}(?: *[,;] *\d{1,3})* *\]")
_OPEN = re.compile(r"\[[\d ,;]*$")
_NUMBER = re.compile(r"\d+")
_SPECIAL = re.compile(r"[\s\[.!?…`]")
_LIST_NUMBER = re.compile(r"\s*(?:[-*+]\s+)?(?:\d{1,3}|[a-zA-Z])")
_LIST_PREFIX = re.compile(r"^(?:\d{1,3}|[a-zA-Z])[.)]\s+")
_MARK_CHARS = frozenset("0123456789 ,;")
_ENDS = frozenset(".!?…")
_CLOSERS = frozenset("\"')*_”’»")  # noqa: RUF001
_ABBREVIATIONS = frozenset(
    """approx art ca cf ch dept dr e.g eg etc fig i.e ie inc incl jr ltd max min mr mrs ms no nos nr p para pp prof resp sec st vol
    vs bzw bspw evtl ggf inkl usw z.b d.h""".split()  # noqa: SIM905
)
_MAX_HELD = 24
_MAX_SENTENCE = 4000


class AttributedBy(StrEnum):
    """Who said that a source supports the answer: the model by a mark, or the overlap of words."""

    MODEL = "model"
    OVERLAP = "overlap"


class Citer:
    """Rewrites one answer. `count` sources were in the prompt, numbered from 1; `best` finds the position of the source that
    supports a sentence, or None.
    """

    def __init__(self, count: int, best: Callable[[str], int | None]) -> None:
        self._count, self._best = count, best
        self.used: dict[int, AttributedBy] = {}
        """The sources that are cited, by their number in the prompt, in the order of their numbers in the answer."""
        self._number: dict[int, int] = {}
        self._out: list[str] = []
        # What is held back, in the order of the text: an end of a sentence, spaces, a possible mark.
        self._end = self._space = self._mark = ""
        self._removed_space = ""
        self._sentence = ""
        self._marked = False
        self._ended_here = False
        self._beside: set[int] = set()
        self._ticks = self._code = 0

    def feed(self, text: str) -> str:
        """The next piece of the model's text; returns what may be shown now."""
        position, length = 0, len(text)
        while position < length:
            if not (self._end or self._space or self._mark or self._removed_space or self._ticks or self._code):
                special = _SPECIAL.search(text, position)
                stop = special.start() if special else length
                if stop > position:
                    self._plain(text[position:stop])
                    position = stop
                    continue
            self._character(text[position])
            position += 1
        return self._take()

    def finish(self) -> str:
        """The rest, after the last piece. A mark that was cut off is left out."""
        if self._mark:
            mark, self._mark = self._mark, ""
            if _NUMBER.search(mark):
                self._space = ""
            else:
                self._settle(mark)
                self._plain(mark)
        if self._code < 3:
            self._end_sentence()
        self._emit(self._space)
        self._space = ""
        return self._take()

    def _take(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text

    def _emit(self, text: str) -> None:
        if text:
            self._out.append(text)

    def _plain(self, text: str) -> None:
        self._emit(text)
        self._beside.clear()
        self._sentence += text
        if len(self._sentence) > 2 * _MAX_SENTENCE:
            self._sentence = self._sentence[-_MAX_SENTENCE:]

    def _character(self, c: str) -> None:
        if self._ticks and c != "`":
            self._code = 0 if self._code and self._ticks >= self._code else self._code or self._ticks
            self._ticks = 0
        if self._code and c != "`":
            if self._code >= 3:
                self._emit(c)
                return
            if c != "\n":
                self._plain(c)
                return
            self._code = 0
        if self._mark:
            if self._continue_mark(c):
                return
            mark, self._mark = self._mark, ""
            self._settle(mark)
            self._plain(mark)
        if self._removed_space and (c.isalnum() or c == "["):
            self._space, self._removed_space = self._removed_space + self._space, ""
        if c == "[":
            self._mark = c
        elif c == "\n":
            self._removed_space = ""
            self._end_line()
        elif c.isspace():
            self._removed_space = ""
            self._space += c
            if len(self._space) > _MAX_HELD:
                self._settle(c)
        elif c in _ENDS and len(self._end) < _MAX_HELD:
            self._removed_space = ""
            if self._space:
                self._settle(c)
            self._end += c
        elif self._end and not self._space and c in _CLOSERS and len(self._end) < _MAX_HELD:
            self._end += c
        else:
            self._removed_space = ""
            self._settle(c)
            self._plain(c)
            self._ticks += c == "`"

    def _continue_mark(self, c: str) -> bool:
        if c in _MARK_CHARS and len(self._mark) < _MAX_HELD:
            self._mark += c
            return True
        if c == "]" and _MARK.fullmatch(self._mark + c):
            mark, self._mark = self._mark, ""
            self._apply([int(number) for number in _NUMBER.findall(mark)])
            return True
        return False

    def _apply(self, numbers: list[int]) -> None:
        valid = [number for number in dict.fromkeys(numbers) if 1 <= number <= self._count]
        fresh = [number for number in valid if number not in self._beside]
        if not fresh:
            if _OPEN.search(self._sentence[-_MAX_HELD:] + self._end + self._space):
                # what stands before would make a mark with what follows: "[[9]1]"
                self._settle("(")
                self._plain(f"({numbers[0]})")
            else:
                self._removed_space, self._space = self._space, ""
            return
        blank = not self._sentence.strip()
        self._emit(self._end + self._space + "".join(self._mark_of(number, AttributedBy.MODEL) for number in fresh))
        self._beside.update(fresh)
        if self._end:
            self._new_sentence()
            self._ended_here = True
        elif not (blank and self._ended_here):
            self._marked = True
        self._end = self._space = ""

    def _mark_of(self, number: int, by: AttributedBy) -> str:
        if number not in self._number:
            self._number[number] = len(self._number) + 1
            self.used[number] = by
        elif by is AttributedBy.MODEL:
            self.used[number] = by
        return f"[{self._number[number]}]"

    def _settle(self, following: str) -> None:
        """Decide on what is held, now that the next character (or a text that begins with it) is known."""
        if self._end and self._space and self._is_sentence_end(following[:1]):
            self._end_sentence()
            self._ended_here = True
            self._emit(self._space)
        elif self._end or self._space:
            self._plain(self._end + self._space)
        self._end = self._space = ""

    def _is_sentence_end(self, following: str) -> bool:
        if following.islower():
            return False
        if self._end != ".":
            return True
        words = self._sentence.split()
        last = words[-1].lstrip("([\"'*_").lower() if words else ""
        return not (last in _ABBREVIATIONS or _LIST_NUMBER.fullmatch(self._sentence) or re.fullmatch(r"[^\W\d_]", last))

    def _end_line(self) -> None:
        self._end_sentence()
        self._emit(self._space + "\n")
        self._space = ""
        self._ended_here = False
        self._beside.clear()

    def _end_sentence(self) -> None:
        """Write the mark that is missing, if there is a source for it, and the held end of the sentence."""
        text = _LIST_PREFIX.sub("", self._sentence.strip())
        if text and not self._marked and not text.startswith(("#", "|")) and not text.endswith(":"):
            position = self._best(text)
            if position is not None:
                self._emit(f" {self._mark_of(position + 1, AttributedBy.OVERLAP)}")
        self._emit(self._end)
        self._end = ""
        self._new_sentence()

    def _new_sentence(self) -> None:
        self._sentence, self._marked = "", False
