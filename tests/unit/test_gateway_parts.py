"""The gateway's parts that need no process: prompts, streams of events, batches of questions, fusing, sampling."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import AsyncQdrantClient

from llmops_api.programs import GatewayConfig, GatewayIndex
from llmops_api.v1alpha1.rag_service import Prompt, Retrieval, RetrievalMode
from llmops_services.embedding import Vectors
from llmops_services.gateway.app import create_app
from llmops_services.gateway.citations import Citer
from llmops_services.gateway.cited_stream import CitedStream
from llmops_services.gateway.encoder import BATCH, Encoder
from llmops_services.gateway.errors import ApiError
from llmops_services.gateway.live import Revision
from llmops_services.gateway.lookup import Encoders, Lookup, SearchableIndex, Source, fuse
from llmops_services.gateway.metrics import Metrics
from llmops_services.gateway.prompting import build, question_at, room_for_sources, search_text
from llmops_services.gateway.requests import ChatRequest, RagOptions
from llmops_services.gateway.trace_record import TraceRecord
from llmops_services.gateway.traces import TraceSender, sample, sampling_ratio
from llmops_services.program import UserError
from llmops_services.retrieval import Hit


def source(
    name: str, text: str = "text", *, title: str = "Title", section: str = "Title > Part", index: str = "i"
) -> Source:
    hit = Hit(name, 0.5, "c", text, title, section, "s", "p.md", "file:///p.md", (1, 2), "d", name, {})
    return Source(index, hit)


# prompts


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_source_is_shown_with_title_and_path_and_no_heading_twice() -> None:
    text = "# Annual leave\n\n## Norway\n\n### Details\n25 days"
    shown = source("a", text, title="Annual leave", section="Annual leave > Norway")
    assert shown.block() == "Annual leave > Norway\n### Details\n25 days"
    assert source("a", "25 days", title="Leave", section="").block() == "Leave\n25 days"
    assert source("a", "# Leave", title="Leave", section="Leave").block() == "Leave\n# Leave", "never nothing"


def test_a_prompt_keeps_the_turns_and_merges_the_system_messages() -> None:
    messages = [
        {"role": "system", "content": "Be kind"},
        user("Hi"),
        {"role": "assistant", "content": "Hello"},
        user("{sources}?"),
    ]
    prompt = Prompt(system="Cite", template="S: {sources} Q: {question}")
    built = build(messages, 3, prompt, [source("a", "one {question}"), source("b", "two")])
    assert built == [
        {"role": "system", "content": "Cite\n\nBe kind"},
        *messages[1:3],
        user("S: [1] Title > Part\none {question}\n\n[2] Title > Part\ntwo Q: {sources}?"),
    ]
    assert messages[3] == user("{sources}?"), "the request itself is not changed"


def test_with_several_indexes_the_model_is_told_where_a_source_is_from() -> None:
    indexes = [
        GatewayIndex(name="hr", alias="a", description="Policies"),
        GatewayIndex(name="it", alias="b"),
        GatewayIndex(name="products", alias="c", description="Manuals"),
    ]
    prompt = Prompt(system="", template="{sources}\nQ: {question}")
    sources = [source("a", "one", index="hr"), source("b", "two", index="it")]

    def shown(used: list[GatewayIndex]) -> Any:
        return build([user("x")], 0, prompt, sources, used)[0]["content"]

    assert shown(indexes) == "hr: Policies\n\n[1] hr: Title > Part\none\n\n[2] it: Title > Part\ntwo\nQ: x"
    assert shown(indexes[:1]) == "[1] Title > Part\none\n\n[2] Title > Part\ntwo\nQ: x", "training data has this form"


def test_what_is_not_text_stays_in_a_message_of_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, image]}]
    (built,) = build(messages, 0, Prompt(system="", template="{sources}{question}"), [])
    assert built["content"] == [image, {"type": "text", "text": "What?"}]


@pytest.mark.parametrize(
    ("turns", "looked_up"),
    [
        (["How many days of leave in Germany?", "And in Norway?"], "How many days of leave in Germany?\nAnd in Norway?"),
        (["Hi", "How many days of annual leave do new employees in Norway receive?"],
         "How many days of annual leave do new employees in Norway receive?"),
        (["And in Norway?"], "And in Norway?"),
    ],
)  # fmt: skip
def test_a_short_question_is_looked_up_with_the_one_before(turns: list[str], looked_up: str) -> None:
    messages = [user(turn) for turn in turns]
    position = question_at(messages)
    assert position == len(turns) - 1
    assert search_text(messages, position) == looked_up


def test_without_a_word_of_the_user_there_is_no_question() -> None:
    assert question_at([{"role": "system", "content": "x"}, user("  ")]) is None


def test_sources_get_what_conversation_and_answer_leave() -> None:
    messages, prompt = [user("x" * 350)], Prompt(system="", template="{sources}{question}")

    def room(**more: Any) -> int:
        return room_for_sources(
            messages, 0, prompt, **{"context_tokens": 2048, "max_model_len": 1000, "answer": 100, **more}
        )

    assert room() == 1000 - 100 - (100 + 8)
    assert room(answer=None) == 1000 - 250 - 108, "a quarter is kept for the answer"
    assert room(context_tokens=300) == 300
    assert room(max_model_len=None) == 2048
    long = [GatewayIndex(name=name, alias=name, description="y" * 347) for name in "ab"]
    assert room(indexes=long) == room() - 201, "two lines of 350 bytes and the one that parts them"
    assert room(indexes=long[:1]) == room()


# requests


def test_options_of_a_request_go_over_those_of_the_service() -> None:
    wish = RagOptions.model_validate({"topK": 50, "minScore": 0.4}).over(
        Retrieval(candidates=30, top_k=5, min_score="0.1")
    )
    assert (wish.top_k, wish.candidates, wish.min_score, wish.mode.value) == (50, 50, 0.4, "Hybrid")
    assert RagOptions().over(Retrieval(min_score="0.1")).min_score == 0.1


def test_a_chat_is_sent_on_without_rag_and_with_the_engine_s_name() -> None:
    raw = json.dumps(
        {"model": "chat", "messages": [user("x")], "rag": {"topK": 2}, "max_completion_tokens": 9}
    ).encode()
    chat = ChatRequest.parse(raw, names=("chat", "adapter-v1"), engine_model="adapter-v1")
    assert chat.body == {"model": "adapter-v1", "messages": [user("x")], "max_completion_tokens": 9}
    assert (chat.rag, chat.max_tokens, chat.stream) == (RagOptions(top_k=2), 9, False)
    with pytest.raises(ApiError, match="does not exist"):
        ChatRequest.parse(raw, names=("other",), engine_model="x")


# streams of events


def event(*choices: dict[str, Any], **more: Any) -> bytes:
    return b"data: " + json.dumps({"id": "1", "choices": list(choices), **more}).encode() + b"\n\n"


def choice(content: str | None, index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    if content is not None:
        delta["content"] = content
    return {"index": index, "delta": delta, "finish_reason": finish}


def cited() -> CitedStream:
    return CitedStream(
        lambda: Citer(3, lambda _sentence: None),
        lambda citers: {"citations": {str(i): list(c.used) for i, c in citers.items()}},
    )


def events(data: bytes) -> list[Any]:
    lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


DONE = b"data: [DONE]\n\n"


def test_the_last_event_carries_the_citations_and_events_without_news_are_left_out() -> None:
    stream = cited()
    data = (
        event(choice("", role="assistant"))
        + event(choice("So"))
        + event(choice(" ["))
        + event(choice("2]"))
        + event(choice(None, finish="stop"))
    )
    got = events(stream.feed(data + event(usage={"prompt_tokens": 1}) + DONE))
    texts = [c["delta"].get("content") for e in got for c in e["choices"]]
    assert texts == ["", "So", " [1]", None]
    assert "citations" not in got[-2]
    assert (got[-1]["citations"], got[-1]["usage"]) == ({"0": [2]}, {"prompt_tokens": 1})
    assert (stream.text, stream.finish_reason, stream.done) == ("So [1]", "stop", True)


def test_each_choice_has_numbers_of_its_own_and_tool_calls_pass() -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": '{"a": [1]}'}}
    data = (
        event(choice("a [3]", 0), choice("b [2]", 1)) + event(choice(None, 2, tool_calls=[call]))
        + event(choice(None, 0, "stop")) + event(choice(None, 1, "stop")) + event(choice(None, 2, "tool_calls")) + DONE
    )  # fmt: skip
    got = events(cited().feed(data))
    assert [c["delta"] for c in got[0]["choices"]] == [{"content": "a [1]"}, {"content": "b [1]"}]
    assert got[1]["choices"][0]["delta"]["tool_calls"] == [call]
    assert got[-1]["citations"] == {"0": [3], "1": [2], "2": []}


@settings(max_examples=100, deadline=None)
@given(
    st.text(alphabet="ab [].12\nü", max_size=40),
    st.lists(st.integers(1, 6), max_size=20),
    st.lists(st.integers(1, 50), max_size=20),
)
def test_a_stream_says_what_the_whole_answer_says(text: str, pieces: list[int], cuts: list[int]) -> None:
    tokens, rest = [], text
    for size in (*pieces, len(text) + 1):
        tokens.append(rest[:size])
        rest = rest[size:]
    data = b"".join(event(choice(token)) for token in tokens) + event(choice("", finish="stop")) + DONE
    stream, out, position = cited(), b"", 0
    for cut in (*cuts, len(data)):
        out += stream.feed(data[position : position + cut])
        position += cut
    whole = Citer(3, lambda _sentence: None)
    expected = whole.feed(text) + whole.finish()
    got = events(out)
    assert "".join(c["delta"].get("content") or "" for e in got for c in e["choices"]) == expected == stream.text
    assert got[-1]["citations"]["0"] == list(whole.used)


def test_what_is_no_event_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="object"):
        cited().feed(b"data: 5\n\n")


# questions in batches


class Model:
    """Counts its batches; the first one waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.began, self.go = threading.Event(), threading.Event()

    def encode_queries(self, texts: Sequence[str], batch_size: int = 32) -> Vectors:
        self.batches.append(list(texts))
        self.began.set()
        assert self.go.wait(10)
        if "bad" in texts:
            raise RuntimeError("no")
        return np.array([[float(len(text))] for text in texts], dtype=np.float32)


