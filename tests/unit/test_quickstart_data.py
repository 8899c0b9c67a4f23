"""The quickstart's documents and data are what its README says: counts, formats, labels, and no leak into the training."""

import json
import re
from collections import Counter
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
DOCUMENTS = QUICKSTART / "documents"
AREAS = ("hr", "it", "products")
MESSAGE_FILES = ("train.jsonl", "eval-domain.jsonl", "eval-general.jsonl")
REFUSAL = "I could not find this in the handbook."
NUMBER = re.compile(r"\d(?:[\d.,:]*\d)?")
CITATION = re.compile(r"\[(\d+)\]")
RETRIEVAL_FORM = re.compile(r"Sources:\n\n(?P<sources>\[1\] .+)\n\nQuestion: (?P<question>[^\n]+)", re.DOTALL)
SOURCE = re.compile(r"\[(\d+)\] (?P<title>[^\n]+?) > (?P<section>[^\n]+)\n(?P<text>.+)", re.DOTALL)
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by do does for from has have how i in is it its may must my of on or that the their them "
        "then there they this to was what when where which who with you your",
    )
)


def normalised(text: str) -> str:
    """Lower case, without punctuation, single spaces."""
    return " ".join(re.findall(r"\w+", text.lower()))


def content_words(text: str) -> set[str]:
    return set(normalised(text).split()) - STOP_WORDS


def word_count(text: str) -> int:
    return len(text.split())


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")  # strict: a byte that is not UTF-8 fails the test


@cache
def records(name: str) -> list[dict[str, Any]]:
    lines = read(QUICKSTART / "data" / name).splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(isinstance(row, dict) for row in rows)
    return rows


def pairs(name: str) -> list[tuple[str, str]]:
    """(user, assistant) of each example."""
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in records(name)]


@cache
def document_paths() -> list[str]:
    return sorted(path.relative_to(DOCUMENTS).as_posix() for path in DOCUMENTS.rglob("*") if path.is_file())


def headings(path: str) -> list[tuple[int, str, str]]:
    """(level, heading, text up to the next heading) of each section; what looks like a heading in a code block is none."""
    found: list[tuple[int, str, list[str]]] = []
    fenced = False
    for line in read(DOCUMENTS / path).splitlines():
        if line.strip().startswith("```"):
            fenced = not fenced
        match = None if fenced else re.fullmatch(r"(#{1,6}) (.+)", line)
        if match:
            found.append((len(match[1]), match[2], []))
        elif found:
            found[-1][2].append(line)
    assert not fenced, f"{path}: a code block is not closed"
    return [(level, heading, "\n".join(lines)) for level, heading, lines in found]


def section_text(path: str, section: str) -> str:
    texts = [text for _, heading, text in headings(path) if heading == section]
    assert len(texts) == 1, f"{path}: {len(texts)} sections are called {section!r}"
    return texts[0]


def sources_of(user: str) -> list[tuple[str, str, str]]:
    """(title, section, text) of the sources of an example in the retrieval form; empty for one without sources."""
    form = RETRIEVAL_FORM.fullmatch(user)
    if form is None:
        assert not user.startswith("Sources"), f"almost, but not quite the retrieval form: {user!r}"
        return []
    blocks = re.split(r"\n\n(?=\[\d+\] )", form["sources"])
    found = []
    for number, block in enumerate(blocks, 1):
        match = SOURCE.fullmatch(block)
        assert match, block
        assert int(match[1]) == number, block
        found.append((match["title"], match["section"], match["text"]))
    return found


def question_of(user: str) -> str:
    form = RETRIEVAL_FORM.fullmatch(user)
    return form["question"] if form else user


def answerable() -> list[dict[str, Any]]:
    return [question for question in records("questions.jsonl") if question["answerable"]]


# Documents


def test_there_are_enough_documents_in_each_area_and_nothing_else() -> None:
    counts = Counter(path.split("/")[0] for path in document_paths())
    assert set(counts) == set(AREAS)
    assert sum(counts.values()) >= 62
    assert min(counts.values()) >= 15
    assert all(re.fullmatch(r"[a-z]+/[a-z0-9.-]+\.md", path) for path in document_paths())
    assert sum((DOCUMENTS / path).stat().st_size for path in document_paths()) < 600_000


def test_documents_are_10_to_300_lines_long_and_of_all_lengths_between() -> None:
    lengths = {path: len(read(DOCUMENTS / path).splitlines()) for path in document_paths()}
    assert [path for path, length in lengths.items() if not 10 <= length <= 300] == []
    assert min(lengths.values()) <= 12
    assert max(lengths.values()) >= 290
    ascending = sorted(lengths.values())
    assert max(b - a for a, b in pairwise(ascending)) <= 40, ascending
    assert sum(30 <= length <= 120 for length in ascending) > len(ascending) / 2


