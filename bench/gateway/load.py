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
import itertools
import json
import re
import resource
import sys
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop

CONTENT = re.compile(rb'"content": ?"[^"]')
LOOPBACK = {"127.0.0.1", "localhost"}
LIMIT = 1_000_000
now = time.monotonic  # not loop.time(): uvloop's has a resolution of 1 ms


@dataclass(frozen=True)
class Target:
    """An address to load."""

    name: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, name: str, url: str) -> Target:
        """Raises `ValueError` for an address that is not on this machine."""
        parts = urllib.parse.urlsplit(url)
        if parts.hostname not in LOOPBACK or not parts.port:
            raise ValueError(f"{url!r}: write http://127.0.0.1:PORT/path; load goes to the loopback only")
        return cls(name, "127.0.0.1", parts.port, parts.path or "/v1/chat/completions")


@dataclass(slots=True)
class Result:
    """One request. Seconds from its scheduled start; status 0 when no whole answer came."""

    started: float = 0.0
    status: int = 0
    ttft: float | None = None
    total: float = 0.0
    error: str | None = None


class Call(asyncio.Protocol):
    """One kept-alive connection that makes one POST at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Result] | None = None
        self._result = Result()
        self._stream = self._chunked = self._in_body = False
        self._length: int | None = None
        self._buffer, self._body = bytearray(), bytearray()
        self._searched = 0
        self.lost = False
        self.close_after = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer without a length ends so, any other fails."""
        self.lost = True
        if self._done is not None and not self._done.done():
            if self._result.status and self._length is None and not self._chunked:
                self._complete()
            else:
                self._fail(f"connection lost: {exc or 'closed by the server'}")

    def post(self, request: bytes, started: float, stream: bool) -> asyncio.Future[Result]:
        """Send a request; the future ends with its answer."""
        assert self._transport is not None
        self._result, self._stream = Result(started), stream
        self._buffer, self._body, self._searched = bytearray(), bytearray(), 0
        self._length, self._chunked, self._in_body, self.close_after = None, False, False, False
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        if self._done is None or self._done.done():
            return
        self._buffer += data
        if not self._in_body and not self._read_head():
            return
        try:
            self._read_body()
        except (ValueError, IndexError) as error:
            self._fail(f"bad framing: {error}")

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[:end]).lower()
        self._result.status = int(head[9:12])
        self._chunked = b"transfer-encoding: chunked" in head
        match = re.search(rb"content-length: *(\d+)", head)
        self._length = int(match[1]) if match else None
        self.close_after = b"connection: close" in head
        del self._buffer[: end + 4]
        self._in_body = True
        return True

    def _read_body(self) -> None:
        ended = False
        if self._chunked:
            while not ended:
                end = self._buffer.find(b"\r\n")
                if end < 0:
                    break
                size = int(bytes(self._buffer[:end]).partition(b";")[0], 16)
                if len(self._buffer) < end + 2 + size + 2:
                    break
                self._body += self._buffer[end + 2 : end + 2 + size]
                del self._buffer[: end + 2 + size + 2]
                ended = size == 0
        else:
            self._body += self._buffer
            self._buffer.clear()
            ended = self._length is not None and len(self._body) >= self._length
        if self._result.ttft is None and (CONTENT.search(self._body, self._searched) if self._stream else self._body):
            self._result.ttft = now() - self._result.started
        self._searched = max(0, len(self._body) - 16)
        if ended:
            self._complete()

    def _complete(self) -> None:
        result = self._result
        result.total = now() - result.started
        if result.status != 200:
            result.error = f"{result.status}: {bytes(self._body[:200]).decode(errors='replace')}"
        elif self._stream and b"data: [DONE]" not in self._body[-64:]:
            result.error = f"stream ended without [DONE]: ...{bytes(self._body[-120:]).decode(errors='replace')}"
        elif self._stream and b'data: {"error"' in self._body:
            result.error = "the stream holds an error"
        self._end()

    def _fail(self, why: str) -> None:
        self._result.status, self._result.error = 0, why
        self._result.total = now() - self._result.started
        self._end()

    def _end(self) -> None:
        assert self._done is not None
        self._done.set_result(self._result)


class Client:
    """A pool of connections to one target and the prepared requests, used in turn."""

    def __init__(self, target: Target, bodies: Sequence[bytes], *, stream: bool, timeout: float) -> None:
        self._target, self._stream, self._timeout = target, stream, timeout
        self._idle: collections.deque[Call] = collections.deque()
        self._requests = itertools.cycle([self._request(body) for body in bodies])

    def _request(self, body: bytes) -> bytes:
        target = self._target
        head = (
            f"POST {target.path} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def once(self, started: float) -> Result:
        """One request, whose time counts from `started`."""
        request, call = next(self._requests), None
        while self._idle and (call is None or call.lost):
            call = self._idle.pop()
        try:
            async with asyncio.timeout(started + self._timeout - now()):
                if call is None or call.lost:
                    loop = asyncio.get_running_loop()
                    _, call = await loop.create_connection(Call, self._target.host, self._target.port)
                result = await call.post(request, started, self._stream)
        except TimeoutError:
            if call is not None:
                call.abort()
            return Result(started, total=now() - started, error=f"no whole answer in {self._timeout} s")
        except OSError as error:
            return Result(started, total=now() - started, error=f"{type(error).__name__}: {error}")
        if not call.lost and not call.close_after and result.status:
            self._idle.append(call)
        else:
            call.abort()
        return result

    def close(self) -> None:
        """Close all connections."""
        for call in self._idle:
            call.abort()
        self._idle.clear()


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