async def test_questions_that_wait_together_are_one_batch_each_with_its_own_vector() -> None:
    model = Model()
    encoder = Encoder(model)
    tasks = [asyncio.create_task(encoder.encode("x" * n)) for n in range(1, BATCH + 10)]
    await asyncio.sleep(0)
    tasks[5].cancel()
    model.go.set()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert [vector for n, vector in enumerate(got) if n != 5] == [[float(n + 1)] for n in range(BATCH + 9) if n != 5]
    assert sum(map(len, model.batches)) == BATCH + 8
    assert len(model.batches) <= 3
    assert await encoder.encode("again") == [5.0], "it works on after it was idle"


async def test_a_batch_that_fails_is_the_failure_of_its_questions_alone() -> None:
    model = Model()
    model.go.set()
    encoder = Encoder(model)
    with pytest.raises(RuntimeError):
        await encoder.encode("bad")
    assert await encoder.encode("good") == [4.0]


async def test_a_busy_encoder_holds_up_neither_healthz_nor_the_list_of_models() -> None:
    model = Model()
    metadata = SimpleNamespace(sparse=False)
    config = GatewayConfig.model_validate(
        {
            "object": {"kind": "RagService", "namespace": "default", "name": "chat", "uid": "u"},
            "revision": "r1",
            "model": "m",
            "indexes": [{"name": "i", "alias": "a", "description": "Manuals"}],
        }
    )
    store = AsyncQdrantClient(url="http://127.0.0.1:9", check_compatibility=False)
    lookup = Lookup(config.indexes, store, Encoders())
    lookup.indexes = {"i": SearchableIndex("i", "c", metadata, Encoder(model))}  # type: ignore[arg-type]
    live = SimpleNamespace(revision=Revision(config, (), lookup), engines=())
    transport = httpx.ASGITransport(create_app(live, Metrics()))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        search = asyncio.create_task(client.post("/v1/retrieve", json={"query": "x", "mode": "Dense"}))
        assert await asyncio.to_thread(model.began.wait, 10)
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/v1/models")).json()["data"][0]["indexes"] == [
            {"name": "i", "description": "Manuals"}
        ]
        assert not search.done(), "it was answered while a question was being encoded"
        model.go.set()
        assert (await search).json()["error"]["code"] == "retrieval_unavailable", "nothing listens on port 9"
    await store.close()


