"""The indexing program against the embedded vector store, each a real process; the embedding model is real but tiny."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from llmops_api.programs import Env, IndexingConfig, IndexingResult, ObjectId
from llmops_services import vectors
from llmops_services.embedding import Embedder
from llmops_services.indexing import program
from llmops_services.indexing.program import main
from llmops_services.program import TryAgain, UserError
from llmops_services.vectors import metadata_of, resolve_alias
from llmops_services.vectorstore.process import StoreProcess

WORDS = [
    "leave",
    "policy",
    "employee",
    "remote",
    "travel",
    "budget",
    "backup",
    "console",
    "volume",
    "router",
    "green",
    "light",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    with StoreProcess(tmp_path_factory.mktemp("store")) as process:
        yield process


class Index:
    """An EmbeddingIndex over a folder, synchronised by hand."""

    def __init__(self, name: str, folder: Path, model: Path, client: QdrantClient) -> None:
        self.name = name
        self.documents = folder / "documents"
        self.documents.mkdir(parents=True)
        self.config = folder / "indexing.json"
        self.client = client
        self.uid = f"uid-{name}"
        self.spec: dict[str, Any] = {
            "sources": [{"name": "hr", "uri": f"file://{self.documents}"}],
            "embedding": {"model": {"uri": f"file://{model}"}},
            "chunking": {"maxTokens": 64, "overlapTokens": 8},
        }

    def write(self, **documents: str | None) -> None:
        for name, text in documents.items():
            path = self.documents / f"{name}.md"
            path.unlink() if text is None else path.write_text(text)

    def configure(self, action: str = "Sync", **spec: Any) -> Path:
        self.spec.update(spec)
        owner = ObjectId(kind="EmbeddingIndex", namespace="team", name=self.name, uid=self.uid)
        config = IndexingConfig.model_validate({"object": owner, "spec": self.spec, "action": action})
        self.config.write_text(json.dumps(config.dump()))
        return self.config

    def sync(self, **spec: Any) -> IndexingResult:
        return main(str(self.configure(**spec)))

    @property
    def alias(self) -> str:
        return f"team.{self.name}"

    def collections(self) -> set[str]:
        names = {one.name for one in self.client.get_collections().collections}
        return {name for name in names if name.startswith(f"{self.alias}.")}

    def points(self, collection: str | None = None) -> dict[str, models.Record]:
        records, rest = self.client.scroll(
            collection or self.alias, limit=100_000, with_payload=True, with_vectors=True
        )
        assert rest is None
        return {str(record.id): record for record in records}

    def texts(self) -> dict[str, list[str]]:
        """Texts of the chunks in order, by path."""
        found: dict[str, list[Any]] = {}
        for record in self.points().values():
            payload = record.payload or {}
            found.setdefault(payload["path"], []).append((payload["chunk"], payload["text"]))
        return {path: [text for _, text in sorted(chunks)] for path, chunks in found.items()}


@pytest.fixture
def client(store: StoreProcess) -> Iterator[QdrantClient]:
    client = QdrantClient(url=store.url, check_compatibility=False, timeout=30)
    yield client
    client.close()


@pytest.fixture
def make_index(
    store: StoreProcess,
    client: QdrantClient,
    tiny_embedding_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Callable[..., Index]:
    monkeypatch.setenv(Env.QDRANT_URL, store.url)
    monkeypatch.setenv(Env.CACHE_DIR, str(tmp_path / "cache"))
    base = request.node.name.replace("_", "-").partition("[")[0][:40].strip("-")

    def make(suffix: str = "") -> Index:
        return Index(f"{base}{suffix}", tmp_path / f"index{suffix}", tiny_embedding_model, client)

    return make


@pytest.fixture
def index(make_index: Callable[..., Index]) -> Index:
    return make_index()


def prose(seed: int, sentences: int = 12) -> str:
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=9)) + f" {seed} {number}." for number in range(sentences)]
    return f"# Document {seed}\n\n" + "\n\n".join(lines) + "\n"


def counts(result: IndexingResult) -> dict[str, int]:
    return {key: value for key, value in result.counts.dump().items() if value}


def test_a_living_corpus_is_followed_with_as_little_embedding_as_possible(index: Index) -> None:
    index.write(a=prose(1), b=prose(2), c=prose(3))
    first = index.sync()
    assert counts(first) == {"added": 3, "embedded": len(index.points())}
    assert first.serving is not None
    assert (first.serving.documents, first.serving.chunks) == (3, len(index.points()))
    assert first.serving.collection.startswith(f"{index.alias}.{first.serving.fingerprint[:10]}")

    again = index.sync()
    assert counts(again) == {"unchanged": 3}
    assert again.serving == first.serving

    before = index.points()
    index.write(b=prose(2) + "\nThe employee asks the console.\n", c=None, d=prose(4))
    index.documents.joinpath("a.md").rename(index.documents / "e.md")
    changed = index.sync()
    assert {key: value for key, value in counts(changed).items() if key != "embedded"} == {
        "added": 2, "updated": 1, "deleted": 2,
    }  # fmt: skip
    after = index.points()
    assert changed.counts.embedded == len(after.keys() - before.keys())
    kept = after.keys() & before.keys()  # of the document to which a line was added, all chunks but the last
    assert len(kept) >= 3
    assert all(after[key].vector == before[key].vector for key in kept)
    assert index.texts().keys() == {"b.md", "d.md", "e.md"}
    assert "The employee asks the console." in index.texts()["b.md"][-1]
    assert changed.serving is not None
    assert first.serving.digest != changed.serving.digest


def test_payload_names_the_lines_of_the_document(index: Index) -> None:
    index.write(a=prose(1))
    source = {**index.spec["sources"][0], "metadata": {"area": "people"}}
    index.sync(sources=[source], chunking={"maxTokens": 64, "overlapTokens": 0})
    lines = (index.documents / "a.md").read_text().split("\n")
    for record in index.points().values():
        payload = record.payload or {}
        first, last = payload["lines"]
        assert payload["text"] in "\n".join(lines[first - 1 : last])  # a long line is cut within
        assert payload["text"].count("\n") == last - first
        assert payload["title"] == "Document 1"
        assert payload["source"] == "hr"
        assert payload["uri"] == f"file://{index.documents}/a.md"
        assert payload["metadata"] == {"area": "people"}
    assert "metadata.area" in index.client.get_collection(index.alias).payload_schema


def test_other_metadata_changes_payloads_without_embedding(index: Index) -> None:
    index.write(a=prose(1))
    index.sync()
    before = index.points()
    result = index.sync(sources=[{**index.spec["sources"][0], "metadata": {"area": "people"}}])
    assert counts(result) == {"updated": 1}
    after = index.points()
    assert after.keys() == before.keys()
    assert all((record.payload or {})["metadata"] == {"area": "people"} for record in after.values())


def test_an_unchanged_corpus_is_synchronised_without_torch(index: Index) -> None:
    index.write(a=prose(1))
    index.spec["evaluation"] = questions(index, [("remote budget 1", "hr/a.md")])
    first = index.sync()
    code = (
        "import sys; from llmops_services.indexing.program import main; "
        "result = main(sys.argv[1]); print(result.model_dump_json()); sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(index.configure())], check=True, timeout=60, capture_output=True, text=True
    )
    again = IndexingResult.model_validate_json(ran.stdout)
    assert counts(again) == {"unchanged": 1}
    assert again.serving == first.serving
    assert again.serving is not None
    assert again.serving.evaluation is not None


def questions(index: Index, labelled: list[tuple[str, str]], gate: str | None = None) -> dict[str, Any]:
    file = index.config.with_name("questions.jsonl")
    lines = [{"question": text, "documents": [{"path": path}], "answerable": True} for text, path in labelled]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return {"questions": {"uri": f"file://{file}"}, **({"gate": {"recallAt5": gate}} if gate else {})}


def test_another_fingerprint_is_built_beside_and_swapped_in_when_its_gate_passes(index: Index) -> None:
    index.write(**{f"d{number}": prose(number, 3) for number in range(8)})
    asked = [(f"Document {number}", f"hr/d{number}.md") for number in range(8)]
    first = index.sync(evaluation=questions(index, asked, gate="0.5"))
    assert first.gate_passed is True
    assert first.serving is not None
    old = first.serving.collection

    # nobody finds a document that is not there: the gate keeps the new version from being served
    wrong = index.sync(
        chunking={"maxTokens": 48, "overlapTokens": 8},
        evaluation=questions(index, [("Document 1", "hr/gone.md")], gate="0.5"),
    )
    assert wrong.gate_passed is False
    assert "below the 0.5" in wrong.gate_message
    assert wrong.serving == first.serving
    assert wrong.candidate is not None
    assert wrong.candidate.evaluation is not None
    assert wrong.candidate.evaluation.recall_at5 == "0.0000"
    assert index.collections() == {old, wrong.candidate.collection}
    assert vectors.alias_target(index.client.get_aliases(), index.alias) == old

    right = index.sync(evaluation=questions(index, asked, gate="0.5"))
    assert right.gate_passed is True
    assert right.candidate is None
    assert right.counts.embedded == 0  # what the candidate held is what is now served
    assert right.serving is not None
    assert right.serving.collection == wrong.candidate.collection

    back = index.sync(chunking={"maxTokens": 64, "overlapTokens": 8})
    assert back.serving is not None
    assert (back.serving.collection, back.counts.embedded) == (old, 0)


def test_a_served_version_is_updated_in_place_and_says_when_it_no_longer_passes(index: Index) -> None:
    index.write(a=prose(1, 3), b=prose(2, 3))
    first = index.sync(evaluation=questions(index, [("Document 1", "hr/a.md"), ("Document 2", "hr/b.md")], gate="0.9"))
    assert first.gate_passed is True
    index.write(b=None)
    after = index.sync()
    assert after.gate_passed is False
    assert "updated in place" in after.gate_message
    assert after.serving is not None
    assert after.serving.documents == 1
    assert after.candidate is None


async def test_the_index_describes_itself(index: Index, tiny_embedding_model: Path) -> None:
    index.write(a=prose(1))
    result = index.sync(embedding={**index.spec["embedding"], "queryPrefix": "query: "})
    client = vectors.connect_async()
    try:
        found = await resolve_alias(client, index.alias)
        assert await resolve_alias(client, "team.nobody") is None
    finally:
        await client.close()
    assert found is not None
    collection, metadata = found
    assert result.serving is not None
    assert collection == result.serving.collection
    assert metadata.embedding.model == f"file://{tiny_embedding_model}"
    assert (metadata.embedding.query_prefix, metadata.embedding.dimensions, metadata.sparse) == ("query: ", 64, True)
    assert metadata.embedding.digest == result.embedding_model_digest
    assert metadata.index == f"team/{index.name}"


def test_old_versions_are_dropped_but_never_the_served_one_nor_another_objects(
    index: Index, make_index: Callable[..., Index]
) -> None:
    neighbour = make_index("-2")
    neighbour.write(a=prose(1))
    neighbour.sync()
    index.write(a=prose(1))
    made = []
    for size in (40, 48, 56, 64):
        result = index.sync(chunking={"maxTokens": size, "overlapTokens": 0}, retainVersions=2)
        assert result.serving is not None
        made.append(result.serving.collection)
        metadata = metadata_of(index.client.get_collection(made[-1]))
        assert metadata is not None
        # the clock of the metadata counts seconds: make them differ
        moved = metadata.model_copy(update={"created_at": f"2026-01-01T00:00:{size}Z"})
        index.client.update_collection(made[-1], metadata={vectors.METADATA: moved.dump()})
    assert index.collections() == set(made[-2:])

    main(str(index.configure(action="Drop")))
    assert index.collections() == set()
    assert vectors.alias_target(index.client.get_aliases(), index.alias) is None
    assert len(neighbour.collections()) == 1
    main(str(index.configure(action="Drop")))  # nothing to do is done


def test_what_another_object_of_the_same_name_left_is_taken_over(index: Index) -> None:
    index.write(a=prose(1))
    index.sync()
    index.uid = "another-uid"
    assert counts(index.sync()) == {"unchanged": 1}
    main(str(index.configure(action="Drop")))
    assert index.collections() == set()


def test_a_bad_document_stops_only_itself_and_none_at_all_stops_the_sync(index: Index) -> None:
    index.write(a=prose(1), b=prose(2))
    index.sync()
    (index.documents / "b.md").write_bytes(b"\xff\xfe")
    result = index.sync()
    assert (result.rejected_count, result.rejected[0].path) == (1, "hr/b.md")
    assert index.texts().keys() == {"a.md"}

    index.write(a=None)
    with pytest.raises(UserError, match=r"all 1 documents .* were rejected: hr/b.md is not UTF-8"):
        index.sync()
    index.write(b=None)
    with pytest.raises(UserError, match=r"no file of the sources is included: hr \(file://.*include \*\*/\*.md"):
        index.sync()
    assert index.texts().keys() == {"a.md"}  # an empty folder is more likely a mistake than a wish


def test_what_is_wrong_is_said_before_anything_is_written(index: Index) -> None:
    index.write(a=prose(1))
    with pytest.raises(UserError, match="reads only 128 tokens"):
        index.sync(chunking={"maxTokens": 129})
    with pytest.raises(UserError, match="nowhere"):
        index.sync(chunking={"maxTokens": 64}, evaluation={"questions": {"uri": "file:///nowhere.jsonl"}})
    assert index.collections() == set()


class Killed(BaseException):
    """The end of the program, wherever it happens to be."""


WRITES = (
    "upsert", "delete", "create_collection", "create_payload_index", "update_collection", "update_collection_aliases",
    "delete_collection",
)  # fmt: skip


def kill_before_write(patch: pytest.MonkeyPatch, number: int) -> Callable[[], bool]:
    """Let the program end just before its write number `number`, from 1. The result tells whether it came so far."""
    lock, made = threading.Lock(), [0]

    def hook(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with lock:
                made[0] += 1
                if made[0] >= number:
                    raise Killed
            return method(*args, **kwargs)

        return call

    for name in WRITES:
        patch.setattr(QdrantClient, name, hook(getattr(QdrantClient, name)))
    return lambda: made[0] >= number


def payloads(points: dict[str, models.Record]) -> dict[str, Any]:
    return {key: record.payload for key, record in points.items()}


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch, tiny_embedding_model: Path) -> None:
    """Windows of four chunks, so that there are many writes, and a model that is loaded once for all syncs."""
    loaded = Embedder.load(tiny_embedding_model, device="cpu")
    monkeypatch.setattr(program, "_WINDOW_CHUNKS", (4, 4))
    monkeypatch.setattr(Embedder, "load", lambda *_args, **_options: loaded)


@pytest.mark.usefixtures("small_steps")
def test_killed_at_any_write_of_the_first_sync_the_next_one_completes_it(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.write(a=prose(1, 8), b=prose(2, 3))
    index.spec["chunking"] = {"maxTokens": 100, "overlapTokens": 0}
    wanted = None
    for number in range(1, 100):
        with monkeypatch.context() as patch:
            came_so_far = kill_before_write(patch, number)
            with suppress(Killed):
                index.sync()
        if not came_so_far():
            break
        assert vectors.alias_target(index.client.get_aliases(), index.alias) is None  # nothing half is served
        assert index.sync().counts.unchanged in (0, 1, 2)
        wanted = wanted or payloads(index.points())
        assert payloads(index.points()) == wanted
        main(str(index.configure(action="Drop")))
    assert number > 7


@pytest.mark.usefixtures("small_steps")
def test_killed_at_any_write_of_a_change_the_next_sync_ends_the_same(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = None
    for number in range(1, 100):
        index.write(a=prose(1, 8), b=prose(2), c=prose(3, 2), d="# Old")
        index.sync()
        index.write(a=prose(1, 20), b="# New\n\nremote " + prose(2)[12:], c=None, d=None, e=prose(4, 15))
        with monkeypatch.context() as patch:
            came_so_far = kill_before_write(patch, number)
            with suppress(Killed):
                index.sync()
        # whoever searches meanwhile finds the documents that stay, in one state or the other
        assert {"a.md", "b.md"} <= index.texts().keys()
        result = index.sync()
        assert result.serving is not None
        assert (result.serving.documents, result.serving.chunks) == (3, len(index.points()))
        wanted = wanted or payloads(index.points())
        assert payloads(index.points()) == wanted
        index.write(e=None)
        if not came_so_far():
            break
    assert number > 6


def start(index: Index, url: str, *, progress: Path | None = None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, Env.QDRANT_URL: url, "OMP_NUM_THREADS": "1"}
    if progress:
        environment[Env.PROGRESS_FILE] = str(progress)
    return subprocess.Popen([sys.executable, "-m", "llmops_services.indexing", str(index.config)], env=environment)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_kill_9_loses_and_doubles_nothing(index: Index, store: StoreProcess) -> None:
    index.write(**{f"d{number}": prose(number, 30) for number in range(100)})
    index.configure(chunking={"maxTokens": 32, "overlapTokens": 4})

    def points() -> int:
        return sum(index.client.count(name, exact=True).count for name in index.collections())

    process = start(index, store.url)
    try:
        wait_until(lambda: points() > 0)
        assert process.poll() is None  # it was in the middle of its work
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    there = points()
    assert vectors.alias_target(index.client.get_aliases(), index.alias) is None
    result = index.sync()
    assert result.counts.embedded < len(index.points())
    assert result.counts.embedded >= len(index.points()) - there
    assert counts(index.sync()) == {"unchanged": 100}
    assert len(index.texts()) == 100


def test_a_store_that_is_gone_for_a_while_only_delays(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.write(**{f"d{number}": prose(number, 30) for number in range(40)})
    index.configure(chunking={"maxTokens": 32, "overlapTokens": 4})
    folder = tmp_path / "own-store"
    store = StoreProcess(folder)
    port = int(store.url.rpartition(":")[2])
    monkeypatch.setenv(Env.QDRANT_URL, store.url)
    index.client = QdrantClient(url=store.url, check_compatibility=False, timeout=30)
    results: list[IndexingResult] = []
    worker = threading.Thread(target=lambda: results.append(index.sync()))
    worker.start()
    again: subprocess.Popen[str] | None = None
    try:
        wait_until(lambda: bool(index.collections()))
        store.kill()
        time.sleep(1)
        assert worker.is_alive()
        (folder / "again.json").write_text(json.dumps({"port": port, "folder": str(folder / "store")}))
        again = subprocess.Popen(
            [sys.executable, "-m", "llmops_services.vectorstore", str(folder / "again.json")],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        worker.join(60)
        assert len(results) == 1
        assert results[0].serving is not None
        assert results[0].serving.chunks == len(index.points())
    finally:
        if again:
            again.terminate()
            again.wait(30)
            assert again.stdout is not None
            again.stdout.close()
        worker.join(90)
        index.client.close()


def test_a_store_that_stays_away_is_named(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.write(a=prose(1))
    monkeypatch.setenv(Env.QDRANT_URL, "http://127.0.0.1:9")
    monkeypatch.setattr(vectors.patiently, "__kwdefaults__", {"seconds": 0.5})
    with pytest.raises(TryAgain, match=r"http://127\.0\.0\.1:9 has not answered as it should for 0\.5 s"):
        index.sync()
    monkeypatch.setenv(Env.QDRANT_URL, "")
    with pytest.raises(UserError, match="QDRANT_URL"):
        index.sync()


def test_ray_data_actors_give_the_same_points(index: Index, store: StoreProcess, tmp_path: Path) -> None:
    index.write(**{f"d{number}": prose(number, 6) for number in range(30)})
    index.sync(embedding={**index.spec["embedding"], "batchSize": 8, "documentPrefix": "passage: "})
    wanted = index.points()
    index.client.delete_collection(next(iter(index.collections())))
    index.configure(compute={"workers": 2, "resources": {"cpu": "500m"}})
    process = start(index, store.url, progress=tmp_path / "progress.json")
    assert process.wait(120) == 0
    found = index.points()
    assert payloads(found) == payloads(wanted)
    for key, record in found.items():
        assert isinstance(record.vector, dict)
        other = wanted[key].vector
        assert isinstance(other, dict)
        assert np.allclose(record.vector["dense"], other["dense"], atol=1e-5)
        assert record.vector["bm25"] == other["bm25"]
    assert json.loads((tmp_path / "progress.json").read_text())["percent"] == 100
