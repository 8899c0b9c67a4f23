"""`apply` and `delete`: what is stored, what is refused, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

from cli_objects import MANIFESTS, Llmops


def test_apply_says_what_became_of_each_object_and_that_nobody_acts(llmops: Llmops, tmp_path: Path) -> None:
    file = str(tmp_path / "manifests.yaml")
    code, out, err = llmops("apply", "-f", file)
    assert code == 0
    assert out.splitlines() == [
        "trainingjob.llmops.dev/assistant created",
        "embeddingindex.llmops.dev/handbook created",
        "ragservice.llmops.dev/chat created",
    ]
    assert err.splitlines()[-1] == "saved; start `llmops up` to act on it"
    Path(file).write_text(MANIFESTS.replace("name: chat}", "name: chat, labels: {new: label}}"))
    _, out, _ = llmops("apply", "-f", file)
    assert [line.split()[1] for line in out.splitlines()] == ["unchanged", "unchanged", "configured"]


def test_apply_stores_nothing_when_one_object_is_wrong(llmops: Llmops, tmp_path: Path) -> None:
    (tmp_path / "manifests.yaml").write_text(MANIFESTS.replace("indexes:", "indices:"))
    code, out, err = llmops("apply", "-f", str(tmp_path / "manifests.yaml"))
    assert (code, out) == (1, "")
    assert "spec.indices: unknown field: did you mean indexes?" in err
    assert not (tmp_path / "home").exists()


def test_apply_refuses_a_change_that_would_be_another_run_and_says_where(applied: Llmops, tmp_path: Path) -> None:
    file = tmp_path / "manifests.yaml"
    file.write_text(MANIFESTS.replace("maxSteps: 40", "maxSteps: 41").replace("name: chat}", "name: chat-2}"))
    code, out, err = applied("apply", "-f", str(file))
    assert code == 1
    assert f"error: {file}:4: spec" in err
    assert "ragservice.llmops.dev/chat-2 created" in out, (
        "what is wrong with one object keeps no other from being saved"
    )


def test_apply_warns_of_missing_data_and_saves(llmops: Llmops, tmp_path: Path) -> None:
    (tmp_path / "documents" / "leave.md").unlink()
    code, out, err = llmops("apply", "-f", str(tmp_path / "manifests.yaml"))
    assert code == 0
    assert "embeddingindex.llmops.dev/handbook created" in out
    assert "warning: " in err
    assert "holds no file that matches" in err


def test_relative_files_are_stored_as_absolute_ones(applied: Llmops, tmp_path: Path) -> None:
    _, out, _ = applied("get", "ei/handbook", "-o", "json")
    assert json.loads(out)["spec"]["sources"][0]["uri"] == f"file://{tmp_path.resolve()}/documents"


def test_delete_takes_words_or_manifests(applied: Llmops, tmp_path: Path) -> None:
    assert applied("delete", "rag", "chat")[1] == "ragservice.llmops.dev/chat deleted\n"
    code, out, err = applied("delete", "-f", str(tmp_path / "manifests.yaml"))
    assert code == 1
    assert "ragservice.llmops.dev/chat not found" in err
    assert set(out.splitlines()) == {
        "trainingjob.llmops.dev/assistant deleted",
        "embeddingindex.llmops.dev/handbook deleted",
    }
    assert applied("delete", "rag/chat", "--ignore-not-found")[0] == 0
