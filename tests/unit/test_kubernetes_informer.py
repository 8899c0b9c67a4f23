"""A watch goes on whatever an answer looks like: one that has ended unnoticed would leave a kind unseen until a restart."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from llmops_operator.backends.kubernetes import informer
from llmops_operator.backends.kubernetes.api import Api, Manifest
from llmops_operator.backends.kubernetes.cache import Cache
from llmops_operator.backends.kubernetes.children import CONFIG_MAP
from llmops_operator.backends.kubernetes.client import Client
from llmops_operator.backends.kubernetes.informer import Informer

LINE = json.dumps(
    {
        "type": "ADDED",
        "object": {"kind": "ConfigMap", "metadata": {"namespace": "n", "name": "a", "resourceVersion": "7"}},
    }
)
BAD_ANSWERS = {
    "a load balancer has waited for too long": (408, "Request Timeout", "GET /api/v1/configmaps"),
    "a load balancer knows a status of its own": (520, "<html>", "GET /api/v1/configmaps"),
    "the answer is no JSON": (200, "<html>\n", "JSONDecodeError"),
    "the answer ends amid a line": (200, LINE[:40], "JSONDecodeError"),
    "an object is none": (200, '{"type": "ADDED", "object": {}}\n', "KeyError"),
}  # fmt: skip


@asynccontextmanager
async def watching(
    answers: list[tuple[int, str]], changed: Callable[[Manifest], None]
) -> AsyncIterator[asyncio.Task[None]]:
    """An informer of a server whose watches are answered one after the other, the last one for good."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        status, text = answers.pop(0) if len(answers) > 1 else answers[0]
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        await response.write(text.encode())
        if answers == [(status, text)]:
            await asyncio.Event().wait()
        return response

    app = web.Application()
    app.router.add_get("/api/v1/configmaps", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = Client(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))
    one = Informer(
        Api(client), CONFIG_MAP, Cache(), selector="a=b", namespace=None, changed=changed, gone=lambda key: None
    )
    task = asyncio.create_task(one.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        await client.close()
        await runner.cleanup()


@pytest.mark.parametrize(("status", "text", "said"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_a_watch_begins_anew_after_any_answer_and_says_what_was_wrong(
    status: int, text: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(informer, "FIRST_SECONDS", 0.01)
    seen = asyncio.Event()
    async with watching([(status, text), (200, f"{LINE}\n")], lambda one: seen.set()), asyncio.timeout(10):
        await seen.wait()
    [record] = [one for one in caplog.records if one.name == informer.__name__]
    assert (record.levelname, record.getMessage()) == ("ERROR", "watching configmaps failed; it begins anew")
    assert said in caplog.text


async def test_a_watch_that_is_refused_each_time_is_asked_for_ever_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep, slow = asyncio.sleep, asyncio.Event()

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            slow.set()
        await sleep(0)

    async with watching([(408, "")] * 9 + [(200, "")], lambda one: None), asyncio.timeout(10):
        with monkeypatch.context() as patched:
            patched.setattr(asyncio, "sleep", noted)
            patched.setattr(random, "random", lambda: 0.0)
            await slow.wait()
    assert pauses[:5] == [0.4, 0.8, 1.6, 3.2, 6.4]
