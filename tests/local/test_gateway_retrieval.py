"""The gateway with real parts behind it: the indexer's collection in the vector store, an embedding model, an MLflow server."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import pytest
from mlflow_server import MlflowServer
from waiting import wait_until

from llmops_api.lineage import Tag


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
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
DOCUMENTS = {
    "leave-norway.md": "# Annual leave Norway\n\n## Entitlement\n\nEmployees in Norway receive 25 days of annual leave.\n\n"
    "## Carry-over\n\nUp to five unused days move into the next year.\n",
    "leave-germany.md": "# Annual leave Germany\n\n## Entitlement\n\nEmployees in Germany receive 30 days of annual leave.\n",
    "vpn.md": "# VPN access\n\n## Setup\n\nInstall the Norvane client and sign in with the second factor.\n",
}
ANSWER = "Employees in Norway receive 25 days of annual leave. Ask your manager [1]. Elsewhere it differs [9]."
CHAT = "/v1/chat/completions"
INDEX = {"name": "handbook", "alias": "default.handbook"}
QUESTION = "How many days of annual leave do employees in Norway receive?"


@dataclass
class Stack:
    folder: Path
    store: Any
    engine: Any
    echo: Any
    model: str
    mlflow: str
    config: dict[str, Any]
    gateway: Any
    revisions: int = 1

    def chat(self, question: str = QUESTION, *, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        body = {"model": "chat", "messages": [{"role": "user", "content": question}], **more}
        status, answer = self.gateway.post("/v1/chat/completions", body, headers=headers)
        parsed: dict[str, Any] = json.loads(answer)
        assert status == 200, parsed
        return parsed

    @contextmanager
    def configured(self, **more: Any) -> Iterator[None]:
        """Another configuration for a while: the gateway takes it over without a restart."""
        for config in (more, {}):
            self.revisions += 1
            revision = f"r{self.revisions}" if config else "r1"
            self.gateway.write({**self.config, **config, "revision": revision})
            self.gateway.wait(revision=revision, seconds=20)
            if config:
                yield

    def echoed(self, **more: Any) -> list[dict[str, Any]]:
        """The messages that reached the engine."""
        with self.configured(engines=[self.echo.url]):
            answer = self.chat(**more)["choices"][0]["message"]["content"]
        # in the echo of a prompt citations are made right too: what is compared here is the text without the added marks
        messages: list[dict[str, Any]] = json.loads(re.sub(r" ?\[\d\](?=\.)", "", answer))["messages"]
        return messages


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, tiny_embedding_model: Path, mlflow_server: MlflowServer
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("retrieval")
    documents = folder / "documents"
    documents.mkdir()
    for name, text in DOCUMENTS.items():
        (documents / name).write_text(text)
    model = f"file://{tiny_embedding_model}"
    with ExitStack() as processes:
        store = processes.enter_context(stack.vector_store(folder))
        stack.build_index(
            folder, store.url, "handbook", documents, model, chunking={"maxTokens": 64, "overlapTokens": 0}
        )
        engine = processes.enter_context(stack.stub_engine(folder, answer=ANSWER, itl_ms=2))
        echo = processes.enter_context(stack.stub_engine(folder, answer="echo"))
        config = stack.gateway_config(
            [engine.url], indexes=[INDEX], retrieval={"minScore": "-1", "topK": 3}, mlflowExperiment="llmops/default",
            mlflowModelId="m-0123456789abcdef0123456789abcdef",
        )  # fmt: skip
        env = {"QDRANT_URL": store.url, "MLFLOW_TRACKING_URI": mlflow_server.url, "MLFLOW_TRACE_SAMPLING_RATIO": "0"}
        gateway = processes.enter_context(stack.gateway(folder, config, **env))
        yield Stack(folder, store, engine, echo, model, mlflow_server.url, config, gateway)


def test_retrieve_finds_chunks_with_where_they_stand(running: Stack) -> None:
    status, body = running.gateway.post("/v1/retrieve", {"query": QUESTION, "topK": 2})
    assert status == 200
    found = json.loads(body)
    assert len(found["results"]) == 2
    best = found["results"][0]
    assert (best["title"], best["lines"], best["path"]) == ("Annual leave Norway", [1, 5], "leave-norway.md")
    assert "25 days" in best["text"]
    assert best["index"] == "handbook"
    assert best["collection"] == found["collections"]["handbook"]


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({"mode": "Sparse", "topK": 1}, {"leave-norway.md"}),
        ({"filter": {"path": "vpn.md"}}, {"vpn.md"}),
        ({"filter": {"path": ["vpn.md", "leave-germany.md"]}}, {"vpn.md", "leave-germany.md"}),
        ({"mode": "Sparse", "minScore": 1000}, set()),
        ({"indexes": ["handbook"], "mode": "Dense", "topK": 100}, set(DOCUMENTS)),
    ],
)
def test_the_options_of_a_request_override_the_service_s(
    running: Stack, options: dict[str, Any], paths: set[str]
) -> None:
    status, body = running.gateway.post("/v1/retrieve", {"query": QUESTION, **options})
    assert (status, {hit["path"] for hit in json.loads(body)["results"]}) == (200, paths)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"query": ""}, "query"),
        ({}, "query"),
        ({"query": "x", "indexes": ["nope"]}, "nope"),
        ({"query": "x", "filter": {"path": 1.5}}, "filter.path"),
        ({"query": "x", "topK": 1000}, "topK"),
        ({"query": "x", "unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_search_says_what_is_wrong(running: Stack, body: dict[str, Any], what: str) -> None:
    status, answer = running.gateway.post("/v1/retrieve", body)
    assert status == 400
    assert what in json.loads(answer)["error"]["message"]


def test_the_prompt_holds_numbered_sources_and_the_earlier_turns(running: Stack) -> None:
    history = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": QUESTION},
    ]
    system, first, second, asked = running.echoed(messages=history)
    assert system["role"] == "system"
    assert system["content"].startswith("Answer from the numbered sources only")
    assert system["content"].endswith("Be brief")
    assert [first, second] == history[1:3]
    assert asked["content"].startswith(
        "Sources:\n\n[1] Annual leave Norway > Entitlement\nEmployees in Norway receive 25 days of annual leave"
    )
    assert asked["content"].endswith(f"\n\nQuestion: {QUESTION}")


def test_a_cited_answer_is_the_same_streamed_and_whole(running: Stack) -> None:
    whole = running.chat()
    text = whole["choices"][0]["message"]["content"]
    assert (
        text == "Employees in Norway receive 25 days of annual leave [1]. Ask your manager [1]. Elsewhere it differs."
    )
    (citation,) = whole["citations"]
    assert (citation["n"], citation["attribution"], citation["title"]) == (1, "model", "Annual leave Norway")
    assert whole["llmops"] == {
        "revision": "r1", "model": "stub", "collections": {"handbook": citation["collection"]}, "traceId": None, "retrieved": 3,
    }  # fmt: skip
    with openai.OpenAI(base_url=f"{running.gateway.url}/v1", api_key="x", max_retries=0) as ai:
        for more in ({}, {"stream_options": {"include_usage": True}}):
            chunks = list(
                ai.chat.completions.create(
                    model="chat", stream=True, messages=[{"role": "user", "content": QUESTION}], **more
                )
            )
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
            last = chunks[-1].model_extra
            assert last is not None
            assert (last["citations"], last["llmops"]) == (whole["citations"], whole["llmops"])
            assert all("citations" not in (chunk.model_extra or {}) for chunk in chunks[:-1])


def test_where_nothing_is_found_the_model_is_not_asked(running: Stack) -> None:
    before = running.engine.stats()["requests"]
    options = {"rag": {"minScore": 1.1}}
    whole = running.chat(**options)
    assert whole["choices"][0]["message"]["content"] == "I found nothing about this in handbook."
    assert (whole["citations"], whole["llmops"]["retrieved"]) == ([], 0)
    with openai.OpenAI(base_url=f"{running.gateway.url}/v1", api_key="x", max_retries=0) as ai:
        chunks = list(
            ai.chat.completions.create(
                model="chat", stream=True, messages=[{"role": "user", "content": QUESTION}], extra_body=options
            )
        )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole["choices"][0]["message"]["content"]
    )
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["citations"] == []
    assert running.engine.stats()["requests"] == before


def test_rag_can_be_switched_off_and_topk_set(running: Stack) -> None:
    assert running.echoed(rag={"enabled": False})[0] == {"role": "user", "content": QUESTION}
    assert running.echoed(rag={"topK": 1})[-1]["content"].count(" > ") == 1


def test_with_two_indexes_the_model_and_the_user_are_told_which_is_which(running: Stack) -> None:
    documents = running.folder / "runbooks"
    documents.mkdir()
    (documents / "router.md").write_text("# Router\n\nPress the button of the router for ten seconds.\n")
    chunking = {"maxTokens": 64, "overlapTokens": 0}
    stack.build_index(running.folder, running.store.url, "runbooks", documents, running.model, chunking=chunking)
    indexes = [{**INDEX, "description": "HR policies"}, {"name": "runbooks", "alias": "default.runbooks"}]
    with running.configured(indexes=indexes):
        (card,) = json.loads(running.gateway.get("/v1/models")[1])["data"]
        assert card["indexes"] == [
            {"name": "handbook", "description": "HR policies"},
            {"name": "runbooks", "description": ""},
        ]
    with running.configured(indexes=indexes, engines=[running.echo.url]):
        sent = json.loads(running.chat()["choices"][0]["message"]["content"])
    asked = sent["messages"][-1]["content"]
    assert asked.startswith("Sources:\n\nhandbook: HR policies\n\n[1] ")
    assert re.search(r"^\[\d\] handbook: Annual leave Norway > Entitlement$", asked, re.MULTILINE)
    assert re.search(r"^\[\d\] runbooks: Router$", asked, re.MULTILINE)


@contextmanager
def _hanging(running: Stack) -> Iterator[None]:
    """The vector store still takes connections, and answers nothing."""
    os.kill(running.store.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(running.store.pid, signal.SIGCONT)


def test_a_store_that_hangs_does_not_hold_up_healthz(running: Stack) -> None:
    with ThreadPoolExecutor(4) as pool:
        with _hanging(running):
            searches = [pool.submit(running.gateway.post, "/v1/retrieve", {"query": QUESTION}) for _ in range(4)]
            time.sleep(0.3)
            for _ in range(20):
                assert running.gateway.get("/healthz", timeout=2)[0] == 200
            assert not any(search.done() for search in searches)
        assert [search.result(20)[0] for search in searches] == [200] * 4
    running.gateway.wait()


def test_a_store_that_goes_on_hanging_costs_the_chats_that_need_it_and_no_others(running: Stack) -> None:
    chat = {"model": "chat", "messages": [{"role": "user", "content": QUESTION}]}
    with ThreadPoolExecutor(2) as pool, _hanging(running):
        chats = [pool.submit(running.gateway.post, CHAT, {**chat, "stream": stream}) for stream in (False, True)]
        while not all(one.done() for one in chats):
            assert running.gateway.get("/healthz")[0] == 200
            assert running.chat(rag={"enabled": False})["choices"][0]["message"]["content"] == ANSWER
        for status, body in (one.result() for one in chats):
            error = json.loads(body)["error"]
            assert (status, error["type"], error["code"]) == (503, "service_unavailable", "retrieval_unavailable")
            assert error["message"] == "The vector store does not answer at the moment. Try again."
        report = running.gateway.wait(ready=False)
        assert f"the vector store at {running.store.url} does not answer" in report["message"]
    running.gateway.wait()
    assert len(running.chat()["citations"]) == 1


def test_a_chat_that_is_looked_up_while_its_model_is_replaced_is_answered_by_the_new_one(running: Stack) -> None:
    with (
        stack.stub_engine(running.folder, models=("stub", "stub-v2"), answer=ANSWER) as engine,
        running.configured(engines=[engine.url]),
        ThreadPoolExecutor(1) as pool,
    ):
        with _hanging(running):
            chat = pool.submit(running.chat)
            under_way = b"llmops_gateway_in_flight 1.0"
            wait_until(lambda: under_way in running.gateway.get("/metrics")[1], "the chat")
            running.gateway.write({**running.config, "engines": [engine.url], "model": "stub-v2", "revision": "v2"})
            wait_until(lambda: json.loads(running.gateway.get("/readyz")[1])["revision"] == "v2", "the new revision")
            engine.post("/v1/unload_lora_adapter", {"lora_name": "stub"})
        answer = chat.result(60)
    assert (answer["llmops"]["revision"], answer["llmops"]["model"], answer["model"]) == ("v2", "stub-v2", "stub-v2")
    assert len(answer["citations"]) == 1


def test_sources_fit_the_model_and_are_halved_when_the_engine_says_too_long(running: Stack) -> None:
    with stack.stub_engine(running.folder, max_model_len=175) as engine:
        small = {"engines": [engine.url], "prompt": {"system": "x" * 300}}
        with running.configured(**small):
            assert running.chat(max_tokens=1)["llmops"]["retrieved"] == 1, "the engine refused three"
        with running.configured(**small, maxModelLen=175):
            messages = [{"role": "user", "content": QUESTION}]
            status, body = running.gateway.post(
                "/v1/chat/completions", {"model": "chat", "max_tokens": 200, "messages": messages}
            )
            assert (status, json.loads(body)["error"]["code"]) == (400, "context_length_exceeded")


def test_a_sampled_answer_is_a_trace_with_retriever_and_llm_spans(
    running: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.mlflow)
    other = TRACE[:-1] + "7"
    whole = running.chat(headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    assert whole["llmops"]["traceId"] == f"tr-{TRACE}"
    off = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "x"}], "rag": {"enabled": False}}
    running.gateway.post("/v1/chat/completions", off, headers={"traceparent": f"00-{other}-00f067aa0ba902b7-01"})
    trace = _trace(running.mlflow, f"tr-{TRACE}")
    info, spans = trace.info, {span.span_type: span for span in trace.data.spans}
    assert info.state == "OK"
    assert info.execution_duration >= 16, "tokens are 2 ms apart"
    assert info.trace_metadata["mlflow.modelId"] == "m-0123456789abcdef0123456789abcdef"
    assert json.loads(info.tags[Tag.COLLECTIONS]) == whole["llmops"]["collections"]
    for key, value in ((Tag.SERVICE, "default/chat"), (Tag.REVISION, "r1"), (Tag.MODEL, "stub")):
        assert info.tags[key] == info.trace_metadata[key] == value
    assert set(spans) == {"CHAIN", "RETRIEVER", "LLM"}
    chain, retriever, llm = spans["CHAIN"], spans["RETRIEVER"], spans["LLM"]
    assert chain.parent_id is None
    assert retriever.parent_id == llm.parent_id == chain.span_id
    assert retriever.inputs == {"query": QUESTION}
    assert len(retriever.outputs) == 3
    assert "25 days" in retriever.outputs[0]["page_content"]
    assert retriever.outputs[0]["metadata"]["doc_uri"].endswith("leave-norway.md")
    assert retriever.outputs[0]["metadata"]["chunk_id"]
    assert llm.outputs["content"] == chain.outputs["content"] == whole["choices"][0]["message"]["content"]
    assert "25 days" in json.dumps(llm.inputs)
    assert chain.outputs["citations"] == whole["citations"]
    assert chain.start_time_ns <= retriever.start_time_ns < llm.end_time_ns <= chain.end_time_ns
    passed_on = _trace(running.mlflow, f"tr-{other}")
    assert {span.span_type for span in passed_on.data.spans} == {"CHAIN", "LLM"}
    assert passed_on.data.spans[0].outputs["content"] == ANSWER


def _trace(uri: str, trace_id: str) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(uri)

    def find() -> Any:
        found = client.get_experiment_by_name("llmops/default")
        traces = client.search_traces(locations=[found.experiment_id]) if found else []
        return next((one for one in traces if one.info.trace_id == trace_id and one.data.spans), None)

    return wait_until(find, f"the trace {trace_id}")


def test_the_gateway_follows_an_alias_to_another_version_and_outlives_the_store(running: Stack) -> None:
    """Last in this file: it ends the vector store."""
    before = running.gateway.wait()["indexes"]["handbook"]
    (running.folder / "documents" / "new.md").write_text("# Parking\n\nParking costs nothing in Trondheim.\n")
    stack.build_index(
        running.folder, running.store.url, "handbook", running.folder / "documents", running.model,
        chunking={"maxTokens": 60, "overlapTokens": 0}, retainVersions=1,
    )  # fmt: skip
    end = time.monotonic() + 10
    while running.gateway.wait()["indexes"]["handbook"] == before:
        assert time.monotonic() < end
        assert running.gateway.post("/v1/retrieve", {"query": QUESTION})[0] == 200
        time.sleep(0.02)
    found = json.loads(running.gateway.post("/v1/retrieve", {"query": "parking costs", "mode": "Sparse"})[1])
    assert found["results"][0]["path"] == "new.md"
    running.store.process.kill()
    running.store.process.wait()
    status, body = running.gateway.post("/v1/retrieve", {"query": QUESTION})
    assert (status, json.loads(body)["error"]["code"]) == (503, "retrieval_unavailable")
    assert running.gateway.get("/healthz")[0] == 200
    report = running.gateway.wait(ready=False, seconds=10)
    assert f"the vector store at {running.store.url} does not answer" in report["message"]
    assert "see whether it runs, or correct QDRANT_URL" in report["message"]
    assert running.chat(rag={"enabled": False})["choices"], "what needs no index goes on"


def test_answers_do_not_wait_for_mlflow_and_traces_beyond_the_queue_are_counted(tmp_path: Path) -> None:
    with stack.stub_engine(tmp_path, tokens=1) as engine:
        config = stack.gateway_config([engine.url], mlflowExperiment="llmops/default")
        env = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_TRACE_SAMPLING_RATIO": "1"}
        chat = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
        with stack.gateway(tmp_path, config, **env) as gateway:
            assert {gateway.post("/v1/chat/completions", chat)[0] for _ in range(1050)} == {200}
            dropped = re.search(
                r"^llmops_gateway_traces_dropped (\S+)", gateway.get("/metrics")[1].decode(), re.MULTILINE
            )
            assert dropped is not None
            assert 40 <= float(dropped[1]) <= 50
            began = time.monotonic()
        assert time.monotonic() - began < 20, "the end waits a bounded time"


def test_an_mlflow_that_takes_connections_and_never_answers_holds_up_neither_answers_nor_the_end(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, stack.stub_engine(tmp_path, tokens=1) as engine:
        config = stack.gateway_config([engine.url], mlflowExperiment="llmops/default")
        env = {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "MLFLOW_TRACE_SAMPLING_RATIO": "1",
        }
        chat = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
        with stack.gateway(tmp_path, config, **env) as gateway:
            silent.settimeout(120)
            assert gateway.post(CHAT, chat)[0] == 200
            asking, _ = silent.accept()
            with asking:
                assert asking.recv(4) == b"GET ", "MLflow is being asked, and does not answer"
                assert {gateway.post(CHAT, chat)[0] for _ in range(20)} == {200}
                gateway.process.terminate()
                assert gateway.process.wait(stack.STOP_SECONDS) == 0, "the traces that wait do not hold it up"
        assert "21 traces" in gateway.log.read_text()
