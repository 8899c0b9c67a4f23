"""apply, get, describe, wait, events and delete on a store in a folder of its own, without a daemon."""

from __future__ import annotations

import asyncio
import fcntl
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.store import SqliteStore
from llmops_operator.cli.app import execute

MANIFESTS = """\
apiVersion: llmops.dev/v1alpha1
kind: TrainingJob
metadata: {name: assistant, labels: {team: hr, stage: test}}
spec:
  baseModel: {uri: hf://organisation/model}
  data: {train: {uri: pkg://yaml/__init__.py}}
  hyperparameters: {maxSteps: 40}
  output: {model: assistant}
---
apiVersion: llmops.dev/v1alpha1
kind: EmbeddingIndex
metadata: {name: handbook, labels: {team: hr}}
spec:
  sources: [{name: hr, uri: file://./documents}]
  embedding: {model: {uri: hf://organisation/embedder}}
---
apiVersion: llmops.dev/v1alpha1
kind: RagService
metadata: {name: chat}
spec:
  model: {base: {uri: hf://organisation/model}, adapter: {trainingJobRef: {name: assistant}}}
  indexes: [{indexRef: {name: handbook}}]
"""
Llmops = Callable[..., tuple[int, str, str]]


@pytest.fixture
def llmops(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Llmops:
    """Runs a command line on a home in `tmp_path`; gives exit code, stdout and stderr."""
    monkeypatch.setenv("LLMOPS_HOME", str(tmp_path / "home"))
    (tmp_path / "manifests.yaml").write_text(MANIFESTS)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "leave.md").write_text("# Leave\n")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = execute(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def applied(llmops: Llmops, tmp_path: Path) -> Llmops:
    code, _, err = llmops("apply", "-f", str(tmp_path / "manifests.yaml"))
    assert code == 0, err
    return llmops


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    home = Home.at(tmp_path / "home")
    home.create()
    store = SqliteStore(home.objects)
    yield store
    store.close()


def set_status(store: SqliteStore, kind: str, name: str, status: dict[str, Any]) -> None:
    key = (kind, "default", name)
    item = store.get(key)
    assert item is not None
    asyncio.run(store.write_status(key, status, resource_version=item["metadata"]["resourceVersion"]))


def rows(out: str) -> list[dict[str, str]]:
    """A table as mappings from heading to cell."""
    heads, *lines = [line.split("   ") for line in out.strip().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in (heads, *lines)]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


CONDITION = {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}


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


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["get", "tj", "nothing"], 'trainingjobs.llmops.dev "nothing" not found'),
        (["get", "pods"], 'there is no kind "pods": write one of trainingjobs (tj)'),
        (["get", "tj", "-o", "xml"], 'there is no output "xml": write one of wide, yaml, json, name'),
        (["get", "tj,ei", "assistant"], "a name needs one kind: write tj/assistant"),
        (["get", "-l", "a>b"], '"a>b" is no label selector'),
        (["describe", "rag/nothing"], 'ragservices.llmops.dev "nothing" not found'),
        (["delete", "tj"], "name what to delete: write tj/NAME"),
        (["delete"], "say what to delete"),
        (["delete", "tj", "nothing"], "trainingjob.llmops.dev/nothing not found"),
        (["wait", "tj/assistant", "--for", "Ready"], 'cannot wait for "Ready": write condition=TYPE'),
        (["wait", "tj/assistant", "--for", "delete", "--timeout", "soon"], '"soon" is no length of time'),
        (["logs", "tj/assistant"], "has not started a program yet"),
        (["logs", "tj/nothing"], "trainingjob.llmops.dev/nothing not found"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line_and_exits_1(applied: Llmops, line: list[str], expected: str) -> None:
    code, _, err = applied(*line)
    assert code == 1
    assert err.startswith("error: ")
    assert expected in err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["gte"], "No such command 'gte'"),
        (["get", "--no-such-option"], "No such option: --no-such-option"),
        (["apply"], "Missing option '--filename'"),
        (["wait", "tj/x"], "Missing option '--for'"),
    ],
)
def test_what_cannot_be_asked_exits_2(llmops: Llmops, line: list[str], expected: str) -> None:
    code, _, err = llmops(*line)
    assert code == 2
    assert err.startswith("error: ")
    assert expected in err
    assert "--help" in err


