from __future__ import annotations

from pathlib import Path

import pytest

from llmops_api.v1alpha1.embedding_index import IndexGate
from llmops_services.indexing.evaluation import Question, found_at, judge, load_questions, scores
from llmops_services.program import UserError
from llmops_services.retrieval import Hit


def hit(source: str, path: str) -> Hit:
    return Hit("1", 0.5, "c", "text", "title", "", source, path, "file:///x", (1, 2), "d", "h", {})


@pytest.mark.parametrize(
    ("source", "path", "label", "found"),
    [
        ("hr", "leave.md", "hr/leave.md", True),  # a source for each area
        ("handbook", "hr/leave.md", "hr/leave.md", True),  # one source for all
        ("hr", "leave.md", "documents/hr/leave.md", True),  # a longer label
        ("hr", "leave.md", "leave.md", True),
        ("it", "leave.md", "hr/leave.md", False),  # the same name elsewhere
        ("hr", "annual-leave.md", "leave.md", False),  # not a whole name
        ("hr", "faq.jsonl#x", "hr/faq.jsonl", True),
        ("hr", "faq.jsonl#x", "hr/faq.jsonl#y", False),
    ],
)
def test_a_label_is_a_path_from_its_end(source: str, path: str, label: str, found: bool) -> None:
    assert found_at([hit(source, path)], Question("?", (label,))) == (1 if found else None)


def test_the_first_of_several_documents_counts() -> None:
    hits = [hit("hr", "a.md"), hit("hr", "b.md"), hit("hr", "c.md")]
    assert found_at(hits, Question("?", ("hr/c.md", "hr/b.md"))) == 2


def test_recall_is_of_the_first_five_and_mrr_of_all_ranks() -> None:
    found = scores([1, 5, 6, None])
    assert (found.questions, found.recall_at5, found.mrr) == (4, "0.5000", f"{(1 + 1 / 5 + 1 / 6) / 4:.4f}")


@pytest.mark.parametrize(("asked", "passed"), [("0.5", True), ("0.51", False), (None, None)])
def test_the_gate_asks_for_at_least_its_recall(asked: str | None, passed: bool | None) -> None:
    decided, message = judge(IndexGate(recall_at5=asked) if asked else None, scores([1, None]))
    assert decided is passed
    assert "0.50 on 2 questions" in message
    assert (asked or "") in message


def test_unanswerable_questions_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(
        '{"id": "1", "question": "a?", "documents": [{"path": "hr/a.md", "section": "A"}], "answerable": true}\n\n'
        '{"id": "2", "question": "b?", "documents": [], "answerable": false}\n'
    )
    assert load_questions(f"file://{file}").questions == (Question("a?", ("hr/a.md",)),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("1" * 10_000, "line 2 is not JSON"),
        ('{"question": "\\ud800", "documents": [{"path": "hr/a.md"}]}', "line 2 holds what is not Unicode text"),
        ('{"documents": []}', "line 2 has no question"),
        ('{"question": "a?"}', "line 2 does not say which documents"),
        ('{"question": "a?", "documents": [{"section": "A"}]}', "line 2 does not say which documents"),
    ],
)
def test_a_bad_question_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "a?", "documents": [{"path": "hr/a.md"}]}\n' + line)
    with pytest.raises(UserError, match=f"questions.jsonl, {message}"):
        load_questions(f"file://{file}")


def test_only_a_line_feed_ends_a_question(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "a\u2028b?", "documents": [{"path": "hr/a.md"}]}\r\n', "utf-8")
    assert load_questions(f"file://{file}").questions == (Question("a\u2028b?", ("hr/a.md",)),)


def test_a_file_without_an_answerable_question_measures_nothing(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "a?", "answerable": false}')
    with pytest.raises(UserError, match="no answerable question"):
        load_questions(f"file://{file}")
