"""`llmops lineage`: what a thing was made from, or what was made from it, as a tree, as JSON or for Graphviz."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.kinds import BY_KIND, KINDS, find_kind
from llmops_operator.cli.places import Place
from llmops_operator.cli.screen import make_console

if TYPE_CHECKING:
    from llmops_operator.controllers.lineage_graph.graph import Edge, Graph, Node, Reference

FORMS = ("tree", "json", "dot")
WORDS = f"{', '.join(f'{kind.short}/NAME' for kind in KINDS)}, answer/ID, model/NAME/VERSION or dataset/NAME"
SHOWN: Mapping[str, tuple[str, ...]] = {
    "answer": ("question", "at"),
    "document": ("lines", "cited", "title"),
    "TrainingJob": ("status", "run"),
    "EmbeddingIndex": ("version", "documents", "chunks", "held_back"),
    "RagService": ("version", "model"),
    "model": ("aliases", "type"),
    "dataset": ("num_rows", "documents", "digest", "uri"),
    "manifest": ("generation",),
}
"""The facts that a tree shows of a kind; JSON has all of them."""

PHRASES = {
    "question": "“{}”",
    "lines": "lines {}",
    "cited": "cited as {}",
    "title": "{}",
    "status": "{}",
    "run": "run {}",
    "version": "version {}",
    "documents": "{} documents",
    "chunks": "{} chunks",
    "num_rows": "{} examples",
    "aliases": "alias {}",
    "digest": "digest {:.10}",
    "model": "model {}",
    "type": "{}",
    "generation": "generation {}",
    "held_back": "held back by its gate",
}


def parse_reference(text: str, namespace: str) -> Reference:
    """`tj/NAME`, `ei/NAME`, `rag/NAME`, `answer/ID`, `model/NAME[/VERSION]`, `dataset/NAME[@DIGEST]`. Raises `CommandError`."""
    from llmops_operator.controllers.lineage_graph.graph import Reference

    kind, _, rest = text.partition("/")
    if not rest:
        raise CommandError(f'"{text}" is nothing that has a lineage: write {WORDS}')
    if kind == "answer":
        return Reference(kind, rest)
    if kind == "dataset":
        name, _, digest = rest.partition("@")
        return Reference(kind, name, version=digest or None)
    if kind == "model":
        name, _, version = rest.replace("@", "/").partition("/")
        return Reference(kind, name, version=version or None)
    try:
        return Reference(find_kind(kind).kind, rest, namespace)
    except CommandError as error:
        raise CommandError(f'"{text}" is nothing that has a lineage: write {WORDS}') from error


def show(place: Place, namespace: str, text: str, *, uses: bool, form: str, say: Callable[[str], None]) -> None:
    """Print the graph of what `text` names. Raises `CommandError`."""
    if form not in FORMS:
        raise CommandError(f'there is no output "{form}": write one of {", ".join(FORMS)}')
    reference = parse_reference(text, namespace)
    with place.mlflow() as url:
        found = graph(place, url, reference, uses=uses)
    if form == "tree":
        console = make_console()
        for tree in as_trees(found, uses=uses):
            # No line is broken: a tree that is read by a program has one thing a line.
            console.print(tree, soft_wrap=True)
    else:
        say(as_json(found) if form == "json" else as_dot(found))


def graph(place: Place, tracking_uri: str, reference: Reference, *, uses: bool) -> Graph:
    """Ask MLflow. Raises `CommandError` when it does not answer or knows no such thing."""
    from llmops_operator.controllers.lineage_graph.graph import Unknown, Unreachable
    from llmops_operator.controllers.lineage_graph.reader import LineageReader

    reader = LineageReader(tracking_uri)
    try:
        return reader.uses(reference) if uses else reader.origins(_with_run(place, reference))
    except Unreachable as error:
        raise CommandError(f"{error}: {place.repair}; MLFLOW_TRACKING_URI names another one") from error
    except Unknown as error:
        raise CommandError(str(error)) from error


def _with_run(place: Place, reference: Reference) -> Reference:
    """The run that the object's status names: what it is now is not always what was recorded last."""
    if reference.kind not in BY_KIND:
        return reference
    try:
        with place.reading() as reader:
            item = reader.get((reference.kind, reference.namespace, reference.name))
    except CommandError:  # MLflow knows by itself, also of objects that are gone with their place
        return reference
    return replace(reference, run_id=((item or {}).get("status") or {}).get("runId"))


def as_json(found: Graph) -> str:
    """Nodes and edges; an edge points from what was used to what was made from it."""
    value = {
        "roots": found.roots,
        "nodes": [{"id": n.id, "kind": n.kind, "name": n.name, **({"facts": dict(n.facts)} if n.facts else {})} for n in found.nodes.values()],
        "edges": [{"from": e.origin, "to": e.product, "role": e.role} for e in found.edges],
    }  # fmt: skip
    return json.dumps(value, indent=2, ensure_ascii=False)


def as_dot(found: Graph) -> str:
    """For Graphviz: `llmops lineage … -o dot | dot -Tsvg`."""
    lines = ["digraph lineage {", "  rankdir=LR;", "  node [shape=box];"]
    lines += [f"  {_quoted(n.id)} [label={_quoted(n.kind, n.name)}];" for n in found.nodes.values()]
    lines += [f"  {_quoted(e.origin)} -> {_quoted(e.product)} [label={_quoted(e.role)}];" for e in found.edges]
    return "\n".join([*lines, "}"])


def _quoted(*lines: str) -> str:
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'


def as_trees(found: Graph, *, uses: bool) -> list[Tree]:
    """A tree for each root, what was asked about at the top. What hangs in several places is spread out in the first."""
    spread: set[str] = set()
    trees = []
    for root in found.roots:
        tree = Tree(_label(found.nodes[root], None))
        _grow(tree, root, found, uses, spread)
        trees.append(tree)
    return trees


def _grow(tree: Tree, node: str, found: Graph, uses: bool, spread: set[str]) -> None:
    spread.add(node)
    for edge in _below(node, found, uses):
        other = edge.product if uses else edge.origin
        label = _label(found.nodes[other], edge.role)
        if other not in spread:
            _grow(tree.add(label), other, found, uses, spread)
        elif any(_below(other, found, uses)):
            tree.add(label.append("  (as above)", style="dim"))
        else:
            tree.add(label)


def _below(node: str, found: Graph, uses: bool) -> Iterator[Edge]:
    return (edge for edge in found.edges if (edge.origin if uses else edge.product) == node)


def _label(node: Node, role: str | None) -> Text:
    text = Text()
    if role is not None and role != node.kind:
        text.append(f"{role}: ", style="dim")
    text.append(f"{node.kind} ", style="cyan").append(node.name, style="bold")
    facts = [
        PHRASES.get(name, "{}").format(node.facts[name]) for name in SHOWN.get(node.kind, ()) if name in node.facts
    ]
    if facts:
        text.append("  " + ", ".join(facts), style="dim")
    return text
