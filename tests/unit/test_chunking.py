from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from llmops_api.v1alpha1.embedding_index import Chunking, IndexSource
from llmops_services.embedding import Tokens
from llmops_services.indexing.chunking import ChunkedDocument, Chunker
from llmops_services.indexing.documents import Document, Kind
from llmops_services.indexing.markdown import outline, plain
from llmops_services.program import UserError

WORDS = ["leave", "policy", "the", "of", "employee", "router", "restart", "backup", "light", "seven", "days", "Norway"]
SOURCE = IndexSource(name="hr", uri="file:///documents")


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = " ".join(chr(code) for code in range(33, 127))
    trainer = trainers.WordPieceTrainer(vocab_size=220, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS), letters, letters.replace(" ", "")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    """Tokens here depend on what stands before them: counts of parts do not add up."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [" ".join(WORDS)] * 3, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def model_folder(folder: Path, tokenizer: Tokenizer, maximum: int = 256) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.enable_truncation(20)  # as many models ship it; it must not cut what is counted
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": maximum}))
    return folder


@pytest.fixture(scope="module", params=[wordpiece, byte_level])
def tokens(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return Tokens.load(model_folder(tmp_path_factory.mktemp("model"), request.param()))


def document(text: str, kind: Kind = Kind.MARKDOWN, **rest: object) -> Document:
    return Document(SOURCE, "leave/germany.md", "file:///documents/leave/germany.md", text, kind, "0" * 64, **rest)  # type: ignore[arg-type]


def cut(tokens: Tokens, text: str, kind: Kind = Kind.MARKDOWN, prefix: str = "", **chunking: object) -> ChunkedDocument:
    return Chunker(tokens, Chunking(**chunking), prefix).cut(document(text, kind))  # type: ignore[arg-type]


line = st.one_of(
    st.just(""),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join),
    st.builds(
        lambda level, words: "#" * level + " " + " ".join(words),
        st.integers(1, 5),
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
    ),
    st.builds(lambda words: "| " + " | ".join(words) + " |", st.lists(st.sampled_from(WORDS), min_size=2, max_size=4)),
    st.sampled_from(
        [
            "```",
            "---",
            "| --- | --- |",
            "- item one",
            "    indented",
            "> quoted",
            "Setext",
            "======",
            "x" * 300,
            "日本語のテキスト" * 9,
            "😀" * 40,
            "\t",
            "a.b.c! d? e;",
        ]
    ),
    st.text(max_size=40),
)
texts = (
    st.lists(line, min_size=1, max_size=40)
    .map("\n".join)
    .map(lambda text: text.replace("\r", "\n").replace("\0", ""))
    .filter(str.strip)
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    text=texts,
    strategy=st.sampled_from(["Markdown", "Recursive"]),
    sizes=st.sampled_from([(24, 0), (24, 12), (40, 8), (120, 30)]),
    prefix=st.sampled_from(["", "passage: "]),
    kind=st.sampled_from(list(Kind)),
)
def test_every_line_is_covered_no_chunk_is_too_long_and_the_same_comes_out_again(
    tokens: Tokens, text: str, strategy: str, sizes: tuple[int, int], prefix: str, kind: Kind
) -> None:
    chunking = {"strategy": strategy, "max_tokens": sizes[0], "overlap_tokens": sizes[1]}
    chunks = cut(tokens, text, kind, prefix, **chunking).chunks
    lines = text.split("\n")

    # as the model will count: with everything that it is given
    for count in (len(tokens.tokenizer.encode(prefix + chunk.embedded).ids) for chunk in chunks):
        assert count <= sizes[0]
    covered = {number for chunk in chunks for number in range(chunk.lines[0], chunk.lines[1] + 1)}
    assert {number for number, one in enumerate(lines, 1) if one.strip()} <= covered

    for chunk in chunks:  # the document, character for character, in exactly the lines that it names
        assert chunk.text in "\n".join(lines[chunk.lines[0] - 1 : chunk.lines[1]])
        assert chunk.text.count("\n") == chunk.lines[1] - chunk.lines[0]
    if sizes[1] == 0:  # nothing is lost, nothing doubled, nothing moved
        assert "".join("".join(chunk.text for chunk in chunks).split()) == "".join(text.split())
    assert cut(tokens, text, kind, prefix, **chunking).chunks == chunks


def test_a_long_document_overlaps_by_whole_lines_or_words(tokens: Tokens) -> None:
    text = " ".join(f"{word}{number}" for number in range(60) for word in ("days", "policy"))
    chunks = cut(tokens, text, Kind.PLAIN, max_tokens=64, overlap_tokens=20).chunks
    assert len(chunks) > 3
    for before, after in pairwise(chunks):
        shared = next(
            after.text[:size] for size in range(len(after.text), 0, -1) if before.text.endswith(after.text[:size])
        )
        assert shared
        assert tokens.count([shared])[0] <= 20
        assert not before.text.endswith(after.text)  # something new in each


HANDBOOK = """\
---
owner: People
---
# Annual leave: `Germany`

Thirty days of leave for every employee of the company in Germany, public holidays not included in these days at all.

## Carry-over

Up to eight days of leave are carried over to the next year, and are lost at the end of March if nobody took them by then.

### Part-time

| days a week | days of leave |
| --- | --- |
| 4 | 24 |
| 3 | 18 |

#### A remark

It is the days of the contract that count, not the days on which the employee of the company really worked in the year.

## Empty

## Contact

