"""Measures the operator against a real API server, beside stock kopf handlers that do the same work, and prints Markdown tables.

    python bench/operator/run.py                   # 1,000 objects, some minutes on two cores
    python bench/operator/run.py --objects 10000

Equal parts of TrainingJobs, EmbeddingIndexes and RagServices that refer to each other, in ten namespaces. No kubelet: in the first
column a script plays controllers, kubelet and programs (tests/cluster/stand_in.py), so that every object comes to be Succeeded or Ready;
in the other two nothing runs, and an object is done when its first status and its children are written. API server, etcd, that script
and the operator share the machine's cores. Writes are counted by the API server, leases left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "cluster"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import psutil
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration
from machine import Quiet, machine
from operators import chain, configuration, install_crds
from seeing import ApiWrites, Objects, OperatorMetrics, memory, metrics_when_there
from stand_in import standing_in

from harness.api_server import ApiServer, running_api_server
from harness.state import free_ports
from llmops_operator.backends.kubernetes.client import Client
from llmops_operator.backends.kubernetes.store import path_of
from llmops_operator.controllers.ports import Conflict, Unavailable

NAMESPACES = [f"bench-{number}" for number in range(10)]
AT_ONCE = 16
QUIET_SECONDS = 12.0
STEADY_SECONDS = 65.0
RESYNC_SECONDS = 60.0
LEASE_SECONDS = 120.0
"""So long because a machine that is busy may let the API server wait for longer than the lease as it comes."""
PROGRAMS = {
    "operator": [sys.executable, "-m", "llmops_operator.backends.kubernetes", "--log-level", "warning"],
    "kopf": [sys.executable, str(Path(__file__).with_name("stock_kopf.py"))],
}


@dataclass
class Column:
    """What was measured of one operator, by the name of the line."""

    name: str
    lines: dict[str, str] = field(default_factory=dict)


class Bench:
    """One operator on an API server of its own."""

    def __init__(self, server: ApiServer, folder: Path, program: str, count: int, observer: Client) -> None:
        self.server, self.program, self.count = server, program, count
        self.objects, self.writes = Objects(observer), ApiWrites(server)
        self.observer = observer
        (self.port,) = free_ports(1)
        self._folder, self._config = folder, folder / "operator.yaml"
        config = configuration("default", lease=LEASE_SECONDS, port=self.port, resyncSeconds=RESYNC_SECONDS)
        self._config.write_text(json.dumps({**config, "watchNamespaces": []}))
        self.mine = 0
        """Writes of this script."""
        self.started: list[psutil.Popen] = []

    def start(self) -> psutil.Popen:
        """Start the operator."""
        log = (self._folder / f"{self.program}.log").open("ab")
        program = [*PROGRAMS[self.program], "--config", str(self._config)]
        environment = {**os.environ, "KUBECONFIG": str(self.server.kubeconfig)}
        self.started.append(psutil.Popen(program, env=environment, stdout=log, stderr=subprocess.STDOUT))
        return self.started[-1]

    def log(self) -> str:
        """The end of what it said."""
        return (self._folder / f"{self.program}.log").read_text()[-3000:]

    async def apply_all(self) -> None:
        """Make the objects, as quickly as the API server takes them."""
        wishes = iter(
            one
            for number in range(self.count // 3)
            for one in chain(NAMESPACES[number % len(NAMESPACES)], f"o-{number}")
        )

        async def some() -> None:
            for one in wishes:
                await self.create(one)
                self.mine += 1

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))

    async def create(self, one: dict[str, Any]) -> None:
        """Make an object, however long the API server is too busy to answer."""
        while True:
            try:
                await self.observer.ask("POST", path_of(one["kind"], one["metadata"]["namespace"]), body=one)
            except Unavailable:
                continue
            except Conflict:
                return  # made by a request that was not answered
            else:
                return

    async def until_quiet(self, done: Callable[[], bool], began: float) -> tuple[float, int]:
        """Wait until `done` and nothing has been written for a while. Returns after how many seconds the last was written, and the
        writes since the API server was started.
        """
        count, last = -1, time.monotonic()
        while True:
            if self.started[-1].poll() is not None:
                raise RuntimeError("the operator has ended")
            now, found = time.monotonic(), await asyncio.to_thread(self.writes.count)
            if found != count:
                count, last = found, now
            elif now - last > QUIET_SECONDS and done():
                return last - began, count
            await asyncio.sleep(1)


async def measure(name: str, program: str, count: int, folder: Path, *, runs: bool, minutes: float) -> Column:
    """All figures of one operator; those alone that it has reached, if it takes longer than `minutes`."""
    column = Column(name)
    say, lines = (lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True)), column.lines
    with running_api_server() as server:
        install_crds(server)
        for namespace in NAMESPACES:
            server.kubectl("create", "namespace", namespace)
        async with client(server) as observer:
            bench = Bench(server, folder, program, count, observer)
            watching = asyncio.create_task(bench.objects.watch())
            reached = bench.objects.settled if runs else bench.objects.accepted
            operator, limit = bench.start(), asyncio.timeout(minutes * 60)
            try:
                async with playing(server, runs=runs) as player, limit:
                    await work(bench, operator, lines, say, player, reached)
                    await restart(bench, operator, lines, say)
            except TimeoutError:
                if not limit.expired():
                    raise
                lines[f"was ended after {minutes:g} minutes"] = (
                    f"{reached():,} objects were there, {memory(bench.started[-1])[1]:.0f} MB at most"
                )
            except BaseException:
                say(bench.log())
                raise
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                for one in bench.started:
                    if one.poll() is None:
                        one.kill()
                        one.wait()
    return column


async def work(
    bench: Bench,
    operator: psutil.Popen,
    lines: dict[str, str],
    say: Callable[[str], None],
    player: Callable[[], int],
    reached: Callable[[], int],
) -> None:
    """From nothing to all done, which `reached` counts, and a while of nothing to do."""
    count = bench.count
    await asyncio.to_thread(metrics_when_there, bench.port, operator)
    await asyncio.sleep(5)
    before, used = await asyncio.to_thread(bench.writes.count), sum(operator.cpu_times()[:2])
    began = time.monotonic()
    await bench.apply_all()
    lines["the objects are applied after"] = f"{time.monotonic() - began:.0f} s"
    say(str(lines))
    reporting = asyncio.create_task(report(say, reached))
    seconds, total = await bench.until_quiet(lambda: reached() >= count, began)
    reporting.cancel()
    used = sum(operator.cpu_times()[:2]) - used
    seen = OperatorMetrics(bench.port)
    resident, _ = memory(operator)
    made = total - before - bench.mine - player()
    lines["everything is done after"] = f"{seconds:.0f} s"
    lines["looks"] = f"{seen.looks:,} ({seen.looks / count:.1f} an object, {seen.looks / seconds:.0f}/s)"
    lines["a look, p50 / p99"] = f"{seen.quantile(0.5) * 1e3:.0f} / {seen.quantile(0.99) * 1e3:.0f} ms"
    lines["writes an object"] = f"{made / count:.1f}"
    lines["processor time of the operator"] = f"{used:.0f} s"
    lines["resident memory then"] = f"{resident:.0f} MB"
    say(str(lines))
    say(f"writes by its own count: {dict(seen.writes)}")
    used, began = sum(operator.cpu_times()[:2]), time.monotonic()
    await asyncio.sleep(STEADY_SECONDS)
    wrote = await asyncio.to_thread(bench.writes.count) - total
    share = (sum(operator.cpu_times()[:2]) - used) / (time.monotonic() - began)
    lines["writes a minute with nothing to do"] = f"{wrote / STEADY_SECONDS * 60:.0f}"
    lines["of one core, with nothing to do"] = f"{share:.0%}"


async def restart(bench: Bench, operator: psutil.Popen, lines: dict[str, str], say: Callable[[str], None]) -> None:
    """End it and start it again over what is there."""
    _, peak = memory(operator)
    lines["resident memory at most"] = f"{peak:.0f} MB"
    operator.send_signal(signal.SIGTERM)
    await asyncio.to_thread(operator.wait, 120)
    before = await asyncio.to_thread(bench.writes.count)
    began = time.monotonic()
    operator = bench.start()
    idle = 0.0
    while True:
        seen, now = await asyncio.to_thread(metrics_when_there, bench.port, operator), time.monotonic() - began
        if not seen.looks:
            idle = now
        elif seen.looks >= bench.count and not seen.waiting:
            break
        await asyncio.sleep(0.2)
    rate = seen.looks / (now - idle)
    quick = f"{seen.quantile(0.5) * 1e3:.1f} / {seen.quantile(0.99) * 1e3:.1f} ms"
    last, total = await bench.until_quiet(lambda: True, began)
    resident, peak = memory(operator)
    wrote = total - before
    lines["restart: all were looked at after"] = f"{now:.0f} s"
    lines["restart: looks"] = f"{rate:.0f}/s"
    lines["restart: a look, p50 / p99"] = quick
    lines["restart: writes"] = f"{wrote:,}" + (f", the last after {last:.0f} s" if wrote else "")
    lines["restart: resident memory, at most"] = f"{resident:.0f}, {peak:.0f} MB"
    say(str(lines))


async def report(say: Callable[[str], None], reached: Callable[[], int]) -> None:
    """Say how far it is."""
    while True:
        await asyncio.sleep(15)
        say(f"{reached()} objects are there")


def nobody() -> int:
    """The writes of nobody."""
    return 0


@asynccontextmanager
async def playing(server: ApiServer, *, runs: bool) -> AsyncIterator[Callable[[], int]]:
    """Have the children run, if they are to. Gives what counts the writes that this took."""
    if not runs:
        yield nobody
        return
    async with standing_in(server) as player:
        yield lambda: player.writes


@asynccontextmanager
async def client(server: ApiServer) -> AsyncIterator[Client]:
    """As the administrator."""
    found = Configuration()
    await kube_config.load_kube_config(str(server.kubeconfig), client_configuration=found)
    one = Client(found)
    yield one
    await one.close()


COLUMNS: dict[str, dict[str, Any]] = {
    "operator, everything runs": {"program": "operator", "runs": True},
    "operator, nothing runs": {"program": "operator", "runs": False},
    "stock kopf, nothing runs": {"program": "kopf", "runs": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60, help="a column that takes longer is ended")
    parser.add_argument("--only", action="append", choices=COLUMNS, help="this column alone; repeatable")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the processes are ended then, too
    count = arguments.objects // 3 * 3  # a service whose job and index are missing would never be done
    columns, shares = [], []
    with tempfile.TemporaryDirectory(prefix="operator-bench-") as folder:
        for name in arguments.only or COLUMNS:
            quiet = Quiet()
            columns.append(
                asyncio.run(measure(name, count=count, folder=Path(folder), minutes=arguments.minutes, **COLUMNS[name]))
            )
            shares.append(quiet.others())
    print(f"{count:,} objects, measured on {machine()}.\n")
    print(f"| | {' | '.join(column.name for column in columns)} |")
    print(f"| --- |{' --- |' * len(columns)}")
    for line in dict.fromkeys(line for column in columns for line in column.lines):
        print(f"| {line} | {' | '.join(column.lines.get(line, '-') for column in columns)} |")
    print(f"| others took of the machine | {' | '.join(f'{share:.0%}' for share in shares)} |")


if __name__ == "__main__":
    main()
