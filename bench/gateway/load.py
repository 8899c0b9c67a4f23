"""A bounded load generator for JSON POST endpoints on this machine, OpenAI's streamed ones among them.

Two ways to load, both bounded in time and count:

- open: R requests a second for T seconds, sent on schedule whatever the answers do; latency counts from the *scheduled* time, so
  that a server that stalls cannot hide it (no coordinated omission).
- closed: C requests always in flight for T seconds, begun over a ramp; or each client once (`once`), for a burst.

A 200 that ends early, or a stream without [DONE], is an error. Only loopback targets are accepted. `bench/gateway/run.py` uses it
as a module; by hand:

    python bench/gateway/load.py open --target direct=http://127.0.0.1:9001/v1/chat/completions \\
        --target gateway=http://127.0.0.1:9002/v1/chat/completions --rate 50 --seconds 20 --rounds 3
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop
from wire import Client, Result, Target, now

LIMIT = 1_000_000


async def open_loop(client: Client, *, rate: float, seconds: float) -> list[Result]:
    """`rate` requests a second on schedule."""
    start, tasks = now() + 0.05, []
    for i in range(min(LIMIT, round(rate * seconds))):
        due = start + i / rate
        if (delay := due - now()) > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.ensure_future(client.once(due)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(
    client: Client, *, concurrency: int, seconds: float = 0.0, ramp: float = 0.0, once: bool = False
) -> list[Result]:
    """`concurrency` clients, each with one request in flight, for `seconds` after the ramp, or for a single request each."""
    start, results = now(), list[Result]()

    async def worker(i: int) -> None:
        await asyncio.sleep(ramp * i / concurrency)
        while len(results) < LIMIT:
            results.append(await client.once(now()))
            if once or now() >= start + ramp + seconds:
                return

    await asyncio.gather(*(worker(i) for i in range(concurrency)))
    return results


def quantile(values: Sequence[float], q: float) -> float:
    """Nearest-rank quantile in milliseconds; NaN without values."""
    return 1e3 * sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


@dataclass
class Summary:
    """What a measurement found; times in milliseconds."""

    count: int = 0
    ok: int = 0
    per_second: float = 0.0
    ttft_p50: float = float("nan")
    ttft_p99: float = float("nan")
    total_p50: float = float("nan")
    total_p99: float = float("nan")
    errors: dict[str, int] = field(default_factory=dict)


def summary(results: Sequence[Result], wall: float) -> Summary:
    """Quantiles of the good answers, and the commonest errors."""
    good = [result for result in results if result.error is None]
    ttft, total = [result.ttft for result in good if result.ttft is not None], [result.total for result in good]
    errors = collections.Counter(result.error[:160] for result in results if result.error)
    return Summary(
        count=len(results),
        ok=len(good),
        per_second=len(good) / wall if wall else 0.0,
        ttft_p50=quantile(ttft, 0.5),
        ttft_p99=quantile(ttft, 0.99),
        total_p50=quantile(total, 0.5),
        total_p99=quantile(total, 0.99),
        errors=dict(errors.most_common(4)),
    )


def more_files() -> None:
    """Thousands of connections need thousands of file descriptors."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def chat_body(model: str, prompt: str, *, stream: bool, **more: Any) -> bytes:
    """A chat of one message."""
    return json.dumps(
        {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream, **more}
    ).encode()


async def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    merged: dict[str, tuple[list[Result], float]] = {}
    bodies = [chat_body(arguments.model, arguments.prompt, stream=arguments.stream)]
    for _ in range(arguments.rounds):
        for target in arguments.target:
            client = Client(target, bodies, stream=arguments.stream, timeout=arguments.timeout)
            before = now()
            if arguments.mode == "open":
                results = await open_loop(client, rate=arguments.rate, seconds=arguments.seconds)
            else:
                results = await closed_loop(
                    client, concurrency=arguments.concurrency, seconds=arguments.seconds, ramp=arguments.ramp
                )
            client.close()
            kept, spent = merged.get(target.name, ([], 0.0))
            merged[target.name] = (kept + results, spent + now() - before)
            await asyncio.sleep(0.5)
    return {name: vars(summary(results, wall)) for name, (results, wall) in merged.items()}


def _target(text: str) -> Target:
    name, _, url = text.partition("=")
    try:
        return Target.of(name, url)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("open", "closed"))
    parser.add_argument(
        "--target", type=_target, action="append", required=True, help="name=http://127.0.0.1:PORT/path"
    )
    parser.add_argument("--rate", type=float, default=50.0, help="open: requests a second")
    parser.add_argument("--concurrency", type=int, default=100, help="closed: requests in flight")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--ramp", type=float, default=1.0, help="closed: seconds over which the clients begin")
    parser.add_argument("--rounds", type=int, default=1, help="targets are measured in turn, so often")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds a request may take")
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--model", default="stub")
    parser.add_argument("--prompt", default="hello")
    arguments = parser.parse_args()
    more_files()
    json.dump(uvloop.run(_measure(arguments)), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
