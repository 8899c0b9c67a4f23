"""Where a Markdown text may be cut: its headings, and the blocks (tables, code, lists, paragraphs) between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest

from markdown_it import MarkdownIt

DEEPEST_SECTION = 3
"""Headings down to this level begin a section; deeper ones only are good places for a cut."""

# blocks are all that is asked for: the markup within them (emphasis, links) is never parsed
_PARSER = MarkdownIt("commonmark").enable("table").disable("inline")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?P<fields>(?:(?:[\w-]+:|[ \t#-]).*\n)*?)---[ \t]*(?:\n|\Z)")
_TITLE = re.compile(r"^title:[ \t]*(?P<quote>[\"']?)(?P<title>.+?)(?P=quote)[ \t]*$", re.MULTILINE)
_MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[*`]+(?=\S)|(?<=\S)[*`]+|(?<!\w)_+(?=\S)|(?<=\S)_+(?!\w)")


@dataclass(frozen=True)
class Section:
    """Lines `first` (counted from 0) up to `last` (not included). `path` are the headings above, its own at the end."""

    first: int
    last: int
    path: tuple[str, ...]
    bare: bool
    """Whether there is nothing but the heading."""


@dataclass(frozen=True)
class Outline:
    """A Markdown text's title (front matter, or the first heading of level 1), its sections, and the lines where blocks begin."""

    title: str | None
    sections: tuple[Section, ...]
    blocks: tuple[int, ...]


def outline(text: str) -> Outline:
    """Read a text's structure. The sections cover all lines, in order."""
    title = None
    if front := _FRONT_MATTER.match(text):
        named = _TITLE.search(front["fields"])
        title = named["title"] if named else None
        text = "\n" * front[0].count("\n") + text[front.end() :]  # its dashes would be read as a heading
    lines = text.count("\n") + 1
    blocks: list[int] = []
    starts: list[tuple[int, int, tuple[str, ...]]] = [(0, 0, ())]  # first line, first line below the heading, path
    path: list[tuple[int, str]] = []
    tokens = _PARSER.parse(text)
    for token, following in zip_longest(tokens, tokens[1:]):
        if token.level or token.map is None:
            continue
        blocks.append(token.map[0])
        if token.type != "heading_open" or following is None:
            continue
        level, words = int(token.tag[1:]), plain(following.content)
        if level == 1 and title is None:
            title = words
        if level <= DEEPEST_SECTION:
            path = [(depth, heading) for depth, heading in path if depth < level] + [(level, words)]
            starts.append((token.map[0], token.map[1], tuple(heading for _, heading in path if heading)))
    ends = [first for first, _, _ in starts[1:]] + [lines]
    all_lines = text.split("\n")
    sections = [
        Section(first, last, path, bare=not any(line.strip() for line in all_lines[below:last]))
        for (first, below, path), last in zip(starts, ends, strict=True)
        if last > first
    ]
    return Outline(title, tuple(sections), tuple(blocks))


def plain(heading: str) -> str:
    """A heading without its markup."""
    return " ".join(_MARKUP.sub(lambda match: match[1] or "", heading).split())