@pytest.mark.parametrize("path", document_paths())
def test_a_document_has_one_title_first_and_sections_that_can_be_told_apart(path: str) -> None:
    sections = headings(path)
    assert read(DOCUMENTS / path).startswith("# ")
    assert [level for level, _, _ in sections].count(1) == 1
    assert len(sections) >= 2
    names = [heading for _, heading, _ in sections]
    assert len(names) == len(set(names))
    assert all(b - a <= 1 for (a, _, _), (b, _, _) in pairwise(sections)), "a level is skipped"


def test_titles_are_unique() -> None:
    titles = Counter(headings(path)[0][1] for path in document_paths())
    assert [title for title, count in titles.items() if count > 1] == []


def test_documents_have_tables_lists_subsections_and_code() -> None:
    text = {path: read(DOCUMENTS / path) for path in document_paths()}
    assert sum("\n| --- |" in body for body in text.values()) >= 40
    assert sum(bool(re.search(r"^- ", body, re.MULTILINE)) for body in text.values()) >= 30
    assert sum(bool(re.search(r"^1\. ", body, re.MULTILINE)) for body in text.values()) >= 30
    assert sum("\n### " in body for body in text.values()) >= 10
    assert sum("```" in body for path, body in text.items() if path.startswith("it/")) >= 12


@pytest.mark.parametrize(
    "family",
    [
        [f"hr/annual-leave-{country}.md" for country in ("germany", "norway", "portugal", "singapore", "canada")],
        [f"hr/parental-leave-{country}.md" for country in ("germany", "norway", "portugal", "singapore")],
        [f"hr/sick-leave-{country}.md" for country in ("germany", "norway", "portugal", "singapore")],
        [f"hr/travel-expenses-{year}.md" for year in (2024, 2025, 2026)],
        [f"hr/bonus-scheme-{year}.md" for year in (2025, 2026)],
        [f"it/server-patching-{year}.md" for year in (2025, 2026)],
        [f"products/lyra-{model}-manual.md" for model in (300, 500)],
    ],
    ids=lambda family: str(family[0]),
)
def test_near_duplicates_share_their_words_and_differ_in_their_facts(family: list[str]) -> None:
    first, *others = (read(DOCUMENTS / path) for path in family)
    for other in others:
        similarity = SequenceMatcher(None, first.split(), other.split(), autojunk=False).ratio()
        assert 0.7 < similarity < 1
        assert NUMBER.findall(first) != NUMBER.findall(other)


# Labelled questions


def test_questions_have_the_labelled_form() -> None:
    questions = records("questions.jsonl")
    assert len(questions) >= 84
    assert sum(not question["answerable"] for question in questions) == 15
    assert len({question["id"] for question in questions}) == len(questions)
    assert len({normalised(question["question"]) for question in questions}) == len(questions)
    for question in questions:
        assert set(question) == {"id", "question", "answer", "documents", "answerable"}
        assert re.fullmatch(r"q\d{3}", question["id"])
        if question["answerable"]:
            assert question["documents"], question
            assert 3 <= word_count(question["answer"]) <= 25, question
        else:
            assert question["documents"] == [], question
            assert question["answer"] is None, question


def test_every_area_is_asked_about() -> None:
    areas = Counter(question["documents"][0]["path"].split("/")[0] for question in answerable())
    assert min(areas[area] for area in AREAS) >= 20


@pytest.mark.parametrize("question", answerable(), ids=lambda question: str(question["id"]))
def test_the_labelled_sections_support_the_answer(question: dict[str, Any]) -> None:
    for label in question["documents"]:
        assert set(label) == {"path", "section"}
        assert label["path"] in document_paths()
        text = section_text(label["path"], label["section"])
        assert set(NUMBER.findall(question["answer"])) <= set(NUMBER.findall(text)), (question, text)
        # Spelling variants of a word ("lasts", "last") share their first four letters.
        known = {word[:4] for word in content_words(f"{text} {label['section']} {question['question']}")}
        told = content_words(question["answer"])
        assert sum(word[:4] in known for word in told) >= 0.6 * len(told), (question, text)
        in_text = {word[:4] for word in content_words(text)}
        assert any(word[:4] in in_text for word in told), (question, text)


def test_ask_txt_holds_one_answerable_question_of_each_area() -> None:
    asked = read(QUICKSTART / "ask.txt").splitlines()
    labelled = {question["question"]: question["documents"][0]["path"].split("/")[0] for question in answerable()}
    assert sorted(labelled[question] for question in asked) == sorted(AREAS)


