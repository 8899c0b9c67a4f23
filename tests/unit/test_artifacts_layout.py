"""The layout in which `llmops push` stores files, and in which the programs find them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llmops_api.artifacts import (
    Tree,
    TreeFile,
    artifact_uri,
    blob_path,
    parse_artifact_uri,
    sha256_of,
    tree_path,
)

EMPTY = sha256_of(b"")


def file(path: str) -> TreeFile:
    return TreeFile(path=path, sha256=EMPTY, size=0)


def test_a_tree_is_the_same_in_whatever_order_its_files_come() -> None:
    one, other = Tree.of([file("a/x.md"), file("a/b.md")]), Tree.of([file("a/b.md"), file("a/x.md")])
    assert one.to_bytes() == other.to_bytes()
    assert Tree.model_validate_json(one.to_bytes()) == one


def test_the_stored_bytes_stay_what_they_are() -> None:
    """Another layout under the same path would make every push of a release upload everything again."""
    assert Tree.of([file("docs/é.md")]).to_bytes().decode() == (
        '{"files":[{"path":"docs/é.md","sha256":"' + EMPTY + '","size":0}]}'
    )
    assert blob_path(EMPTY) == f"llmops/blobs/e3/{EMPTY}"
    assert tree_path(EMPTY) == f"llmops/trees/{EMPTY}"


def test_a_name_is_a_file_or_a_folder_and_never_a_part_of_one() -> None:
    tree = Tree.of([file("docs/a.md"), file("docs/sub/b.md"), file("docs2/c.md")])
    assert [f.path for f in tree.below("docs")] == ["docs/a.md", "docs/sub/b.md"]
    assert [f.path for f in tree.below("docs/a.md")] == ["docs/a.md"]
    assert tree.below("doc") == ()


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "a\\b", ".", "a/", "a/./b", ""])
def test_a_path_that_leads_out_of_its_folder_is_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        file(path)


@pytest.mark.parametrize("name", ["train.jsonl", "docs", "a folder/with é & 100%.md"])
def test_a_uri_says_what_it_was_made_from(name: str) -> None:
    assert parse_artifact_uri(artifact_uri(EMPTY, name)) == (EMPTY, name)


@pytest.mark.parametrize(
    "uri",
    [
        "artifact://abc/x",
        f"artifact://{EMPTY}",
        f"artifact://{EMPTY}/",
        f"artifact://{EMPTY}/../x",
        f"file://{EMPTY}/x",
    ],
)
def test_another_uri_is_refused_with_what_to_write(uri: str) -> None:
    with pytest.raises(ValueError, match="llmops push"):
        parse_artifact_uri(uri)
