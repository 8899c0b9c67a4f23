from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmops_api.v1alpha1.embedding_index import IndexSource
from llmops_services.indexing import documents as module
from llmops_services.indexing.documents import Document, Kind, Rejects, list_files, read_documents
from llmops_services.program import TryAgain, UserError


def source(folder: Path, **rest: object) -> IndexSource:
    return IndexSource(name="hr", uri=f"file://{folder}", **rest)  # type: ignore[arg-type]


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(*sources: IndexSource) -> tuple[list[Document], Rejects]:
    rejects = Rejects()
    return [found for found, _ in read_documents(list_files(sources), rejects) if found], rejects


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (("**/*.md",), (), ["a.md", "b/c.md", "b/d/e.md"]),
        (("*.md",), (), ["a.md"]),
        (("b/**",), (), ["b/c.md", "b/d/e.md", "b/f.txt"]),
        (("**/[a-d].md",), (), ["a.md", "b/c.md"]),
        (("**/[!a].md",), (), ["b/c.md", "b/d/e.md"]),
        (("**/?.md", "**/*.txt"), ("b/*",), ["a.md", "b/d/e.md"]),
        (("./a.md",), (), ["a.md"]),
        (("**/*.md",), ("**/d/**",), ["a.md", "b/c.md"]),
    ],
)
def test_globs_are_relative_to_the_source(
    tmp_path: Path, include: tuple[str, ...], exclude: tuple[str, ...], expected: list[str]
) -> None:
    write(tmp_path, dict.fromkeys(["a.md", "b/c.md", "b/d/e.md", "b/f.txt", ".git/x.md", "b/.hidden.md"], "text"))
    assert [file.path for file in list_files([source(tmp_path, include=include, exclude=exclude)])] == expected


def test_a_single_file_is_a_source_whatever_it_is_called(tmp_path: Path) -> None:
    write(tmp_path, {"faq.rst": "text"})
    (found,), _ = read(source(tmp_path / "faq.rst"))
    assert (found.path, found.uri, found.kind) == ("faq.rst", f"file://{tmp_path}/faq.rst", Kind.PLAIN)


def test_a_missing_folder_is_named_with_its_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source hr: .*nowhere"):
        list_files([source(tmp_path / "nowhere")])


def test_line_ends_and_a_byte_order_mark_do_not_matter_but_every_byte_counts_for_the_hash(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": b"\xef\xbb\xbf# A\r\nb\rc\n", "b.md": "# A\nb\nc\n"})
    (first, second), _ = read(source(tmp_path))
    assert first.text == second.text == "# A\nb\nc\n"
    assert first.kind is Kind.MARKDOWN
    assert first.content_hash != second.content_hash


def test_what_is_no_document_is_rejected_with_its_reason_and_stops_nothing(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"a.md": "fine", "b.md": b"one\ntwo \xff", "c.md": " \n", "d.txt": "a\0b", "e.jsonl": "", "z.md": "fine"},
    )
    (tmp_path / "f.md").symlink_to(tmp_path / "gone.md")
    (tmp_path / "g.jsonl").symlink_to(tmp_path / "g.jsonl")
    found, rejects = read(source(tmp_path))
    assert [document.path for document in found] == ["a.md", "z.md"]
    assert rejects.count == 6
    reasons = {one.path: one.reason for one in rejects.first}
    assert "not UTF-8 (line 2: byte 0xff)" in reasons["hr/b.md"]
    assert "empty" in reasons["hr/c.md"]
    assert "NUL" in reasons["hr/d.txt"]
    assert "empty" in reasons["hr/e.jsonl"]
    assert "No such file" in reasons["hr/f.md"]
    assert "Too many levels of symbolic links" in reasons["hr/g.jsonl"]


def test_a_folder_that_may_not_be_listed_is_an_error_unless_it_is_excluded(own_folder: Path) -> None:
    write(own_folder, {"a.md": "a", "b/c/d.md": "d", "lost+found/e.md": "e"})
    (own_folder / "b/c").chmod(0)
    (own_folder / "lost+found").chmod(0)  # what the root of many a volume has
    with pytest.raises(UserError) as caught:
        list_files([source(own_folder)])
    assert str(caught.value) == (
        f"source hr: {own_folder}/b/c cannot be read (Permission denied): allow it, or add b/c/** to exclude; "
        "what is indexed already was kept"
    )
    assert caught.value.reason == "FileUnreadable"
    assert [file.path for file in list_files([source(own_folder, exclude=("b/c/**",))])] == ["a.md"]
    (own_folder / "b/c").chmod(0o700)


