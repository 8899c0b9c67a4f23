"""`describe`, `logs` and `events`: what a person reads who wants to know why."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from cli_objects import CONDITION, Llmops, rows, set_status

from llmops_operator.backends.local.store import SqliteStore


def write_program(tmp_path: Path, workload: str, role: str, key: tuple[str, str, str], log: str) -> None:
    """What the backend keeps of a workload."""
    folder = tmp_path / "home" / "workloads" / "default" / workload
    for name in ("log", "run"):
        (folder / "0" / name).mkdir(parents=True)
    owner = dict(zip(("kind", "namespace", "name"), key, strict=True))
    (folder / "workload.json").write_text(json.dumps({"owner": owner, "workload": {"role": role}}))
    (folder / "0" / "run" / "launch.json").write_text("{}")
    (folder / "0" / "log" / "out.log").write_text(log)


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


def test_events_are_listed_the_latest_last(applied: Llmops, store: SqliteStore) -> None:
    assert applied("events")[2] == "No events found.\n"
    for name, kind in (("assistant", "TrainingJob"), ("handbook", "EmbeddingIndex")):
        asyncio.run(
            store.record_event((kind, "default", name), type_="Normal", reason="Started", message=f"{name} began")
        )
    assert [row["OBJECT"] for row in rows(applied("events")[1])] == ["trainingjob/assistant", "embeddingindex/handbook"]
    assert [row["MESSAGE"] for row in rows(applied("events", "--for", "ei/handbook")[1])] == ["handbook began"]
    assert applied("events", "-n", "other")[2] == "No events found.\n"