async def test_a_search_on_a_connection_that_the_store_was_closing_is_made_again() -> None:
    answered: list[int] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the first request of a connection, and resets it at the second."""
        body = json.dumps({"result": [{"points": []}], "status": "ok", "time": 0.0}).encode()
        answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError):  # the client has closed it
            for number in (1, 2):
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head.lower())[0]))
                answered.append(number)
                if number == 1:
                    writer.write(answer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # of a name that it does not know for this machine's the client keeps connections
    store = AsyncQdrantClient(url=f"http://127.1:{port}", check_compatibility=False)
    model = Model()
    model.go.set()
    lookup = Lookup([GatewayIndex(name="i", alias="a")], store, Encoders())
    lookup.indexes = {"i": SearchableIndex("i", "c", SimpleNamespace(sparse=False), Encoder(model))}  # type: ignore[arg-type]
    for _ in range(2):
        assert await lookup.find("x", mode=RetrievalMode.DENSE, candidates=1, where={}, names=None) == []
    assert answered == [1, 2, 1]
    await store.close()
    server.close()
    for writer in writers:
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(("swapped", "status"), [(True, 200), (False, 503)])
async def test_a_chat_whose_model_went_while_it_was_looked_up_begins_again_with_what_took_over(
    swapped: bool, status: int
) -> None:
    def revision(name: str, found: list[Source]) -> Any:
        about = {"kind": "RagService", "namespace": "default", "name": "chat", "uid": "u"}
        config = GatewayConfig.model_validate({"object": about, "revision": name, "model": f"m-{name}"})

        async def find(*_: object, **__: object) -> list[Source]:
            if swapped:
                live.revision = after
            return found

        lookup = SimpleNamespace(names=("i",), find=find, collections=dict)
        return Revision(config, (), lookup)  # type: ignore[arg-type]

    before, after = revision("r1", [source("a")]), revision("r2", [])  # r2 finds nothing, and needs no engine to say so
    live = SimpleNamespace(revision=before, engines=())
    transport = httpx.ASGITransport(create_app(live, Metrics()))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.post("/v1/chat/completions", json={"model": "chat", "messages": [user("leave?")]})
    assert answer.status_code == status
    if swapped:
        assert (answer.json()["llmops"]["revision"], answer.json()["model"]) == ("r2", "m-r2")
        assert answer.headers["x-llmops-revision"] == "r2"


def test_lists_of_several_indexes_are_fused_by_rank() -> None:
    a, b, c, d = (source(name) for name in "abcd")
    assert fuse([[a, b], [c, d]]) == [a, c, b, d]
    assert fuse([[a, b]]) == [a, b]
    assert fuse([[], [c]]) == [c]


# traces

ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("header", "followed"),
    [
        (f"00-{ID}-00f067aa0ba902b7-01".encode(), ID),
        (f"00-{ID}-00f067aa0ba902b7-00".encode(), None),
        (b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", None),
        (b"nonsense", None),
        (None, None),
    ],
)
def test_a_caller_that_samples_is_followed_with_its_id(header: bytes | None, followed: str | None) -> None:
    assert sample(0.0, header) == followed


def test_the_ratio_is_kept() -> None:
    assert 300 < sum(sample(0.1, None) is not None for _ in range(5000)) < 700
    assert all(len(sample(1.0, None) or "") == 32 for _ in range(10))


def test_a_wrong_ratio_is_the_user_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACE_SAMPLING_RATIO", "10%")
    with pytest.raises(UserError, match="number from 0 to 1"):
        sampling_ratio()


def test_a_full_queue_drops_and_counts() -> None:
    sender = TraceSender("http://127.0.0.1:9", size=2)
    for _ in range(5):
        sender.put(TraceRecord("0" * 32, 0, "e", None, "s", "r", "m", {}))
    assert sender.dropped == 3