def test_a_home_without_objects_is_said_and_not_made(llmops: Llmops, tmp_path: Path) -> None:
    code, _, err = llmops("get", "--home", str(tmp_path / "elsewhere"))
    assert code == 1
    assert "holds no objects yet: apply a manifest" in err
    assert not (tmp_path / "elsewhere").exists()


def test_describe_shows_conditions_attempts_events_and_logs(
    applied: Llmops, store: SqliteStore, tmp_path: Path
) -> None:
    failed = {**CONDITION, "type": "Trained", "status": "False", "reason": "DataInvalid", "message": "line 17 is wrong"}
    attempt = {
        "number": 1,
        "startTime": "2026-01-01T00:00:00Z",
        "exitCode": 64,
        "reason": "DataInvalid",
        "message": "l 17",
    }
    set_status(store, "TrainingJob", "assistant", {"phase": "Failed", "conditions": [failed], "attempts": [attempt]})
    key = ("TrainingJob", "default", "assistant")
    for _ in range(2):
        asyncio.run(store.record_event(key, type_="Warning", reason="AttemptFailed", message="attempt 1 failed"))
    write_program(tmp_path, "assistant-train-1", "trainer", key, "one\n")
    code, out, _ = applied("describe", "tj", "assistant")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert any(
        line[:3] == ["Trained", "False", "DataInvalid"] and line[-4:] == ["line", "17", "is", "wrong"] for line in lines
    )
    assert any(line[:1] == ["1"] and "64" in line for line in lines)
    assert any(line[:2] == ["Warning", "AttemptFailed"] and "(x2" in line for line in lines)
    assert any(line[:2] == ["assistant-train-1", "trainer"] for line in lines)
    assert "llmops logs tj/assistant" in out


def write_program(tmp_path: Path, workload: str, role: str, key: tuple[str, str, str], log: str) -> None:
    """What the backend keeps of a workload."""
    folder = tmp_path / "home" / "workloads" / "default" / workload
    for name in ("log", "run"):
        (folder / "0" / name).mkdir(parents=True)
    owner = dict(zip(("kind", "namespace", "name"), key, strict=True))
    (folder / "workload.json").write_text(json.dumps({"owner": owner, "workload": {"role": role}}))
    (folder / "0" / "run" / "launch.json").write_text("{}")
    (folder / "0" / "log" / "out.log").write_text(log)


def test_logs_are_of_the_last_attempt_or_of_the_one_before(applied: Llmops, tmp_path: Path) -> None:
    key = ("TrainingJob", "default", "assistant")
    write_program(tmp_path, "assistant-train-1", "trainer", key, "first\n")
    write_program(tmp_path, "assistant-train-2", "trainer", key, "a\nb\nc\n")
    write_program(tmp_path, "other-train-1", "trainer", ("TrainingJob", "default", "other"), "of another\n")
    assert applied("logs", "tj/assistant")[1] == "a\nb\nc\n"
    assert applied("logs", "tj", "assistant", "--tail", "2")[1] == "b\nc\n"
    assert applied("logs", "tj/assistant", "--previous")[1] == "first\n"


def test_logs_of_several_programs_say_whose_line_it_is(applied: Llmops, tmp_path: Path) -> None:
    key = ("RagService", "default", "chat")
    write_program(tmp_path, "chat-engine", "engine", key, "loading\n")
    write_program(tmp_path, "chat-gateway", "gateway", key, "listening\n")
    assert sorted(applied("logs", "rag/chat")[1].splitlines()) == ["engine | loading", "gateway | listening"]
    assert applied("logs", "rag/chat", "--role", "engine")[1] == "loading\n"
    code, _, err = applied("logs", "rag/chat", "--role", "trainer")
    assert code == 1
    assert 'there is no program with the role "trainer": it has ' in err


def test_following_the_log_of_a_program_that_has_ended_ends(applied: Llmops, tmp_path: Path) -> None:
    write_program(tmp_path, "assistant-train-1", "trainer", ("TrainingJob", "default", "assistant"), "a\nb\n")
    assert applied("logs", "-f", "tj/assistant")[1] == "a\nb\n"