Ask the people team of the company for everything else about leave, in Germany and in all other countries that there are.
"""


def test_sections_are_chunks_under_their_headings(tokens: Tokens) -> None:
    found = cut(tokens, HANDBOOK, max_tokens=250, overlap_tokens=0)
    assert found.title == "Annual leave: Germany"
    assert [(chunk.section, chunk.lines) for chunk in found.chunks] == [
        ("Annual leave: Germany", (1, 6)),
        ("Annual leave: Germany > Carry-over", (8, 10)),
        ("Annual leave: Germany > Carry-over > Part-time", (12, 21)),  # deeper headings begin no section
        ("Annual leave: Germany > Contact", (23, 27)),  # an empty section goes with the next
    ]
    assert [chunk.context for chunk in found.chunks] == [
        "",  # its own heading is in the text
        "Annual leave: Germany",
        "Annual leave: Germany > Carry-over",
        "Annual leave: Germany",
    ]
    assert found.chunks[1].embedded == f"Annual leave: Germany\n\n{found.chunks[1].text}"


def test_a_section_that_is_cut_keeps_its_headings_in_every_part(tokens: Tokens) -> None:
    sentence = "The employee restarts the router and waits for the green light."
    text = "# Router\n\n## Restart\n\n" + "\n\n".join(f"{sentence} Step {number}." for number in range(12))
    chunks = cut(tokens, text, max_tokens=100, overlap_tokens=0).chunks
    assert len(chunks) > 2
    assert chunks[0].context == "Router"
    assert {chunk.context for chunk in chunks[1:]} == {"Router > Restart"}
    assert {chunk.section for chunk in chunks} == {"Router > Restart"}
    assert all(chunk.text.endswith(".") for chunk in chunks)  # cut between paragraphs


def test_a_table_and_a_code_block_stay_whole_where_they_fit(tokens: Tokens) -> None:
    table = "| router | light |\n| --- | --- |\n| one | green |\n| two | green |"
    code = "```\nrestart router\n\nrestart backup\n```"
    filler = "The policy of the employee is the policy of the employee, seven days in Norway."
    chunks = cut(
        tokens, f"# T\n\n{filler}\n\n{table}\n\n{filler}\n\n{code}\n\n{filler}", max_tokens=84, overlap_tokens=0
    ).chunks
    assert len(chunks) > 1
    assert sum(table in chunk.text for chunk in chunks) == 1
    assert sum(code in chunk.text for chunk in chunks) == 1


def test_tiny_neighbours_share_a_chunk_under_their_common_heading(tokens: Tokens) -> None:
    text = "# Leave\n\n" + "\n\n".join(f"## {word}\n\nYes." for word in ("Norway", "Germany", "Days"))
    (chunk,) = cut(replace(tokens, maximum=1024), text, max_tokens=1024).chunks
    assert chunk.section == "Leave"
    assert chunk.lines == (1, 13)


def test_a_record_is_embedded_behind_its_title_and_keeps_the_line_of_its_file(tokens: Tokens) -> None:
    chunker = Chunker(tokens, Chunking(max_tokens=64, overlap_tokens=0))
    found = chunker.cut(document("Seven days.\nNo more.", title="Leave", line=17))
    assert [(chunk.embedded, chunk.lines) for chunk in found.chunks] == [("Leave\n\nSeven days.\nNo more.", (17, 17))]


def test_recursive_ignores_sections_but_still_says_where_a_chunk_stands(tokens: Tokens) -> None:
    chunks = cut(tokens, HANDBOOK, strategy="Recursive", max_tokens=250, overlap_tokens=0).chunks
    assert chunks[0].section == "Annual leave: Germany"
    assert chunks[0].context == "Annual leave: Germany"
    assert chunks[0].lines[0] == 1
    assert "## Carry-over" in chunks[0].text


def test_an_endless_word_is_not_taken_for_one_token(tokens: Tokens) -> None:
    chunks = cut(tokens, "![](data:image/png;base64," + "Ab1" * 4000 + ")", max_tokens=64, overlap_tokens=0).chunks
    assert max(len(chunk.text) for chunk in chunks) <= 64 * 32


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("The `saldo_ctl` command", "The saldo_ctl command"),
        ("*Very* __important__", "Very important"),
        ("[VPN](https://x) access", "VPN access"),
        ("2 * 3", "2 * 3"),
    ],
)
def test_headings_lose_their_markup(heading: str, expected: str) -> None:
    assert plain(heading) == expected


def test_front_matter_names_the_title_and_is_no_heading() -> None:
    found = outline('---\ntitle: "Leave: all countries"\n---\n\nText.')
    assert found.title == "Leave: all countries"
    assert [(section.path, section.first, section.last) for section in found.sections] == [((), 0, 5)]


def test_a_rule_at_the_top_is_not_front_matter() -> None:
    found = outline("---\nSome words.\n\n# Leave\n\n---\n")
    assert [section.path for section in found.sections] == [(), ("Leave",)]


def test_chunks_that_the_model_would_not_read_whole_are_refused_with_the_numbers(tokens: Tokens) -> None:
    with pytest.raises(
        UserError, match=r"maxTokens is 512, but the embedding model reads only 256 .*maxTokens: 256 or less"
    ):
        Chunker(tokens, Chunking(max_tokens=512))
    Chunker(tokens, Chunking(max_tokens=256))


def test_a_prefix_that_leaves_no_room_is_refused(tokens: Tokens) -> None:
    with pytest.raises(UserError, match="shorten documentPrefix"):
        Chunker(tokens, Chunking(max_tokens=16, overlap_tokens=0), "the policy of the employee of the router: " * 3)
