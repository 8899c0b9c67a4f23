from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_services.gateway.attribution import Attribution
from llmops_services.gateway.citations import AttributedBy, Citer

SOURCES = [
    "Annual leave Germany > Entitlement\nEmployees in Germany receive 30 days of annual leave per calendar year.",
    "Annual leave Norway > Entitlement\nEmployees in Norway receive 25 days of annual leave per calendar year.",
    "VPN access > Setup\nInstall the Norvane client and sign in with your company account and the second factor.",
]


def cite(text: str, *, cuts: tuple[int, ...] = (), count: int = 3) -> tuple[str, dict[int, AttributedBy]]:
    citer = Citer(count, Attribution(SOURCES[:count]).best)
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    shown = "".join(citer.feed(text[a:b]) for a, b in itertools.pairwise(edges))
    return shown + citer.finish(), citer.used


MODEL, OVERLAP = AttributedBy.MODEL, AttributedBy.OVERLAP


@pytest.mark.parametrize(
    ("said", "shown", "used"),
    [
        ("It is so [2].", "It is so [1].", {2: MODEL}),
        ("It is so [3]. And so [1]. Again [3].", "It is so [1]. And so [2]. Again [1].", {3: MODEL, 1: MODEL}),
        ("It is so [9].", "It is so.", {}),
        ("It is [9] so.", "It is so.", {}),
        ("It is so[9]and so.", "It is soand so.", {}),
        ("It is so [0] [9], yes.", "It is so, yes.", {}),
        ("Both [1, 2].", "Both [1][2].", {1: MODEL, 2: MODEL}),
        ("Both [2][1] hold.", "Both [1][2] hold.", {2: MODEL, 1: MODEL}),
        ("Twice [2][2].", "Twice [1].", {2: MODEL}),
        ("Mixed [2, 7].", "Mixed [1].", {2: MODEL}),
        ("After the stop. [2] Next one.", "After the stop. [1] Next one.", {2: MODEL}),
        ("See [the page] and [ ] and [2024].", "See [the page] and [ ] and [2024].", {}),
        ("Cut off [1", "Cut off", {}),
        ("`items[1]` stays [2].", "`items[1]` stays [1].", {2: MODEL}),
        ("```\na[1] = b[9]\n```\nSo [3].", "```\na[1] = b[9]\n```\nSo [1].", {3: MODEL}),
        # a sentence without a mark gets the one of the source that supports it
        ("Employees in Norway receive 25 days of annual leave. Fine.",
         "Employees in Norway receive 25 days of annual leave [1]. Fine.", {2: OVERLAP}),
        ("Employees in Germany receive 30 days of annual leave", "Employees in Germany receive 30 days of annual leave [1]", {1: OVERLAP}),
        ("- Employees in Norway receive 25 days\n- Install the Norvane client and sign in\n",
         "- Employees in Norway receive 25 days [1]\n- Install the Norvane client and sign in [2]\n", {2: OVERLAP, 3: OVERLAP}),
        ("Employees in Norway receive 25 days of leave [2]. Employees in Norway receive 25 days of leave.",
         "Employees in Norway receive 25 days of leave [1]. Employees in Norway receive 25 days of leave [1].", {2: MODEL}),
        ("Employees in Norway receive 25 days of annual leave [9].", "Employees in Norway receive 25 days of annual leave [1].", {2: OVERLAP}),
        # not one: another number or name, too little in common, a heading, an introduction, a table, a denial
        ("Employees in Norway receive 26 days of annual leave.", "Employees in Norway receive 26 days of annual leave.", {}),
        ("Employees in Portugal receive 25 days of annual leave.", "Employees in Portugal receive 25 days of annual leave.", {}),
        ("Employees should ask their manager about parking.", "Employees should ask their manager about parking.", {}),
        ("# Employees in Norway receive annual leave\n", "# Employees in Norway receive annual leave\n", {}),
        ("Employees in Norway receive annual leave:\n", "Employees in Norway receive annual leave:\n", {}),
        ("| Norway | 25 days | annual leave |\n", "| Norway | 25 days | annual leave |\n", {}),
        ("The sources do not say how employees in Norway receive leave.", "The sources do not say how employees in Norway receive leave.", {}),
        # what is no end of a sentence
        ("Employees in Norway receive approx. 25 days of annual leave.", "Employees in Norway receive approx. 25 days of annual leave [1].", {2: OVERLAP}),
        ("1. Install the Norvane client and sign in.", "1. Install the Norvane client and sign in [1].", {3: OVERLAP}),
        ("Employees in Norway receive 25 days (v1.2 of the annual leave).", "Employees in Norway receive 25 days (v1.2 of the annual leave).", {}),
        ('He said "employees in Norway receive 25 days."', 'He said "employees in Norway receive 25 days [1]."', {2: OVERLAP}),
    ],
)  # fmt: skip
def test_marks_are_made_right(said: str, shown: str, used: dict[int, AttributedBy]) -> None:
    assert cite(said) == (shown, used)
    assert cite(said, cuts=tuple(range(len(said)))) == (shown, used), "character by character"


