"""The gateway as a process, between a client and stub engines: OpenAI's API, streams, dead engines, live configuration."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import httpx
import openai
import pytest
from waiting import wait_until


def _stack() -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / "gateway" / "stack.py"
    spec = importlib.util.spec_from_file_location("gateway_stack", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gateway_stack"] = module
    spec.loader.exec_module(module)
    return module


stack = _stack()
MODELS = ("stub", "stub-v2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[stack.Running]:
    with stack.stub_engine(folder, models=MODELS, ttft_ms=20, itl_ms=5, tokens=8) as running:
        yield running


@pytest.fixture(scope="module")
def echo(folder: Path) -> Iterator[stack.Running]:
    with stack.stub_engine(folder, answer="echo") as running:
        yield running


@pytest.fixture(scope="module")
def gateway(folder: Path, engine: stack.Running) -> Iterator[stack.Gateway]:
    with stack.gateway(folder, stack.gateway_config([engine.url]), LLMOPS_ENGINE_API_KEY="s3cret") as running:
        yield running
        assert "s3cret" not in running.log.read_text()


@pytest.fixture(scope="module")
def echo_gateway(folder: Path, echo: stack.Running) -> Iterator[stack.Gateway]:
    with stack.gateway(folder, stack.gateway_config([echo.url])) as running:
        yield running


def client(gateway: stack.Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, timeout=20)


QUESTION = [{"role": "user", "content": "hello"}]
ANSWER = "".join(f"tok{i} " for i in range(8))


def test_the_openai_package_works_unchanged(gateway: stack.Gateway, engine: stack.Running) -> None:
    with client(gateway) as ai:
        whole = ai.chat.completions.create(model="chat", messages=QUESTION)
        assert whole.choices[0].message.content == ANSWER
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 8
        assert whole.model_extra is not None
        assert whole.model_extra["llmops"]["revision"] == "r1"
        stream = list(
            ai.chat.completions.create(
                model="chat", messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == ANSWER
        assert stream[-1].usage is not None
        assert [model.id for model in ai.models.list()] == ["chat"]
        assert ai.models.retrieve("chat").id == "chat"
    assert "authorization: Bearer s3cret" in engine.stats()["last_head"]


def test_everything_but_rag_reaches_the_engine_as_it_was_sent(echo_gateway: stack.Gateway) -> None:
    sent = {
        "model": "chat", "messages": QUESTION, "temperature": 0.3, "max_tokens": 7, "n": 2, "logprobs": True, "seed": 5,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "top_k": 3, "unknown_of_tomorrow": {"a": [1]},
    }  # fmt: skip
    status, body = echo_gateway.post("/v1/chat/completions", {**sent, "rag": {"enabled": False}})
    assert status == 200
    assert json.loads(json.loads(body)["choices"][0]["message"]["content"]) == {**sent, "model": "stub"}


def test_fifty_chats_at_once_keep_their_own_parameters(echo_gateway: stack.Gateway) -> None:
    async def one(ai: openai.AsyncOpenAI, n: int) -> None:
        messages = [{"role": "user", "content": f"question {n}"}]
        got = await ai.chat.completions.create(
            model="chat", messages=messages, stream=True, temperature=n / 100, max_tokens=n + 1, seed=n, stop=[f"s{n}"]
        )  # fmt: skip
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in got])
        echoed = json.loads(text)
        assert (echoed["messages"], echoed["temperature"], echoed["max_tokens"], echoed["seed"], echoed["stop"]) == (
            messages, n / 100, n + 1, n, [f"s{n}"],
        )  # fmt: skip

    async def all_of_them() -> None:
        async with openai.AsyncOpenAI(base_url=f"{echo_gateway.url}/v1", api_key="x", max_retries=0) as ai:
            await asyncio.gather(*(one(ai, n) for n in range(50)))

    asyncio.run(all_of_them())


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "other", "messages": QUESTION}, 404, "model", "model_not_found"),
        ({"messages": QUESTION}, 400, "model", None),
        ({"model": "chat"}, 400, "messages", None),
        ({"model": "chat", "messages": []}, 400, "messages", None),
        ({"model": "chat", "messages": ["hello"]}, 400, "messages[0]", None),
        ({"model": "chat", "messages": QUESTION, "stream": "yes"}, 400, "stream", None),
        ({"model": "chat", "messages": QUESTION, "rag": True}, 400, "rag", None),
        ({"model": "chat", "messages": QUESTION, "rag": {"topK": 0}}, 400, "rag.topK", None),
        ({"model": "chat", "messages": QUESTION, "rag": {"topk": 3}}, 400, "rag.topk", None),
        ({"model": "chat", "messages": QUESTION, "rag": {"mode": "Magic"}}, 400, "rag.mode", None),
        ({"model": "chat", "messages": QUESTION, "rag": {"indexes": ["handbook"]}}, 400, "rag.indexes", None),
        ([1], 400, None, None),
    ],
)  # fmt: skip
def test_a_mistake_gets_an_error_in_openai_s_shape(
    gateway: stack.Gateway, body: object, status: int, param: str | None, code: str | None
) -> None:
    got, answer = gateway.post("/v1/chat/completions", body)
    error = json.loads(answer)["error"]
    assert (got, error["param"], error["code"]) == (status, param, code)
    assert error["message"]
    assert error["type"] == "invalid_request_error"


def test_other_mistakes_too(gateway: stack.Gateway) -> None:
    assert stack.fetch(gateway.url + "/v1/chat/completions", b"{")[0] == 400
    status, answer = stack.fetch(gateway.url + "/v1/chat/completions", b" " * (9 << 20))
    assert (status, json.loads(answer)["error"]["code"]) == (413, "request_too_large")
    assert gateway.get("/v1/chat/completions")[0] == 405
    assert json.loads(gateway.get("/v1/nothing")[1])["error"]["code"] == "no_such_route"
    with client(gateway) as ai, pytest.raises(openai.NotFoundError):
        ai.chat.completions.create(model="other", messages=QUESTION)


def test_a_client_that_goes_away_ends_the_generation(folder: Path) -> None:
    with (
        stack.stub_engine(folder, ttft_ms=5, itl_ms=50, tokens=200) as engine,
        stack.gateway(folder, stack.gateway_config([engine.url])) as gateway,
    ):
        host, port = gateway.url.removeprefix("http://").split(":")
        for stream in (True, False):
            before = engine.stats()
            body = json.dumps({"model": "chat", "messages": QUESTION, "stream": stream}).encode()
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
                )
                if stream:
                    while b"tok0" not in connection.recv(4096):
                        pass
                    assert engine.stats()["streams_open"] == 1, "the first token is here long before the last"
                else:
                    wait_until(lambda before=before: engine.stats()["requests"] > before["requests"], "the request")
            wait_until(lambda before=before: engine.stats()["aborted"] == before["aborted"] + 1, "the end of it")
        assert "llmops_gateway_cancelled_total 2.0" in gateway.get("/metrics")[1].decode()
        assert "llmops_gateway_in_flight 0.0" in gateway.get("/metrics")[1].decode()


def _ask(gateway: stack.Gateway, stream: bool = False) -> int:
    status, body = gateway.post("/v1/chat/completions", {"model": "chat", "messages": QUESTION, "stream": stream})
    return status if not stream or b"[DONE]" in body else 0


def test_a_dead_engine_costs_nobody_an_answer(folder: Path, engine: stack.Running) -> None:
    with stack.stub_engine(folder, ttft_ms=20, itl_ms=5, tokens=8) as other:
        config = stack.gateway_config([engine.url, other.url])
        with stack.gateway(folder, config) as gateway, ThreadPoolExecutor(8) as pool:
            wait_until(lambda: b"engines_up 2.0" in gateway.get("/metrics")[1], "both engines")
            before = [one.stats()["requests"] for one in (engine, other)]
            assert set(pool.map(lambda n: _ask(gateway, n % 2 == 0), range(20))) == {200}
            after = [one.stats()["requests"] for one in (engine, other)]
            assert min(now - then for now, then in zip(after, before, strict=True)) >= 5, "both take their share"
            other.post("/fail", {"status": 500})
            assert set(pool.map(lambda n: _ask(gateway, n % 2 == 0), range(20))) == {200}
            other.post("/fail", {"status": 200})
            answers = pool.map(lambda n: _ask(gateway, n % 2 == 0), range(200))
            other.process.kill()
            # whole answers are asked again elsewhere; a stream that has begun cannot be
            assert [got for n, got in enumerate(answers) if n % 2 == 1] == [200] * 100
            assert set(pool.map(lambda n: _ask(gateway, n % 2 == 0), range(20))) == {200}


@contextmanager
def _hanging(running: stack.Running) -> Iterator[None]:
    """Connections are still taken by the kernel, and nothing is answered."""
    os.kill(running.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(running.pid, signal.SIGCONT)


def test_an_engine_that_hangs_costs_nobody_an_answer(folder: Path) -> None:
    body = {"model": "chat", "messages": QUESTION, "stream": True}
    with (
        stack.stub_engine(folder, ttft_ms=20, itl_ms=5, tokens=8) as good,
        stack.stub_engine(folder, ttft_ms=20, itl_ms=100, tokens=600) as hanging,
        stack.gateway(folder, stack.gateway_config([hanging.url])) as gateway,
        ThreadPoolExecutor(12) as pool,
        httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=60) as begun,
    ):
        pieces = begun.iter_raw()
        next(pieces)
        gateway.write({**stack.gateway_config([hanging.url, good.url]), "revision": "r2"})
        gateway.wait(revision="r2")
        wait_until(lambda: b"engines_up 2.0" in gateway.get("/metrics")[1], "both engines")
        with _hanging(hanging):
            answers = [pool.submit(_ask, gateway, stream) for stream in (True, False) * 5]
            assert [answer.result(60) for answer in answers] == [200] * 10
            assert b"engine_lost" in b"".join(pieces), "a stream that had begun ends with an error"
        ended = re.search(r"hangs: its (\d+) answers", gateway.log.read_text())
        assert ended is not None
        assert int(ended[1]) > 1, "some of the ten were waiting for it"
        wait_until(lambda: b"engines_up 2.0" in gateway.get("/metrics")[1], "it is back")


def test_without_any_engine_a_chat_is_refused_at_once_and_served_when_one_is_back(folder: Path) -> None:
    with stack.stub_engine(folder) as engine:
        port = int(engine.url.rpartition(":")[2])
        with stack.gateway(folder, stack.gateway_config([engine.url])) as gateway:
            engine.process.kill()
            engine.process.wait()
            status, body = gateway.post("/v1/chat/completions", {"model": "chat", "messages": QUESTION})
            assert (status, json.loads(body)["error"]["code"]) == (503, "no_engine")
            assert "127.0.0.1" not in body.decode(), "addresses of the inside stay inside"
            gateway.wait(ready=False)
            assert gateway.get("/healthz")[0] == 200
            with stack.stub_engine(folder, port=port):
                gateway.wait()
                assert _ask(gateway) == 200


def test_a_new_revision_serves_when_its_model_is_loaded_and_a_broken_file_changes_nothing(
    folder: Path, engine: stack.Running
) -> None:
    config = stack.gateway_config([engine.url])
    with stack.gateway(folder, config) as gateway:
        gateway.write({**config, "revision": "r2", "model": "stub-v9"})
        waits = (
            f"no engine serves stub-v9 yet ({engine.url}: it answers without that model; its log says how far it is)"
        )
        wait_until(lambda: waits in json.loads(gateway.get("/readyz")[1])["message"], "a word about the model")
        assert gateway.wait()["revision"] == "r1", "the old one serves until the model is there"
        assert _ask(gateway) == 200
        gateway.config.write_text("{")
        wait_until(lambda: b"not used" in gateway.get("/readyz")[1], "a word about the file")
        assert _ask(gateway) == 200
        gateway.write({**config, "revision": "r3", "model": "stub-v2"})
        report = gateway.wait(revision="r3", seconds=3)
        assert (report["model"], report["message"]) == ("stub-v2", "")
        status, body = gateway.post("/v1/chat/completions", {"model": "chat", "messages": QUESTION})
        assert (status, json.loads(body)["model"]) == (200, "stub-v2")


def test_a_wrong_first_configuration_ends_with_what_to_write(folder: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="engines: 'localhost' is no address"),
        stack.gateway(folder, stack.gateway_config(["localhost"])),
    ):
        pass


def test_at_sigterm_answers_under_way_are_finished(folder: Path) -> None:
    with (
        stack.stub_engine(folder, ttft_ms=20, itl_ms=100, tokens=15) as engine,
        stack.gateway(folder, stack.gateway_config([engine.url])) as gateway,
        ThreadPoolExecutor(4) as pool,
    ):
        answers = [pool.submit(_ask, gateway, stream) for stream in (True, False, True)]
        wait_until(lambda: engine.stats()["streams_open"] == 3, "three answers under way")
        with httpx.Client(base_url=gateway.url) as kept:
            assert "connection" not in kept.get("/healthz").headers
            gateway.process.send_signal(signal.SIGTERM)
            gateway.wait(ready=False)
            assert kept.get("/healthz").headers["connection"] == "close", "its next request would meet a closed one"
        assert json.loads(gateway.get("/readyz")[1])["message"] == "shutting down"
        assert [answer.result(20) for answer in answers] == [200, 200, 200]
        assert gateway.process.wait(10) == 0
