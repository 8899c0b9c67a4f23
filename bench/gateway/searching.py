"""Lines with retrieval: the real indexer, vector store and embedding model, in front of an engine that answers at once."""

from __future__ import annotations

import json
import time

import load
import stack
from corpus import chats, questions, write_documents
from measuring import CHAT, MODEL, Bench, Row


def retrieve(bench: Bench) -> Row:
    """Searches with the embedding of the question, one client and eight."""
    one = bench.search_alone
    eight = bench.search(8)
    ours = f"{one.total_p50:.0f} ms / {eight.total_p50:.0f} ms"
    good = one.total_p50 < 30 and eight.total_p50 < 120 and not one.errors and not eight.errors
    what = f"retrieve p50, one client / eight clients, {bench.documents:,} documents"
    return Row(what, "-", "600 ms / 5,222 ms", "< 30 / < 120 ms", ours, good)


def chat_added(bench: Bench) -> Row:
    """One client's chats with retrieval against the same chats sent to the engine."""
    seconds = bench.seconds(15)
    body = [load.chat_body("stub", question, stream=False) for question in questions()]
    direct = bench.run(bench.engine.url + CHAT, body, "closed", stream=False, concurrency=1, seconds=2)
    rag = bench.run(
        bench.searching.url + CHAT, chats(stream=False), "closed", stream=False, concurrency=1, seconds=seconds
    )
    added = rag.total_p50 - direct.total_p50
    return Row(
        "chat with retrieval, added p50, one client",
        "-",
        "58 ms",
        "< 30 ms",
        f"{added:.0f} ms",
        added < 30 and not rag.errors,
    )


def chat_burst(bench: Bench) -> Row:
    """200 chats with retrieval at once."""
    found = bench.run(
        bench.searching.url + CHAT, chats(stream=False), "closed", stream=False, concurrency=200, once=True
    )
    ours = f"{found.total_p50 / 1e3:.2f} s ({found.ok} of {found.count} answered)"
    good = found.total_p50 < 4000 and found.ok == found.count
    return Row("200 chats with retrieval at once: p50", "-", "12.3 s", "< 4 s", ours, good)


def wait_for_points(store: stack.Running, prefix: str, indexer: stack.Running) -> None:
    """Until the indexer has written its first chunks: from then on it embeds."""
    while indexer.process.poll() is None:
        names = [one["name"] for one in json.loads(store.get("/collections")[1])["result"]["collections"]]
        for name in names:
            if name.startswith(prefix) and json.loads(store.get(f"/collections/{name}")[1])["result"]["points_count"]:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the indexer ended too early: {indexer.log.read_text(errors='replace')[-2000:]}")


def while_indexing(bench: Bench) -> Row:
    """Searches of one client while the real indexer builds another index in the same store."""
    alone, folder = bench.search_alone, bench.folder / "more"
    write_documents(folder, bench.documents, seed=3)
    with stack.indexing(bench.folder, bench.store.url, "another", folder, MODEL) as indexer:
        wait_for_points(bench.store, "default.another.", indexer)
        during = bench.search(1)
        busy = indexer.process.poll() is None
    ratio = during.total_p50 / alone.total_p50
    ours = f"{ratio:.1f} times ({during.total_p50:.0f} ms against {alone.total_p50:.0f} ms){'' if busy else ', but the build had ended'}"
    return Row(
        "retrieve while an index is being built",
        "-",
        "waits 23 s",
        "no slower than 2 times",
        ours,
        ratio <= 2 and busy,
    )


def stream_with_retrieval(bench: Bench) -> Row:
    """Whether it streams."""
    found = bench.run(
        bench.searching.url + CHAT, chats(stream=True), "closed", concurrency=8, seconds=bench.seconds(10)
    )
    ours = f"streams, {found.ok} of {found.count} whole, TTFT p50 {found.ttft_p50:.0f} ms (eight clients)"
    return Row("stream with retrieval", "-", "refused (400)", "streams", ours, found.ok == found.count)
