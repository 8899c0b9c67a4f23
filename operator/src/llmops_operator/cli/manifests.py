"""Manifests as a person wrote them: many documents in files, folders or standard input, with the line of every field."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from llmops_operator.cli.faults import Fault, Faults
from llmops_operator.cli.kubernetes_yaml import Loader
from llmops_operator.domain.sentences import Loc, field_path


@dataclass(frozen=True)
class Document:
    """One object of a file. `lines` holds the line of each field by its way from the object's root; `file` is `-` for stdin."""

    file: str
    folder: Path
    value: Any
    lines: Mapping[Loc, int] = field(default_factory=dict)

    def line(self, loc: Loc) -> int:
        """The line of a field, or of the nearest thing around it that is written down."""
        while loc not in self.lines and loc:
            loc = loc[:-1]
        return self.lines.get(loc, 1)

    def fault(self, loc: Loc, message: str) -> Fault:
        """A fault of a field of this object."""
        return Fault(self.file, self.line(loc), field_path(loc), message)


def read_manifests(names: Sequence[str]) -> list[Document]:
    """All objects of files, folders (their `*.yaml` and `*.yml`) and `-`, in the order written. Raises `Faults`."""
    documents: list[Document] = []
    faults: list[Fault] = []
    for name in names:
        for file in _files(name):
            try:
                documents.extend(_read(file))
            except Faults as error:
                faults.extend(error.faults)
    if faults:
        raise Faults(faults)
    return documents


def _files(name: str) -> list[str]:
    path = Path(name)
    if name == "-" or path.is_file():
        return [name]
    if not path.exists():
        raise Faults([Fault(name, None, "", "there is no such file or folder: give the path of a manifest")])
    found = sorted(str(file) for file in path.iterdir() if file.suffix in (".yaml", ".yml") and file.is_file())
    if not found:
        raise Faults([Fault(name, None, "", "the folder holds no manifest: put one there as *.yaml")])
    return found


def _read(name: str) -> list[Document]:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise Faults([Fault(name, None, "", f"cannot be read: {error.strerror}")]) from error
    folder = (Path.cwd() if name == "-" else Path(name).parent).resolve()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Faults([Fault(name, line, "", "this is not UTF-8 text: save the file as UTF-8")]) from error
    try:
        documents = list(_documents(name, folder, text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise Faults([Fault(name, mark.line + 1 if mark else None, "", f"this is not YAML: {problem}")]) from error
    except yaml.YAMLError as error:
        raise Faults([Fault(name, None, "", f"this is not YAML: {error}")]) from error
    except RecursionError as error:
        raise Faults([Fault(name, None, "", "this is nested too deeply to be a manifest")]) from error
    if not documents:
        raise Faults([Fault(name, None, "", "the file is empty: write a manifest into it, or leave the file out")])
    return documents


def _documents(name: str, folder: Path, text: str) -> Iterator[Document]:
    loader = Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                continue
            doubles = [Fault(name, *double) for double in _doubles(node, ())]
            if doubles:
                raise Faults(doubles)
            value = loader.construct_document(node)
            if value is None:
                continue
            document = Document(name, folder, value, dict(_lines(node, ())))
            yield from _items(document)
    finally:
        loader.dispose()


def _items(document: Document) -> Iterator[Document]:
    """What `get -o yaml` prints for several objects is read again as these objects."""
    value = document.value
    if not isinstance(value, dict) or value.get("kind") != "List" or not isinstance(value.get("items"), list):
        yield document
        return
    for index, item in enumerate(value["items"]):
        way = ("items", index)
        lines = {loc[2:]: line for loc, line in document.lines.items() if loc[:2] == way}
        yield replace(document, value=item, lines=lines)


def _lines(node: yaml.Node, loc: Loc) -> Iterator[tuple[Loc, int]]:
    if loc == () or isinstance(loc[-1], int):
        yield loc, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield (*loc, key.value), key.start_mark.line + 1
                yield from _lines(value, (*loc, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*loc, index))


def _doubles(node: yaml.Node, loc: Loc) -> Iterator[tuple[int, str, str]]:
    """Keys that stand twice in one mapping: YAML takes the last one without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                first = seen[key.value]
                yield (
                    line,
                    field_path((*loc, key.value)),
                    f"stands here twice (first in line {first}): remove one of them",
                )
            seen[key.value] = line
            yield from _doubles(value, (*loc, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _doubles(value, (*loc, index))


def with_absolute_files(document: Document) -> Document:
    """`file://./x` counts from the manifest's folder; what is stored has to be true from everywhere."""
    if not isinstance(document.value, dict) or "spec" not in document.value:
        return document
    spec = _absolute(document.value["spec"], document.folder)
    return replace(document, value={**document.value, "spec": spec})


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {
            key: _uri(folder / unquote(item.removeprefix("file://./")))
            if key == "uri" and isinstance(item, str) and item.startswith("file://./")
            else _absolute(item, folder)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    return value


def _uri(path: Path) -> str:
    return "file://" + str(path.resolve()).replace("%", "%25")
