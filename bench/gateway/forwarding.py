"""Lines without retrieval: what the gateway adds to an answer, how many it carries, and what a dead engine costs."""

from __future__ import annotations

import asyncio
import signal

import load
import stack
import uvloop
import wire
from measuring import CHAT, Bench, Row


def added_ttft(bench: Bench) -> Row:
    """What the gateway adds to the time to the first token; direct and through the gateway in turn, three rounds."""
    with (
        stack.stub_engine(bench.folder, ttft_ms=50, itl_ms=10, tokens=20, models=("stub", "chat")) as engine,
        stack.gateway(bench.folder, stack.gateway_config([engine.url])) as gateway,
    ):
        found: dict[str, list[wire.Result]] = {engine.url: [], gateway.url: []}
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
    return Row(what, "2.8 / 3.6 ms (p50 1.9 on uvloop)", "-", "< 1.9 / < 3.5 ms", ours, p50 < 1.9 and p99 < 3.5)


def sustained(bench: Bench) -> Row:
    """One-token answers as fast as 32 clients get them, for 90 s; the last third against the first."""
    seconds = bench.seconds(90)
    with stack.gateway(bench.folder, stack.gateway_config([bench.engine.url])) as gateway:
        began = wire.now()
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
    return Row(
        f"sustained requests/s over {wall:.0f} s, one-token answers",
        "350, falling (800 fresh)",
        "-",
        "> 800, flat",
        ours,
        good,
    )


def streams(bench: Bench) -> Row:
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
    return Row(
        f"{count:,} concurrent streams: 200s; TTFT p99",
        "100 %; 2.2 s",
        "-",
        "100 %; < 1.5 s",
        ours,
        share == 100 and found.ttft_p99 < 1500,
    )


def dead_engine(bench: Bench) -> Row:
    """One engine of two is killed under load (whole answers), and stays dead (streams)."""
    return _without_one(bench, signal.SIGKILL, "dead", "50 % of answers are 500 by default")


def hanging_engine(bench: Bench) -> Row:
    """The same with one that is stopped: its connections stay open, and nothing comes."""
    return _without_one(bench, signal.SIGSTOP, "hanging", "-")


def _without_one(bench: Bench, ending: signal.Signals, what: str, router: str) -> Row:
    body = {stream: [load.chat_body("chat", "hello", stream=stream)] for stream in (False, True)}
    with (
        stack.stub_engine(bench.folder, ttft_ms=20, itl_ms=5) as one,
        stack.stub_engine(bench.folder, ttft_ms=20, itl_ms=5) as other,
        stack.gateway(bench.folder, stack.gateway_config([one.url, other.url])) as gateway,
    ):
        seconds = bench.seconds(20)

        async def end_one() -> list[wire.Result]:
            client = wire.Client(wire.Target.of("gateway", gateway.url + CHAT), body[False], stream=False, timeout=60)
            asyncio.get_running_loop().call_later(seconds / 2, other.process.send_signal, ending)
            results = await load.open_loop(client, rate=100, seconds=seconds)
            client.close()
            return results

        results = uvloop.run(end_one())
        results += bench.results(gateway.url + CHAT, body[True], "open", rate=100, seconds=seconds)[0]
        other.process.kill()
    failed = sum(result.error is not None for result in results)
    ours = f"{failed} failed of {len(results)}"
    return Row(f"one engine of two {what}", router, "-", "0 failed", ours, failed == 0)