# Instruction examples


@pytest.mark.parametrize("name", MESSAGE_FILES)
def test_examples_are_one_turn_of_user_and_assistant(name: str) -> None:
    for row in records(name):
        assert set(row) == {"messages"}
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        for message in row["messages"]:
            assert set(message) == {"role", "content"}
            assert message["content"].strip() == message["content"] != ""


@pytest.mark.parametrize(
    ("name", "least"), [("train.jsonl", 200), ("eval-domain.jsonl", 24), ("eval-general.jsonl", 42)]
)
def test_there_are_enough_examples_and_none_twice(name: str, least: int) -> None:
    users = [normalised(user) for user, _ in pairs(name)]
    assert len(users) >= least
    assert len(set(users)) == len(users)


def test_most_training_data_are_in_the_retrieval_form_and_few_of_them_refuse() -> None:
    """A model of 135 M parameters that is shown more refusals refuses what it could answer; minScore is there for the rest."""
    shown = [(sources_of(user), answer) for user, answer in pairs("train.jsonl")]
    with_sources = [answer for sources, answer in shown if sources]
    assert 0.75 <= len(with_sources) / len(shown) <= 0.9
    assert 0.01 <= with_sources.count(REFUSAL) / len(with_sources) <= 0.05
    assert [answer for sources, answer in shown if not sources and CITATION.search(answer)] == []


def test_the_held_out_data_are_16_in_the_retrieval_form_and_8_without_sources() -> None:
    shown = [bool(sources_of(user)) for user, _ in pairs("eval-domain.jsonl")]
    assert (shown.count(True), shown.count(False)) == (16, 8)
    assert [answer for _, answer in pairs("eval-domain.jsonl") if not 5 <= word_count(answer) <= 25] == []


@pytest.mark.parametrize("name", ["train.jsonl", "eval-domain.jsonl"])
def test_sources_are_quoted_from_the_handbook(name: str) -> None:
    sections = {
        (headings(path)[0][1], heading): normalised(text)
        for path in document_paths()
        for _, heading, text in headings(path)
    }
    for user, _ in pairs(name):
        for title, section, text in sources_of(user):
            for line in text.splitlines():
                assert normalised(line) in sections[title, section], (title, section, line)


@pytest.mark.parametrize("name", ["train.jsonl", "eval-domain.jsonl"])
def test_every_citation_refers_to_a_source_that_holds_the_fact(name: str) -> None:
    for user, answer in pairs(name):
        sources = sources_of(user)
        if not sources or answer == REFUSAL:
            continue
        assert 2 <= len(sources) <= 3
        assert re.search(r"\[\d+\]\.$", answer), answer
        facts = re.findall(r"(.*?)\[(\d+)\]", answer)
        for fact, number in facts:
            assert 1 <= int(number) <= len(sources), answer
            title, _, text = sources[int(number) - 1]
            assert set(NUMBER.findall(fact)) <= set(NUMBER.findall(f"{title} {text}")), (fact, text)


def test_examples_are_short_enough_to_be_trained_on_untruncated() -> None:
    # Of such a piece SmolLM2's tokenizer makes 1.15 tokens on average: below 200 tokens without the system prompt.
    for user, answer in pairs("train.jsonl"):
        assert len(re.findall(r"[A-Za-z]+|\d|[^\w\s]", f"{user} {answer}")) <= 170, user


# What is held out stays out


def test_no_evaluation_question_is_in_an_instruction_file() -> None:
    for name in MESSAGE_FILES:
        everything = [f" {normalised(f'{user} {answer}')} " for user, answer in pairs(name)]
        asked = {frozenset(content_words(question_of(user))) for user, _ in pairs(name)}
        for question in records("questions.jsonl"):
            wanted = normalised(question["question"])
            assert not any(f" {wanted} " in text for text in everything), (name, question)
            assert frozenset(content_words(question["question"])) not in asked, (name, question)


def test_no_held_out_example_is_in_the_training_data() -> None:
    trained = {frozenset(content_words(question_of(user))) for user, _ in pairs("train.jsonl")}
    for name in ("eval-domain.jsonl", "eval-general.jsonl"):
        for user, _ in pairs(name):
            assert frozenset(content_words(question_of(user))) not in trained, user


def test_general_questions_are_short_and_not_about_the_handbook() -> None:
    for user, answer in pairs("eval-general.jsonl"):
        assert 1 <= word_count(answer) <= 12, answer
        assert not re.search(r"Norvane|handbook|Kompass|Saldo|Lyra|Trondheim|Jena|Porto\b", f"{user} {answer}"), user