def test_a_folder_that_cannot_be_listed_now_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.md": "a", "b/c.md": "c"})
    scandir = os.scandir

    def broken(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("/b"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(TryAgain, match=f"source hr: {tmp_path}/b cannot be read .*whether the disk or server"):
        list_files([source(tmp_path)])


def test_a_folder_that_may_be_listed_and_not_entered_is_an_error(own_folder: Path) -> None:
    write(own_folder, {"a.md": "a", "b/c.md": "c"})
    (own_folder / "b").chmod(0o400)
    with pytest.raises(UserError, match=f"source hr: {own_folder}/b/c.md cannot be read .* or add b/c.md to exclude"):
        list_files([source(own_folder)])
    with pytest.raises(UserError, match=r"source hr: .* may not be read, because a folder above it"):
        list_files([source(own_folder / "b" / "c.md")])
    (own_folder / "b").chmod(0o700)


@pytest.mark.parametrize("name", ["b.md", "b.jsonl"])
def test_a_file_that_may_not_be_read_is_an_error(own_folder: Path, name: str) -> None:
    write(own_folder, {"a.md": "a", name: '{"text": "b"}'})
    (own_folder / name).chmod(0)
    with pytest.raises(UserError, match=f"source hr: {own_folder}/{name} cannot be read .* or add {name} to exclude"):
        read(source(own_folder))


@pytest.mark.parametrize("name", ["b.md", "b.jsonl"])
def test_a_file_that_cannot_be_read_now_is_tried_again(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"a.md": "a"})
    (tmp_path / name).symlink_to("/proc/self/mem")  # to read its first byte is EIO
    with pytest.raises(TryAgain, match=f"source hr: {tmp_path}/{name} cannot be read .*Input/output error"):
        read(source(tmp_path))


def test_a_name_that_is_not_unicode_is_rejected(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/b\xff.md", "wb") as file:
        file.write(b"text")
    found, rejects = read(source(tmp_path))
    assert not found
    assert "name" in rejects.first[0].reason


def test_only_the_first_rejects_are_kept_but_all_are_counted(tmp_path: Path) -> None:
    write(tmp_path, {f"{number:03}.md": "" for number in range(40)} | {"ok.md": "fine"})
    _, rejects = read(source(tmp_path))
    assert (rejects.count, len(rejects.first)) == (40, 10)
    assert rejects.first[0].path == "hr/000.md"


def test_every_line_of_a_jsonl_file_is_a_document(tmp_path: Path) -> None:
    lines = [
        {"text": "One.", "title": "First", "id": "x", "metadata": {"team": "b"}},
        {"text": "Two.\r\nMore."},
    ]
    write(tmp_path, {"faq.jsonl": "\n\n".join(json.dumps(one) for one in lines) + "\n"})
    (first, second), _ = read(source(tmp_path, metadata={"area": "hr", "team": "a"}))
    assert (first.path, first.title, first.line, first.metadata) == (
        "faq.jsonl#x",
        "First",
        1,
        {"area": "hr", "team": "b"},
    )
    assert (second.path, second.text, second.line) == ("faq.jsonl#L3", "Two.\nMore.", 3)
    assert first.uri == f"file://{tmp_path}/faq.jsonl#L1"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 has no text"),
        ('{"text": " "}', "line 2 has no text"),
        ('{"text": "a", "metadata": 1}', "line 2 has a wrong metadata: write an object"),
        ('{"text": "a", "title": 1}', "line 2 has a wrong title: write a string"),
        ('{"text": "a", "id": "x"}', "line 2 has the id 'x' of line 1"),
        ('{"text": "a", "metadata": {"a": NaN}}', "line 2 is not JSON"),
        ('{"text": "a", "metadata": {"a": 9223372036854775808}}', "line 2 has metadata that is nested"),
        ('{"text": "a", "metadata": ' + '{"a":' * 9 + "1" + "}" * 9 + "}", "line 2 has metadata that is nested"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"text": "\\ud800"}', "line 2 holds what is not Unicode text"),
    ],
)
def test_a_bad_line_names_itself_and_stops_only_itself(tmp_path: Path, line: str, reason: str) -> None:
    write(tmp_path, {"faq.jsonl": f'{{"text": "a", "id": "x"}}\n{line}\n{{"text": "b"}}\n'})
    found, rejects = read(source(tmp_path))
    assert [document.text for document in found] == ["a", "b"]
    assert rejects.count == 1
    assert rejects.first[0].path == "hr/faq.jsonl"
    assert rejects.first[0].reason.startswith(reason)


def test_what_is_too_large_is_rejected_without_being_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    write(tmp_path, {"a.md": "a" * 101, "b.jsonl": '{"text": "' + "b" * 500 + '"}\n{"text": "after"}\n'})
    found, rejects = read(source(tmp_path))
    assert [document.text for document in found] == ["after"]
    assert [one.path for one in rejects.first] == ["hr/a.md", "hr/b.jsonl"]


def test_a_document_is_itself_by_its_place_and_changes_with_content_or_metadata(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "one"})
    (before,), _ = read(source(tmp_path))
    (tagged,), _ = read(source(tmp_path, metadata={"area": "hr"}))
    write(tmp_path, {"a.md": "two"})
    (after,), _ = read(source(tmp_path))
    assert before.id == tagged.id == after.id
    assert len({before.document_hash, tagged.document_hash, after.document_hash}) == 3
    assert before.content_hash == tagged.content_hash
