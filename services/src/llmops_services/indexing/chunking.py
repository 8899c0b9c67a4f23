"""From a document to chunks that the embedding model reads whole.

A chunk's `text` is a piece of the document, character for character, and is what is stored, shown and put into prompts. What is
*embedded* (and indexed by keywords) is the piece behind its context: the document's title and the headings it stands under,
"Annual leave: Germany > Carry-over", so that a chunk is found by what it is about even where its own words do not say so.
`maxTokens` counts all that the model reads for a chunk: special tokens, document prefix, context and text.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from llmops_api.embedding_models import chunks_too_long
from llmops_api.reasons import FailureReason
from llmops_api.v1alpha1.embedding_index import Chunking, ChunkingStrategy
from llmops_services.embedding import Tokens
from llmops_services.indexing.documents import Document, Kind
from llmops_services.indexing.markdown import Outline, Section, outline
from llmops_services.program import UserError

LEAST_TEXT_TOKENS = 8
"""What must be left for the text itself beside prefix and special tokens."""
_LONGEST_TOKEN = 32
"""Characters. A longer run that the model takes as one unknown token (base64, say) is cut as if it had more of them."""
_SEPARATORS = [re.compile(pattern) for pattern in (r"\n[ \t]*\n\s*", r"\n", r"(?<=[.!?…:;])\s+", r"\s+")]
"""From the best place for a cut to the worst: paragraphs, lines, sentences, words."""
_BLANK_LINES = re.compile(r"(?:[ \t]*\n)*")


@dataclass(frozen=True)
class Chunk:
    """A piece of a document. `section` is the heading path, `lines` the first and last line, counted from 1."""

    text: str
    context: str
    section: str
    lines: tuple[int, int]

    @property
    def embedded(self) -> str:
        """What is embedded, behind the document prefix."""
        return _embedded(self.context, self.text)

    @property
    def hash(self) -> str:
        """32 hex digits; the same for the same embedded text."""
        return hashlib.sha256(self.embedded.encode()).hexdigest()[:32]


def _embedded(context: str, text: str) -> str:
    return f"{context}\n\n{text}" if context else text


@dataclass(frozen=True)
class ChunkedDocument:
    """A document's title and its chunks in order. Every line that is not blank is in one of them."""

    title: str
    chunks: tuple[Chunk, ...]


