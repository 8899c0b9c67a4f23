"""The documents of the sources: which files there are, what is in them, and which of them are not documents."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

from llmops_api.reasons import FailureReason
from llmops_api.unicode import half_character
from llmops_api.v1alpha1.embedding_index import IndexSource, RejectedDocument
from llmops_services.program import TryAgain, UserError
from llmops_services.uris import local_path

log = logging.getLogger(__name__)

MAX_BYTES = 32 * 2**20
"""A larger document (a file, or a line of a JSONL file) is rejected: it would have to be held in memory as a whole."""
_METADATA_DEPTH = 8
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""How it ends to follow a link that leads nowhere."""
_DOCUMENTS = uuid.UUID("6f1d1a52-6f5c-5d0b-9a63-0b6b7f9d8a11")


class Kind(Enum):
    """How a document's text is to be read."""

    MARKDOWN = auto()
    PLAIN = auto()


@dataclass(frozen=True)
class SourceFile:
    """A file of a source; `path` is relative to the source's folder, with `/` on every system."""

    source: IndexSource
    file: Path
    path: str
    size: int


@dataclass(frozen=True)
class Document:
    """A text with what is known about it. `title` is None where only the text itself may tell.

    `content_hash` is of the bytes; `document_hash` also of everything else that is stored with its chunks, so that a change of
    a source's metadata is seen.
    """

    source: IndexSource
    path: str
    uri: str
    text: str
    kind: Kind
    content_hash: str
    title: str | None = None
    line: int | None = None
    """The line of the JSONL file that the document is."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The same for the same place in the same source, whatever is written there."""
        return str(uuid.uuid5(_DOCUMENTS, f"{self.source.name}/{self.path}"))

    @property
    def document_hash(self) -> str:
        """32 hex digits over everything that is stored of the document."""
        whole = json.dumps([self.content_hash, self.uri, self.line, self.metadata], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:32]


def list_files(sources: Sequence[IndexSource]) -> list[SourceFile]:
    """All files that the sources include, in an order that stays.

    Raises `UserError` for a source that is not there, and `UserError` or `TryAgain` for a folder that cannot be listed: what is in
    it would be taken for deleted.
    """
    found: list[SourceFile] = []
    for source in sources:
        try:
            root = local_path(source.uri)
        except UserError as error:
            raise UserError(error.reason, f"source {source.name}: {error}") from error
        if root.is_file():
            found.append(SourceFile(source, root, root.name, root.stat().st_size))
            continue
        include, exclude = _globs(source.include), _globs(source.exclude)
        found.extend(
            SourceFile(source, root / path, path, _size(source, root / path, path))
            for path in sorted(_walk(source, root, exclude))
            if include.fullmatch(path) and not exclude.fullmatch(path)
        )
    return found


def _walk(source: IndexSource, root: Path, exclude: re.Pattern[str]) -> Iterator[str]:
    """Paths of files below `root`. What begins with a dot is somebody's workshop (.git, .ipynb_checkpoints), not a document, and
    lost+found is the file system's, which nobody else may list.
    """

    def refuse(error: OSError) -> None:
        folder = Path(error.filename).relative_to(root).as_posix()
        if not exclude.fullmatch(f"{folder}/"):
            raise _unreadable(source, root / folder, f"{folder}/**", error) from error

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "lost+found"]
        for name in files:
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _size(source: IndexSource, file: Path, path: str) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise _unreadable(source, file, path, error) from error
        return 0  # it is rejected when it is read


def _unreadable(source: IndexSource, place: Path, glob: str, error: OSError) -> UserError | TryAgain:
    """What is there and cannot be read says nothing about its documents: the sync fails, and none of them is deleted."""
    denied = isinstance(error, PermissionError)
    do = f"allow it, or add {glob} to exclude" if denied else "see whether the disk or server that it lies on works"
    message = f"source {source.name}: {place} cannot be read ({error.strerror}): {do}; what is indexed already was kept"
    return (UserError if denied else TryAgain)(FailureReason.FILE_UNREADABLE, message)


def _globs(patterns: Sequence[str]) -> re.Pattern[str]:
    """Globs as one expression: `**/` crosses folders (none or many), `*` and `?` stay within a name, `[…]` is a set."""
    return re.compile("|".join(f"(?:{_glob(pattern)})" for pattern in patterns) or r"(?!)")


def _glob(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern.removeprefix("./"))
    translated = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        translated[part]
        if part in translated
        else re.sub(r"^\[!", "[^", part)
        if part.startswith("[") and len(part) > 2
        else re.escape(part)
        for part in parts
    )


class Rejects:
    """Documents that are not in the index: the first few with their reasons, and how many there are."""

    KEPT = 10

    def __init__(self) -> None:
        self.count = 0
        self.first: list[RejectedDocument] = []

    def add(self, path: str, reason: str) -> None:
        """Note a document that was rejected."""
        self.count += 1
        path, reason = (text.encode(errors="replace").decode() for text in (path, reason))
        log.warning("rejected: %s %s", path, reason)
        if len(self.first) < self.KEPT:
            self.first.append(RejectedDocument(path=path[-1024:], reason=reason[:1024]))


