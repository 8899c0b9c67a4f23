"""Every mistake in a data file is found before anything heavy starts, and named with its file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llmops_api.v1alpha1.training_job import DataFormat
from llmops_services.program import UserError
from llmops_services.training.data import read_examples

GOOD = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})


def _messages(*pairs: tuple[str, str]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]})


@pytest.mark.parametrize(
    ("bad", "line", "says"),
    [
        (b"{not json", 3, "not JSON"),
        (b"[1, 2]", 3, "not a JSON object"),
        (b'{"text": "Hi"}', 3, 'no list "messages"'),
        (b'{"messages": []}', 3, 'no list "messages"'),
        (b'{"messages": ["Hi"]}', 3, "message 1: not an object"),
        (b'{"messages": [{"content": "Hi"}]}', 3, 'message 1: no "role"; write one of system, user, assistant'),
        (_messages(("user", "Hi"), ("robot", "Hm")).encode(), 3, "message 2: role 'robot' is not known"),
        (b'{"messages": [{"role": "user"}]}', 3, 'message 1: no "content"'),
        (b'{"messages": [{"role": "user", "content": 7}]}', 3, '"content" is not a string'),
        (_messages(("user", " "), ("assistant", "Hm")).encode(), 3, '"content" is empty'),
        (_messages(("user", "Hi"), ("user", "Hi?")).encode(), 3, "no message of the assistant"),
        (_messages(("assistant", "Hi"), ("user", "Hi?")).encode(), 3, "the last is not the assistant's"),
        (_messages(("user", "Hi"), ("system", "Be"), ("assistant", "Hm")).encode(), 3, "message 2: a system message that"),
        (b"[" * 100_000, 3, "nested too deeply; write one flat JSON object a line"),
        (b"1" * 10_000, 3, "not JSON (Exceeds the limit"),
        (_messages(("user", "Hi"), ("assistant", "H\ud800")).encode(), 3, "\"content\" is not Unicode text ('\\ud800' is half"),
        ("Grüße".encode("latin-1"), 3, "not UTF-8 (byte 3 of the line)"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(tmp_path: Path, bad: bytes, line: int, says: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join([GOOD.encode(), b"", bad, GOOD.encode()]))
    with pytest.raises(UserError) as caught:
        read_examples(path, DataFormat.MESSAGES)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert says in str(caught.value)
    assert caught.value.reason == "DataInvalid"


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_a_file_without_an_example_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="has no example: write one JSON object a line"):
        read_examples(path, DataFormat.MESSAGES)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder: name one"):
        read_examples(tmp_path, DataFormat.MESSAGES)


def test_prompt_and_completion_become_a_conversation(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('\ufeff{"prompt": "2+2?", "completion": "4"}\n', encoding="utf-8")
    [example] = read_examples(path, DataFormat.PROMPT_COMPLETION, "Count.")
    assert [m["role"] for m in example.messages] == ["system", "user", "assistant"]
    assert (example.prompt[0]["content"], example.answer, example.line) == ("Count.", "4", 1)


def test_a_pair_without_completion_says_what_to_write(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "2+2?"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=re.escape('line 1: no "completion"; write {"prompt"')):
        read_examples(path, DataFormat.PROMPT_COMPLETION)


def test_half_a_character_in_a_pair_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "2+2?", "completion": "\\ud800"}\n', encoding="utf-8")
    with pytest.raises(UserError, match='line 1: "completion" is not Unicode text'):
        read_examples(path, DataFormat.PROMPT_COMPLETION)


def test_the_systemprompt_stands_back_for_a_system_message_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(_messages(("system", "Own"), ("user", "Hi"), ("assistant", "Hm")) + "\n" + GOOD, encoding="utf-8")
    own, plain = read_examples(path, DataFormat.MESSAGES, "Given")
    assert [own.messages[0]["content"], plain.messages[0]["content"]] == ["Own", "Given"]
    assert len(own.messages) == len(plain.messages) == 3