def test_wait_returns_when_the_condition_is_met_for_this_generation(
    applied: Llmops, store: SqliteStore, tmp_path: Path
) -> None:
    done = {**CONDITION, "type": "Succeeded", "status": "True", "reason": "Done"}
    set_status(
        store, "TrainingJob", "assistant", {"phase": "Succeeded", "conditions": [{**done, "observedGeneration": 0}]}
    )
    code, _, err = applied("wait", "tj/assistant", "--for=condition=Succeeded", "--timeout=0s")
    assert code == 1
    assert "timed out waiting for condition=Succeeded on trainingjob.llmops.dev/assistant" in err
    timer = threading.Timer(0.3, write_elsewhere, (tmp_path, {"conditions": [done]}))
    timer.start()
    code, out, _ = applied("wait", "tj", "assistant", "--for=condition=succeeded=true", "--timeout=20s")
    timer.join()
    assert (code, out) == (0, "trainingjob.llmops.dev/assistant condition met\n")


def write_elsewhere(tmp_path: Path, status: dict[str, Any]) -> None:
    """What another process does."""
    store = SqliteStore(Home.at(tmp_path / "home").objects)
    set_status(store, "TrainingJob", "assistant", status)
    store.close()


def test_a_wait_that_was_in_vain_tells_what_the_object_says(applied: Llmops, store: SqliteStore) -> None:
    waits = {
        **CONDITION,
        "type": "Ready",
        "status": "False",
        "reason": "Waiting",
        "message": "TrainingJob x is not there",
    }
    set_status(store, "RagService", "chat", {"conditions": [waits]})
    _, _, err = applied("wait", "rag/chat", "--for=condition=Ready", "--timeout=0")
    assert "TrainingJob x is not there" in err


def test_events_are_listed_the_latest_last(applied: Llmops, store: SqliteStore) -> None:
    assert applied("events")[2] == "No events found.\n"
    for name, kind in (("assistant", "TrainingJob"), ("handbook", "EmbeddingIndex")):
        asyncio.run(
            store.record_event((kind, "default", name), type_="Normal", reason="Started", message=f"{name} began")
        )
    assert [row["OBJECT"] for row in rows(applied("events")[1])] == ["trainingjob/assistant", "embeddingindex/handbook"]
    assert [row["MESSAGE"] for row in rows(applied("events", "--for", "ei/handbook")[1])] == ["handbook began"]
    assert applied("events", "-n", "other")[2] == "No events found.\n"


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


def test_delete_does_not_wait_for_a_daemon_that_does_not_run(applied: Llmops, store: SqliteStore) -> None:
    asyncio.run(store.set_finalizer(("EmbeddingIndex", "default", "handbook"), "llmops.dev/collections", present=True))
    code, out, err = applied("delete", "ei/handbook")
    assert (code, out) == (0, "embeddingindex.llmops.dev/handbook is being deleted\n")
    assert "start `llmops up`, which does it" in err
    (row,) = rows(applied("get", "ei")[1])
    assert row["PHASE"] == "Deleting"


def test_delete_waits_for_a_daemon_that_runs(applied: Llmops, store: SqliteStore, tmp_path: Path) -> None:
    key = ("EmbeddingIndex", "default", "handbook")
    asyncio.run(store.set_finalizer(key, "llmops.dev/collections", present=True))
    with (tmp_path / "home" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = applied("delete", "ei/handbook", "--timeout=1s")
        assert code == 1
        assert "timed out waiting for embeddingindex.llmops.dev/handbook to be gone" in err
        timer = threading.Timer(0.3, finish_deletion, (tmp_path, key))
        timer.start()
        code, out, err = applied("delete", "ei/handbook", "--timeout=20s")
        timer.join()
    assert code == 0, err
    assert out.splitlines()[-1] == "embeddingindex.llmops.dev/handbook deleted"


def finish_deletion(tmp_path: Path, key: tuple[str, str, str]) -> None:
    """What the daemon does when everything has been cleaned up."""
    store = SqliteStore(Home.at(tmp_path / "home").objects)
    asyncio.run(store.set_finalizer(key, "llmops.dev/collections", present=False))
    store.close()