def read_documents(files: Sequence[SourceFile], rejects: Rejects) -> Iterator[tuple[Document | None, int]]:
    """Read the documents one after the other, each with the number of bytes that were read since the one before.

    None stands for a file (or line) that held no document and went to `rejects`; it stops nothing else. Raises `UserError` or
    `TryAgain` for a file that is there and cannot be read.
    """
    for file in files:
        if file.path.endswith(".jsonl"):
            yield from _records(file, rejects)
            continue
        name = f"{file.source.name}/{file.path}"
        try:
            _check_encodable(file.path, "has a name that")
            raw = _read(file)
            document = Document(
                source=file.source,
                path=file.path,
                uri=_uri(file),
                text=_text(raw),
                kind=Kind.MARKDOWN if file.path.lower().endswith((".md", ".markdown")) else Kind.PLAIN,
                content_hash=hashlib.sha256(raw).hexdigest(),
                metadata=file.source.metadata,
            )
        except _NoDocument as error:
            rejects.add(name, str(error))
            yield None, file.size
        else:
            yield document, file.size


class _NoDocument(Exception):
    """Why something that was found is not a document."""


def _read(file: SourceFile) -> bytes:
    try:
        with file.file.open("rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise _NoDocument(_not_there(file, error)) from error
    if len(raw) > MAX_BYTES:
        raise _NoDocument(f"is larger than {MAX_BYTES >> 20} MiB; split it, or exclude it")
    return raw


def _not_there(file: SourceFile, error: OSError) -> str:
    """Why a file is rejected that was listed and is not there: a link that leads nowhere. Raises `_unreadable` for one that is."""
    if error.errno not in _NOT_THERE:
        raise _unreadable(file.source, file.file, file.path, error) from error
    return f"is not there ({error.strerror}); correct the link, or exclude it"


def _check_encodable(text: str, what: str) -> None:
    if half_character(text):
        raise _NoDocument(f"{what} is not Unicode text; correct it")


def _text(raw: bytes) -> str:
    """Decode a document; line ends become \\n, so that lines are counted alike everywhere."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _NoDocument(
            f"is not UTF-8 (line {line}: byte 0x{raw[error.start]:02x}); save it as UTF-8, or exclude it"
        ) from error
    if "\0" in text:
        raise _NoDocument("holds NUL bytes, so it is no text; exclude it")
    if not text.strip():
        raise _NoDocument("is empty; write something into it, or exclude it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _uri(file: SourceFile) -> str:
    uri = file.source.uri
    return uri if uri.endswith(file.path) else f"{uri.rstrip('/')}/{file.path}"


def _records(file: SourceFile, rejects: Rejects) -> Iterator[tuple[Document | None, int]]:
    """The documents of a JSONL file, one a line: {"text", "title"?, "id"?, "metadata"?}."""
    name, seen, number = f"{file.source.name}/{file.path}", dict[str, int](), 0
    try:
        with file.file.open("rb") as lines:
            while raw := lines.readline(MAX_BYTES + 1):
                number += 1
                if raw.isspace():
                    continue
                if len(raw) > MAX_BYTES:
                    rejects.add(name, f"line {number} is longer than {MAX_BYTES >> 20} MiB; split it")
                    while raw and not raw.endswith(b"\n"):
                        raw = lines.readline(MAX_BYTES)
                    continue
                try:
                    yield _record(file, raw, number, seen), len(raw)
                except _NoDocument as error:
                    rejects.add(name, f"line {number} {error}")
                    yield None, len(raw)
    except OSError as error:
        rejects.add(name, _not_there(file, error))
        yield None, file.size
        return
    if number == 0:
        rejects.add(name, "is empty; write something into it, or exclude it")
        yield None, 0


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _storable(value: Any, depth: int) -> bool:
    """Whether a vector store takes a value as part of a payload."""
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_storable(one, depth - 1) for one in inside)
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _record(file: SourceFile, raw: bytes, number: int, seen: dict[str, int]) -> Document:
    try:
        record = json.loads(_text(raw), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _NoDocument(f'is not JSON ({error}); write {{"text": "…"}} on each line') from error
    wanted: dict[str, type | tuple[type, ...]] = {"text": str, "title": str, "id": (str, int), "metadata": dict}
    if not isinstance(record, dict) or not isinstance(record.get("text"), str) or not record["text"].strip():
        raise _NoDocument('has no text: write {"text": "…"}, not empty')
    for key, kind in wanted.items():
        if record.get(key) is not None and not isinstance(record[key], kind):
            raise _NoDocument(f"has a wrong {key}: {'write an object' if kind is dict else 'write a string'}")
    if not _storable(record.get("metadata") or {}, _METADATA_DEPTH):
        raise _NoDocument(
            f"has metadata that is nested deeper than {_METADATA_DEPTH} or holds a number of more than 64 bits; write simple values"
        )
    _check_encodable(json.dumps(record, ensure_ascii=False), "holds what")
    # a line without an id is known by its number: then a line inserted above it makes it another document
    own = str(record["id"]) if record.get("id") is not None else f"L{number}"
    if own in seen:
        raise _NoDocument(f"has the id {own!r} of line {seen[own]}; give each line an id of its own")
    seen[own] = number
    return Document(
        source=file.source,
        path=f"{file.path}#{own}",
        uri=f"{_uri(file)}#L{number}",
        text=record["text"].replace("\r\n", "\n").replace("\r", "\n"),
        kind=Kind.MARKDOWN,
        content_hash=hashlib.sha256(raw.strip()).hexdigest(),
        title=record.get("title") or own,
        line=number,
        metadata={**file.source.metadata, **(record.get("metadata") or {})},
    )
