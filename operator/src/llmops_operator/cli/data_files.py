"""Looks into the files that manifests point at: are they there, are they text, is every line what it has to be? Cheap, offline."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from llmops_api.embedding_models import chunks_too_long, tokens_read
from llmops_api.unicode import half_character
from llmops_api.v1alpha1.embedding_index import Chunking
from llmops_operator.cli.faults import Fault
from llmops_operator.cli.manifests import Document
from llmops_operator.domain.sentences import Loc

ROLES = ("system", "user", "assistant")
FAULTS_PER_FILE = 10
"""After these a file is not read on: what follows is most often the same mistake."""

Check = Callable[[dict[str, Any]], str | None]
"""What is wrong with one line of a file, or None."""


def check_chunks(document: Document) -> list[Fault]:
    """Whether a valid EmbeddingIndex cuts longer chunks than its embedding model reads, where the model lies on this machine."""
    spec = document.value["spec"]
    if document.value["kind"] != "EmbeddingIndex" or not isinstance(
        path := _local(spec["embedding"]["model"]["uri"]), Path
    ):
        return []
    asked, read = Chunking.model_validate(spec.get("chunking", {})).max_tokens, tokens_read(path)
    too_long = read and chunks_too_long(asked, spec["embedding"]["model"]["uri"], read)
    return [document.fault(("spec", "chunking", "maxTokens"), too_long)] if too_long else []


def check_data(document: Document) -> list[Fault]:
    """What is wrong with the files of a valid object whose URIs are absolute."""
    spec = document.value["spec"]
    return [fault for loc, check in _files(document.value["kind"], spec) for fault in _at(document, spec, loc, check)]


def _files(kind: str, spec: dict[str, Any]) -> Iterator[tuple[Loc, Check | None]]:
    """The URIs of a spec, each with the check of its lines if it has lines."""
    if kind == "TrainingJob":
        example = _prompt_completion if spec["data"].get("format") == "PromptCompletion" else _messages
        yield ("baseModel", "uri"), None
        yield ("data", "train", "uri"), example
        yield ("evaluation", "domain", "uri"), example
        yield ("evaluation", "general", "uri"), example
    elif kind == "EmbeddingIndex":
        for number in range(len(spec["sources"])):
            yield ("sources", number, "uri"), None
        yield ("embedding", "model", "uri"), None
        yield ("evaluation", "questions", "uri"), _question
    else:
        yield ("model", "base", "uri"), None


def _at(document: Document, spec: Any, loc: Loc, check: Check | None) -> Iterator[Fault]:
    uri = spec
    for part in loc:
        uri = uri.get(part) if isinstance(uri, dict) else uri[part]
        if uri is None:
            return
    where: Loc = ("spec", *loc)
    path = _local(uri)
    try:
        if isinstance(path, str):
            yield document.fault(where, path)
        elif path is not None and not path.exists():
            yield document.fault(where, f"there is no {path}: put it there, or write the path of one that is")
        elif path is not None and loc[0] == "sources":
            yield from _documents(document, where, path, spec["sources"][loc[1]])
        elif path is not None and check is not None:
            yield from islice(_lines(document, where, path, check), FAULTS_PER_FILE)
    except OSError as error:
        yield document.fault(where, f"{error.filename or path} cannot be read: {error.strerror}")


def _local(uri: str) -> Path | str | None:
    """The path that a URI means on this machine; None when it lies elsewhere; a sentence when it means nothing."""
    scheme, _, rest = uri.partition("://")
    if scheme == "file":
        return Path(unquote(rest))
    if scheme != "pkg":
        return None
    module, _, inner = rest.partition("/")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        return f"there is no Python package {module} here: install the distribution that holds it, or write another URI"
    return Path(folders[0]) / unquote(inner)


def _documents(document: Document, where: Loc, path: Path, source: dict[str, Any]) -> Iterator[Fault]:
    """An index without documents answers nothing; which ones a sync leaves out, and why, its status says. Raises `OSError`."""
    if path.is_file():
        return
    include = source.get("include", ("**/*.md", "**/*.txt", "**/*.jsonl"))
    try:
        found = any(file.is_file() for pattern in include for file in path.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        yield document.fault(
            where[:-1], f"include holds a pattern that does not work ({error}): write one like **/*.md"
        )
        return
    if not found:
        yield document.fault(
            where, f"{path} holds no file that matches {', '.join(include)}: add documents, or widen include"
        )


def _lines(document: Document, where: Loc, path: Path, check: Check) -> Iterator[Fault]:
    """Faults name the data file's own line; an empty file is the manifest's fault. Raises `OSError`."""
    if path.is_dir():
        yield document.fault(where, f"{path} is a folder: write the path of a JSONL file")
        return
    empty = True
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            if not data.strip():
                continue
            empty = False
            if message := _line(data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data, check):
                yield Fault(str(path), number, "", message)
    if empty:
        yield document.fault(where, f"{path} is empty: write one JSON object a line into it")


def _line(data: bytes, check: Check) -> str | None:
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        return "this is not UTF-8 text: save the file as UTF-8"
    except json.JSONDecodeError as error:
        return f"this is not JSON ({error.msg}, column {error.colno}): write one JSON object a line"
    except ValueError as error:  # a number of thousands of digits
        return f"this is not JSON ({error}): write one JSON object a line"
    except RecursionError:
        return "this is nested too deeply: write one flat JSON object a line"
    return check(value) if isinstance(value, dict) else 'this is not a JSON object: begin the line with "{"'


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _not_unicode(text: str) -> str | None:
    half = half_character(text)
    return half and f"is not Unicode text ({half!r} is half a character): correct it"


def _messages(line: dict[str, Any]) -> str | None:
    messages = line.get("messages")
    if not isinstance(messages, list) or not messages:
        return 'messages is missing: write {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
    for number, message in enumerate(messages):
        field = f"messages[{number}]"
        if not isinstance(message, dict):
            return f'{field} is not an object: write {{"role": "user", "content": "…"}}'
        if "role" not in message:
            return f"{field} has no role: write one of {', '.join(ROLES)}"
        if message["role"] not in ROLES:
            return f"{field}.role {json.dumps(message['role'])} is unknown: write one of {', '.join(ROLES)}"
        if message["role"] == "system":
            if number > 0:
                return f"{field} is a system message that is not the first: move it to the front, or remove it"
            if not isinstance(message.get("content"), str):
                return f"{field}.content is missing: write what the model is told"
        elif not _text(message.get("content")):
            return f"{field}.content is missing or empty: write what the {message['role']} says"
        if fault := _not_unicode(message["content"]):
            return f"{field}.content {fault}"
    if messages[-1]["role"] != "assistant":
        return "the last message is not the assistant's, so there is no answer to learn: add it"
    return None


def _prompt_completion(line: dict[str, Any]) -> str | None:
    for field in ("prompt", "completion"):
        if not _text(line.get(field)):
            return f'{field} is missing or empty: write {{"prompt": "…", "completion": "…"}}'
        if fault := _not_unicode(line[field]):
            return f"{field} {fault}"
    return None


def _question(line: dict[str, Any]) -> str | None:
    if not _text(line.get("question")):
        return "question is missing or empty: write the question as a person would ask it"
    if fault := _not_unicode(line["question"]):
        return f"question {fault}"
    if line.get("answerable") is False:
        return None
    documents = line.get("documents", [])
    if not isinstance(documents, list) or not all(
        isinstance(item, dict) and _text(item.get("path")) for item in documents
    ):
        return 'documents has to be a list of the documents that answer it: write [{"path": "…"}]'
    if not documents:
        return 'documents is missing: name what answers the question, or write "answerable": false'
    return None
