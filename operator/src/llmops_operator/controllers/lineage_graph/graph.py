"""The graph as plain data: nodes, edges from an origin to its product, and what may be asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class Unreachable(Exception):
    """MLflow does not answer, or not as MLflow does."""


class Unknown(Exception):
    """MLflow knows no such thing; the message says what to ask for instead."""


@dataclass(frozen=True)
class Reference:
    """What is asked about. `kind` is a kind of the API (with `namespace`, and `run_id` when it is known), or answer (`name` is
    the trace's id), model (`version` a number or an alias; None is the latest) or dataset (`version` is a digest; None is all).
    """

    kind: str
    name: str
    namespace: str = "default"
    version: str | None = None
    run_id: str | None = None


@dataclass(frozen=True)
class Node:
    """One thing. `facts` are what tells it from others of its kind."""

    id: str
    kind: str
    name: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, order=True)
class Edge:
    """`product` was made from `origin`, which was its `role`: training data, base model, manifest and so on."""

    origin: str
    product: str
    role: str


@dataclass
class Graph:
    """Nodes by id, edges in the order in which they were found, and the ids of what was asked about."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[Edge, None] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)

    def add(self, node: Node) -> str:
        """Take in a node; its id."""
        self.nodes.setdefault(node.id, node)
        return node.id

    def join(self, origin: str, product: str, role: str) -> None:
        """Say that `product` was made from `origin`."""
        self.edges.setdefault(Edge(origin, product, role))
