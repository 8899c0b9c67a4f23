"""`get`: tables, other outputs, selectors and namespaces."""

from __future__ import annotations

import fcntl
from pathlib import Path

import yaml
from cli_objects import CONDITION, Llmops, rows, set_status

from llmops_operator.backends.local.store import SqliteStore


def test_get_shows_what_a_person_needs_of_each_kind(applied: Llmops, store: SqliteStore) -> None:
    progress = {"doing": "training", "step": 10, "total": 40, "percent": 25, "loss": "1.25"}
    set_status(store, "TrainingJob", "assistant", {"phase": "Training", "progress": progress})
    version = {"collection": "default.handbook.0123456789", "fingerprint": "0123456789abcdef"}
    version["evaluation"] = {"questions": 65, "recallAt5": "0.91", "mrr": "0.8"}  # type: ignore[assignment]
    set_status(
        store, "EmbeddingIndex", "handbook", {"phase": "Ready", "documents": 64, "chunks": 512, "version": version}
    )
    url = "http://127.0.0.1:1234"
    model = {"name": "assistant-v3", "version": "3"}
    set_status(store, "RagService", "chat", {"phase": "Ready", "readyReplicas": 1, "url": url, "model": model})
    (job,) = rows(applied("get", "tj")[1])
    assert (job["NAME"], job["PHASE"], job["METHOD"]) == ("assistant", "Training", "SFT")
    assert (job["PROGRESS"], job["LOSS"], job["MODEL"]) == ("25% (10/40)", "1.25", "-")
    (index,) = rows(applied("get", "embeddingindexes", "handbook")[1])
    assert (index["DOCUMENTS"], index["CHUNKS"], index["RECALL@5"]) == ("64", "512", "0.91")
    assert index["VERSION"] == "0123456789"
    (service,) = rows(applied("get", "rag/chat")[1])
    assert (service["INDEXES"], service["READY"], service["URL"]) == ("handbook", "1/1", url)


def test_get_shows_the_scores_and_the_version_of_a_finished_job(applied: Llmops, store: SqliteStore) -> None:
    scores = {"examples": 9, "loss": "0.75", "perplexity": "2.1", "tokenF1": "0.5"}
    table = {"domain": scores}
    evaluation = {"before": table, "after": table, "gatePassed": True, "gateMessage": "passed"}
    model = {"name": "assistant", "version": "3", "adapter": True}
    set_status(store, "TrainingJob", "assistant", {"phase": "Succeeded", "evaluation": evaluation, "model": model})
    (job,) = rows(applied("get", "tj")[1])
    assert (job["LOSS"], job["MODEL"]) == ("0.75", "assistant/3")


def test_get_says_when_nobody_acts_on_what_it_shows(applied: Llmops, tmp_path: Path) -> None:
    assert "`llmops up` does not run" in applied("get")[2]
    assert applied("get", "-o", "json")[2] == ""
    with (tmp_path / "home" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert applied("get")[2] == ""


def test_get_without_words_shows_everything_with_kinds_in_the_names(applied: Llmops) -> None:
    code, out, _ = applied("get")
    assert code == 0
    blocks = [rows(block) for block in out.strip().split("\n\n")]
    assert [[row["NAME"] for row in block] for block in blocks] == [
        ["trainingjob.llmops.dev/assistant"],
        ["embeddingindex.llmops.dev/handbook"],
        ["ragservice.llmops.dev/chat"],
    ]


def test_get_wide_adds_columns_and_the_reason(applied: Llmops, store: SqliteStore) -> None:
    waits = {**CONDITION, "type": "Ready", "status": "False", "reason": "Waiting", "message": "waits for it"}
    set_status(store, "RagService", "chat", {"phase": "Pending", "conditions": [waits]})
    (service,) = rows(applied("get", "rag", "-o", "wide")[1])
    assert service["MESSAGE"] == "waits for it"
    assert service["BASE"] == "hf://organisation/model"


def test_what_get_prints_as_yaml_can_be_applied_again(applied: Llmops, tmp_path: Path) -> None:
    _, out, _ = applied("get", "all", "-o", "yaml")
    assert [item["kind"] for item in yaml.safe_load(out)["items"]] == ["TrainingJob", "EmbeddingIndex", "RagService"]
    (tmp_path / "again.yaml").write_text(out)
    code, said, err = applied("apply", "-f", str(tmp_path / "again.yaml"))
    assert code == 0, err
    assert all(line.endswith(" unchanged") for line in said.splitlines())


def test_get_names_and_selectors(applied: Llmops) -> None:
    everything = [
        "trainingjob.llmops.dev/assistant",
        "embeddingindex.llmops.dev/handbook",
        "ragservice.llmops.dev/chat",
    ]
    job, index, service = everything
    for selector, expected in {
        "team=hr": [job, index],
        "team==hr,stage!=test": [index],
        "!team": [service],
        "stage": [job],
        "team in (it, hr),stage": [job],
        "stage notin (test)": [index, service],
    }.items():
        assert applied("get", "-o", "name", "-l", selector)[1].splitlines() == expected, selector


def test_namespaces_keep_objects_apart(applied: Llmops, tmp_path: Path) -> None:
    assert applied("get", "-n", "other") == (0, "", "No resources found in other namespace.\n")
    applied("apply", "--namespace=other", "-f", str(tmp_path / "manifests.yaml"))
    assert len(rows(applied("get", "tj", "-n", "other")[1])) == 1
    assert [row["NAMESPACE"] for row in rows(applied("get", "tj", "-A")[1])] == ["default", "other"]