class Chunker:
    """Cuts documents as a spec says. The same document always gives the same chunks."""

    def __init__(
        self, tokens: Tokens, chunking: Chunking, document_prefix: str = "", model: str = "the embedding model"
    ) -> None:
        """Raises `UserError` when chunks of this size would not be read whole, or would have no room for text."""
        self._tokens = tokens
        self._prefix = document_prefix
        self._overlap = chunking.overlap_tokens
        self._max = chunking.max_tokens
        self._markdown = chunking.strategy is ChunkingStrategy.MARKDOWN
        self._room = chunking.max_tokens - tokens.special - tokens.count([document_prefix])[0]
        if too_long := chunks_too_long(chunking.max_tokens, model, tokens.maximum):
            raise UserError(FailureReason.CHUNKS_TOO_LONG, too_long)
        if self._room < LEAST_TEXT_TOKENS:
            raise UserError(
                FailureReason.CHUNKS_TOO_SHORT,
                f"chunking.maxTokens is {chunking.max_tokens}, of which the special tokens and embedding.documentPrefix take "
                f"{chunking.max_tokens - self._room}: raise maxTokens (up to {tokens.maximum}), or shorten documentPrefix",
            )

    def cut(self, document: Document) -> ChunkedDocument:
        """Cut a document."""
        structure = outline(document.text) if document.kind is Kind.MARKDOWN else Outline(None, (), ())
        title = document.title or structure.title or PurePosixPath(document.path).stem
        known = title if document.title or structure.title else None
        text = _Text(document.text, self._tokens, structure.blocks if self._markdown else ())
        chunks: list[Chunk] = []
        for part in (
            self._parts(text, structure)
            if self._markdown and structure.sections
            else [_Part(0, len(text.text), (), False)]
        ):
            path = part.path if not known or part.path[:1] == (known,) else (known, *part.path)
            context, room = self._context(path)
            for start, end in self._fitting(text, part.start, part.end, room, " > ".join(context)):
                own = context[:-1] if part.headed and start == part.start else context
                lines = text.lines(start, end)
                chunks.append(
                    Chunk(
                        text=text.text[start:end],
                        context=" > ".join(own),
                        section=" > ".join(_path_of_lines(structure.sections, *lines)),
                        lines=(document.line, document.line) if document.line else lines,
                    )
                )
        return ChunkedDocument(title, tuple(chunks))

    def _parts(self, text: _Text, structure: Outline) -> Iterator[_Part]:
        """The sections; a bare heading goes with what follows it, and tiny neighbours are put together."""
        tiny, run = self._max // 16, list[Section]()
        size = 0
        for section in _with_bare_headings(structure.sections):
            tokens = text.tokens(text.line_start(section.first), text.line_start(section.last))
            together = _Part.of(text, [*run, section])
            room = self._context(together.path)[1]
            if run and ((size >= tiny and tokens >= tiny) or size + tokens > room):
                yield _Part.of(text, run)
                run, size = [], 0
            run.append(section)
            size += tokens
        if run:
            yield _Part.of(text, run)

    def _context(self, path: Sequence[str]) -> tuple[tuple[str, ...], int]:
        """As much of a heading path as takes a quarter of the room at most, the nearest heading first; and the room it leaves."""
        for first in range(len(path)):
            (size,) = self._tokens.count([_embedded(" > ".join(path[first:]), "")])
            if size * 4 <= self._room:
                return tuple(path[first:]), self._room - size
        return (), self._room

    def _fitting(self, text: _Text, start: int, end: int, room: int, context: str) -> Iterator[tuple[int, int]]:
        """Spans whose embedded text really has at most `maxTokens`. Counts of parts add up only nearly: the sum is checked."""
        spans = [text.trimmed(*span) for span in text.pack(start, end, room, self._overlap)]
        spans = [(first, last) for first, last in spans if first < last]
        sizes = self._sizes([_embedded(context, text.text[first:last]) for first, last in spans])
        for (first, last), size in zip(spans, sizes, strict=True):
            if size <= self._max or last - first == 1:
                yield first, last
            elif (inside := text.tokens(first, last)) > 1:
                yield from self._fitting(text, first, last, min((inside + 1) // 2, room), context)
            else:
                middle = (first + last) // 2
                yield from self._fitting(text, first, middle, room, context)
                yield from self._fitting(text, middle, last, room, context)

    def _sizes(self, texts: Sequence[str]) -> list[int]:
        return [count + self._tokens.special for count in self._tokens.count([self._prefix + text for text in texts])]


@dataclass(frozen=True)
class _Part:
    """Characters that are cut together. `headed` says whether the last heading of `path` is at the very start."""

    start: int
    end: int
    path: tuple[str, ...]
    headed: bool

    @classmethod
    def of(cls, text: _Text, sections: Sequence[Section]) -> _Part:
        path = _common([section.path for section in sections])
        return cls(
            text.line_start(sections[0].first),
            text.line_start(sections[-1].last),
            path,
            bool(path) and path == sections[0].path,
        )


def _with_bare_headings(sections: Sequence[Section]) -> Iterator[Section]:
    """The sections that hold something, each beginning at the bare headings above it."""
    first: int | None = None
    for number, section in enumerate(sections):
        begin = section.first if first is None else first
        if section.bare and number < len(sections) - 1:
            first = begin
        else:
            yield Section(begin, section.last, section.path, bare=False)
            first = None


def _path_of_lines(sections: Sequence[Section], first: int, last: int) -> tuple[str, ...]:
    """The headings that all of these lines (counted from 1) stand under."""
    touched = [section for section in sections if section.first < last and first <= section.last]
    return _common([section.path for section in touched if not section.bare] or [section.path for section in touched])


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """What all heading paths begin with."""
    if not paths:
        return ()
    shortest, longest = min(paths), max(paths)
    same = [a == b for a, b in zip(shortest, longest, strict=False)]
    return shortest[: same.index(False) if False in same else len(same)]


class _Text:
    """A text with the places where its tokens, lines and blocks begin."""

    def __init__(self, text: str, tokens: Tokens, blocks: Sequence[int]) -> None:
        self.text = text
        lines = [f"{line}\n" for line in text.split("\n")]  # some tokenizers count line ends
        lengths = np.fromiter(map(len, lines), dtype=np.int64, count=len(lines))
        self._lines = np.concatenate(([0], np.cumsum(lengths)))
        self._tokens = _token_starts(lines, self._lines, tokens)
        self._blocks = [self.line_start(line) for line in blocks]

    def line_start(self, line: int) -> int:
        """Position of the first character of a line, counted from 0; the end of the text behind the last one."""
        return min(int(self._lines[line]), len(self.text))

    def lines(self, start: int, end: int) -> tuple[int, int]:
        """First and last line of a span, counted from 1."""
        first, last = np.searchsorted(self._lines, [start, max(end - 1, start)], side="right")
        return int(first), int(last)

    def tokens(self, start: int, end: int) -> int:
        """Tokens that begin in a span."""
        first, last = np.searchsorted(self._tokens, [start, end], side="left")
        return int(last - first)

    def trimmed(self, start: int, end: int) -> tuple[int, int]:
        """A span without blank lines around it; what indents its first line stays."""
        end = start + len(self.text[start:end].rstrip())
        blank = _BLANK_LINES.match(self.text, start, end)
        return (blank.end() if blank else start), end

    def pack(self, start: int, end: int, room: int, overlap: int) -> Iterator[tuple[int, int]]:
        """Spans of at most `room` tokens that cover a span, each beginning up to `overlap` tokens before the end of the last."""
        begin: int | None = None
        reached = start
        for first, last in self._atoms(start, end, room, -1):
            if begin is None:
                begin = first
            elif self.tokens(begin, last) > room:
                yield begin, reached
                begin = self._step_back(first, start, overlap)
                if self.tokens(begin, last) > room:
                    begin = first
            reached = last
        if begin is not None:
            yield begin, reached

    def _atoms(self, start: int, end: int, room: int, level: int) -> Iterator[tuple[int, int]]:
        """Neighbouring spans of at most `room` tokens, cut at the best places that allow it."""
        if self.tokens(start, end) <= room:
            yield start, end
            return
        if level == len(_SEPARATORS):
            begins = self._tokens[np.searchsorted(self._tokens, start) : np.searchsorted(self._tokens, end)]
            cuts = [int(cut) for cut in begins[room::room]]
        elif level < 0:
            cuts = self._blocks[bisect_right(self._blocks, start) : bisect_right(self._blocks, end - 1)]
        else:
            cuts = [match.end() for match in _SEPARATORS[level].finditer(self.text, start, end)]
        for first, last in zip([start, *cuts], [*cuts, end], strict=True):
            if first < last:
                yield from self._atoms(first, last, room, level + 1) if level < len(_SEPARATORS) else [(first, last)]

    def _step_back(self, position: int, least: int, overlap: int) -> int:
        """Where an overlap begins: at a line, else a sentence, else a word, at most `overlap` tokens before `position`."""
        if not overlap:
            return position
        index = int(np.searchsorted(self._tokens, position))
        far = max(int(self._tokens[max(index - overlap, 0)]), least)
        for separator in _SEPARATORS[1:]:
            for match in separator.finditer(self.text, max(far - 1, least), position):
                if far <= match.end() < position:
                    return match.end()
        return position


def _token_starts(lines: Sequence[str], begins: NDArray[np.int64], tokens: Tokens) -> NDArray[np.int64]:
    found: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    for begin, line, starts in zip(begins, lines, tokens.starts(lines), strict=False):
        if not starts:
            continue
        places = np.asarray(starts, dtype=np.int64)
        gaps = np.flatnonzero(np.diff(np.append(places, len(line))) > _LONGEST_TOKEN)
        if len(gaps):
            bounds = [*places.tolist(), len(line)]
            more = [np.arange(bounds[gap] + _LONGEST_TOKEN, bounds[gap + 1], _LONGEST_TOKEN) for gap in gaps]
            places = np.sort(np.concatenate([places, *more]))
        found.append(places + begin)
    return np.concatenate(found)