def test_without_sources_nothing_is_marked() -> None:
    assert cite("It is [1] so. Employees in Norway receive 25 days.", count=0) == (
        "It is so. Employees in Norway receive 25 days.",
        {},
    )


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["[1]", "[2]", "[3]", "[9]", "[", "]", "1", "12", ",", ". ", ".", "! ", "\n", " ", "  ", "`", "```", '"', ")", "[1, 2]"]
        ),
        st.sampled_from([sentence.split("\n")[1] for sentence in SOURCES]),
        st.text(alphabet="ab [].`\n1", max_size=6),
        st.text(max_size=8),
    ),
    max_size=24,
).map("".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(PIECES, st.lists(st.integers(0, 10_000), max_size=12).map(tuple))
def test_however_the_stream_is_cut_the_answer_is_the_same(text: str, cuts: tuple[int, ...]) -> None:
    assert cite(text, cuts=cuts) == cite(text)


@settings(max_examples=400, deadline=None)
@given(PIECES)
def test_the_marks_in_the_text_are_those_of_the_citations_in_order_of_use(text: str) -> None:
    shown, used = cite(text.replace("`", ""))
    marks = [
        int(n) for mark in re.findall(r"\[ *\d{1,3}(?: *[,;] *\d{1,3})* *\]", shown) for n in re.findall(r"\d+", mark)
    ]
    assert list(dict.fromkeys(marks)) == list(range(1, len(used) + 1))
    assert set(used) <= {1, 2, 3}


@settings(max_examples=200, deadline=None)
@given(PIECES.filter(lambda text: not re.search(r"\d", text)))
def test_an_answer_without_marks_and_support_is_not_changed(text: str) -> None:
    citer = Citer(3, lambda _sentence: None)
    assert citer.feed(text) + citer.finish() == text


def test_no_more_is_held_back_than_the_next_character_may_change() -> None:
    citer = Citer(3, Attribution(SOURCES).best)
    assert [citer.feed(piece) for piece in ("It", " is", " so", ".", " Next", " [", "2", "]", " one")] == [
        "It", " is", " so", "", ". Next", "", "", " [1]", " one",
    ]  # fmt: skip


def test_the_model_s_own_mark_outranks_the_overlap() -> None:
    _, used = cite("Employees in Norway receive 25 days of annual leave. So it is [2].")
    assert used == {2: MODEL}


@pytest.mark.parametrize(
    ("question", "said", "shown"),
    [
        ("How many days of annual leave do employees in Norway get?", "25 days.", "25 days [1]."),
        ("How many days of annual leave do employees in Norway get?", "1. 25 days.", "1. 25 days [1]."),
        ("How many days of annual leave do employees in Norway get?", "26 days.", "26 days."),
        ("What is the capital of France?", "25 days.", "25 days."),
        ("", "25 days.", "25 days."),
    ],
)
def test_a_short_answer_is_attributed_together_with_its_question(question: str, said: str, shown: str) -> None:
    citer = Citer(3, Attribution(SOURCES, question).best)
    assert citer.feed(said) + citer.finish() == shown
    assert list(citer.used) == ([2] if "[1]" in shown else [])
