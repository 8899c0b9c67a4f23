"""The kinds by all the names that a person may type, and references to objects on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmops_operator.cli.faults import CommandError

GROUP = "llmops.dev"


@dataclass(frozen=True)
class Kind:
    """A kind's names; `done` is the condition that sums it up."""

    kind: str
    singular: str
    plural: str
    short: str
    done: str


KINDS = (
    Kind("TrainingJob", "trainingjob", "trainingjobs", "tj", "Succeeded"),
    Kind("EmbeddingIndex", "embeddingindex", "embeddingindexes", "ei", "Ready"),
    Kind("RagService", "ragservice", "ragservices", "rag", "Ready"),
)
"""In the order in which data flows. Said again here because reading the API models takes longer than answering `get`."""

BY_KIND = {kind.kind: kind for kind in KINDS}
_BY_WORD = {
    word: kind
    for kind in KINDS
    for name in (kind.singular, kind.plural, kind.short)
    for word in (name, f"{name}.{GROUP}")
}
WORDS = ", ".join(f"{kind.plural} ({kind.short})" for kind in KINDS)


@dataclass(frozen=True)
class Target:
    """One object, or all of a kind."""

    kind: Kind
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.kind.singular}.{GROUP}/{self.name}"


def find_kind(word: str) -> Kind:
    """The kind that a word means. Raises `CommandError`."""
    if kind := _BY_WORD.get(word.lower()):
        return kind
    raise CommandError(f'there is no kind "{word}": write one of {WORDS}')


def parse_targets(words: Sequence[str]) -> list[Target]:
    """`all`, `tj`, `tj,ei`, `tj NAME…` or `tj/NAME ei/NAME…`, as kubectl reads them. Raises `CommandError`."""
    if not words:
        raise CommandError(f"say what: a kind ({WORDS}), a kind and a name, or KIND/NAME")
    if any("/" in word for word in words):
        return [parse_object(word) for word in words]
    first, *names = words
    kinds = [kind for word in first.split(",") for kind in (KINDS if word == "all" else (find_kind(word),))]
    if not names:
        return [Target(kind) for kind in dict.fromkeys(kinds)]
    if len(kinds) > 1:
        raise CommandError(f"a name needs one kind: write {kinds[0].short}/{names[0]}")
    return [Target(kinds[0], name) for name in names]


def parse_object(word: str) -> Target:
    """`tj/NAME`. Raises `CommandError`."""
    kind, slash, name = word.partition("/")
    if not slash or not name or "/" in name:
        raise CommandError(f'"{word}" is no object: write KIND/NAME, for example tj/my-job')
    return Target(find_kind(kind), name)


def parse_one(words: Sequence[str]) -> Target:
    """One object, as `tj/NAME` or `tj NAME`. Raises `CommandError`."""
    targets = parse_targets(words)
    if len(targets) != 1 or targets[0].name is None:
        raise CommandError("name one object: write KIND/NAME, for example tj/my-job")
    return targets[0]
