"""The indexing program against the embedded vector store, each a real process; the embedding model is real but tiny."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from index_program import Index, counts, payloads, prose, questions, start

from llmops_api.programs import Env, ExitCode, Failure, IndexingConfig, IndexingResult
from llmops_services import vectors
from llmops_services.indexing.program import Indexing
from llmops_services.program import TryAgain, UserError, load_config
from llmops_services.vectors import resolve_alias
from llmops_services.vectorstore.process import StoreProcess


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
    assert first.serving.updated_at
    assert changed.serving.updated_at
    assert first.serving.updated_at < changed.serving.updated_at


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
    again = IndexingResult.model_validate_json(ran.stdout.splitlines()[-1])  # after what it says of its progress
    assert counts(again) == {"unchanged": 1}
    assert again.serving == first.serving
    assert again.serving is not None
    assert again.serving.evaluation is not None


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
    with pytest.raises(UserError, match=r"no file any more: hr \(file://.*include \*\*/\*.md"):
        index.sync()
    assert index.texts().keys() == {"a.md"}  # an empty folder is more likely a mistake than a wish


def test_an_index_that_never_had_a_document_says_where_it_looked(index: Index) -> None:
    with pytest.raises(UserError, match=r"no file of the sources is included: hr \(file://.*include \*\*/\*.md"):
        index.sync()


def test_a_source_that_had_documents_and_has_no_file_is_refused_until_it_is_taken_out(index: Index) -> None:
    mount = mounted(index)
    (mount / "b.md").unlink()
    kept = "these sources have no file any more: it .*what is indexed already was kept.*take them out of spec.sources"
    with pytest.raises(UserError, match=kept):
        index.sync()
    with pytest.raises(UserError, match=kept):  # a version of its own would lack them just so
        index.sync(chunking={"maxTokens": 48, "overlapTokens": 8})
    assert index.texts().keys() == {"a.md", "b.md"}
    index.sync(sources=[index.spec["sources"][0], {"name": "new", "uri": f"file://{mount}"}])
    assert index.texts().keys() == {"a.md"}


@pytest.mark.parametrize("version", ["in place", "new"])
def test_a_mount_that_goes_while_it_is_read_keeps_what_is_indexed_of_it(index: Index, version: str) -> None:
    mount = mounted(index)
    config = index.configure(**({"chunking": {"maxTokens": 48, "overlapTokens": 8}} if version == "new" else {}))
    listed = Indexing(load_config(IndexingConfig, str(config)), index.client)
    mount.rename(mount.with_name("elsewhere"))
    with pytest.raises(UserError, match=r"no file any more: it .*what is indexed already was kept"):
        listed.run()
    assert index.texts().keys() == {"a.md", "b.md"}


def mounted(index: Index) -> Path:
    """A folder that is the index's second source, called `it`, with a document that is indexed."""
    index.write(a=prose(1))
    mount = index.documents.with_name("mount")
    mount.mkdir()
    (mount / "b.md").write_text(prose(2))
    index.sync(sources=[*index.spec["sources"], {"name": "it", "uri": f"file://{mount}"}])
    return mount


@pytest.mark.parametrize("name", ["b.md", "b.jsonl"])
def test_a_document_that_cannot_be_read_now_stays_as_it_is_indexed(index: Index, name: str) -> None:
    index.write(a=prose(1))
    file = index.documents / name
    file.write_text('{"text": "leave", "id": 1}\n{"text": "budget", "id": 2}\n')
    index.sync()
    before = index.points()
    file.unlink()
    file.symlink_to("/proc/self/mem")  # to read its first byte is EIO
    with pytest.raises(TryAgain, match=f"source hr: .*{name} cannot be read .*what is indexed already was kept"):
        index.sync()
    assert payloads(index.points()) == payloads(before)


def test_chunks_that_are_longer_than_the_model_reads_are_the_users_mistake(
    index: Index, store: StoreProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(Env.RESULT_FILE, str(tmp_path / "result.json"))
    index.write(a=prose(1))
    index.configure(chunking={"maxTokens": 129})
    assert start(index, store.url).wait(60) == ExitCode.USER_ERROR
    told = Failure.model_validate_json((tmp_path / "result.json").read_text())
    assert "reads only 128 tokens" in told.message
    assert "chunking.maxTokens" in told.message
    assert index.collections() == set()


def test_what_is_wrong_is_said_before_anything_is_written(index: Index) -> None:
    index.write(a=prose(1))
    with pytest.raises(UserError, match="nowhere"):
        index.sync(chunking={"maxTokens": 64}, evaluation={"questions": {"uri": "file:///nowhere.jsonl"}})
    assert index.collections() == set()
