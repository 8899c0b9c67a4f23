"""Training and evaluation data: JSON lines into conversations, every mistake with its file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops_api.reasons import FailureReason
from llmops_api.unicode import half_character
from llmops_api.v1alpha1.training_job import DataFormat
from llmops_services.program import UserError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """One conversation and the line that it stands on (1-based). Its last message is the assistant's."""

    messages: tuple[dict[str, str], ...]
    line: int

    @property
    def prompt(self) -> tuple[dict[str, str], ...]:
        """All messages before the last one."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """What the assistant says last."""
        return self.messages[-1]["content"]


def read_examples(path: Path, shape: DataFormat, system_prompt: str | None = None) -> list[Example]:
    """Read a file of JSON lines. Raises `UserError` with file and line of the first mistake.

    `Messages` is `{"messages": [{"role", "content"}, …]}`, `PromptCompletion` is `{"prompt", "completion"}`; blank lines are
    passed over. `system_prompt` is put before conversations that have no system message of their own.
    """
    examples = [
        Example(_with_system(_conversation(record, shape, path, number), system_prompt), number)
        for number, record in _records(path)
    ]
    if not examples:
        raise UserError(
            FailureReason.DATA_EMPTY, f"{path} has no example: write one JSON object a line, {_shape(shape)}"
        )
    return examples


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    if path.is_dir():
        raise UserError(FailureReason.DATA_INVALID, f"{path} is a folder: name one .jsonl file in it")
    number = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise _fault(
                    path, number, f"not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
                ) from error
            if not line:
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise _fault(
                    path, number, f"not JSON ({error.msg}, column {error.colno}); write one whole JSON object a line"
                ) from error
            except ValueError as error:  # a number of thousands of digits
                raise _fault(path, number, f"not JSON ({error}); write one whole JSON object a line") from error
            except RecursionError as error:
                raise _fault(path, number, "nested too deeply; write one flat JSON object a line") from error


def _conversation(record: Any, shape: DataFormat, path: Path, line: int) -> tuple[dict[str, str], ...]:
    if not isinstance(record, dict):
        raise _fault(path, line, f"not a JSON object; write {_shape(shape)}")
    if shape is DataFormat.PROMPT_COMPLETION:
        for key in ("prompt", "completion"):
            _text(record, key, path, line, "", shape)
        return (
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["completion"]},
        )
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _fault(path, line, f'no list "messages"; write {_shape(shape)}')
    for number, message in enumerate(messages, 1):
        _check_message(message, number, path, line, shape)
    if messages[-1]["role"] != "assistant":
        said = (
            "no message of the assistant"
            if all(m["role"] != "assistant" for m in messages)
            else "the last is not the assistant's"
        )
        raise _fault(path, line, f'{said}; end with {{"role": "assistant", "content": "…"}}, the answer to learn')
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _check_message(message: Any, number: int, path: Path, line: int, shape: DataFormat) -> None:
    where = f"message {number}: "
    if not isinstance(message, dict):
        raise _fault(path, line, f'{where}not an object; write {{"role": "user", "content": "…"}}')
    if "role" not in message:
        raise _fault(path, line, f'{where}no "role"; write one of {", ".join(ROLES)}')
    if message["role"] not in ROLES:
        raise _fault(path, line, f"{where}role {message['role']!r} is not known; write one of {', '.join(ROLES)}")
    if message["role"] == "system" and number > 1:
        raise _fault(path, line, f"{where}a system message that is not the first; move it to the front, or remove it")
    _text(message, "content", path, line, where, shape, may_be_empty=message["role"] == "system")


def _text(
    record: dict[str, Any],
    key: str,
    path: Path,
    line: int,
    where: str,
    shape: DataFormat,
    *,
    may_be_empty: bool = False,
) -> None:
    if key not in record:
        raise _fault(path, line, f'{where}no "{key}"; write {_shape(shape)}')
    if not isinstance(record[key], str):
        raise _fault(path, line, f'{where}"{key}" is not a string; write text in quotes')
    if not record[key].strip() and not may_be_empty:
        raise _fault(path, line, f'{where}"{key}" is empty; write its text, or remove the line')
    if half := half_character(record[key]):
        raise _fault(path, line, f'{where}"{key}" is not Unicode text ({half!r} is half a character); correct it')


def _with_system(messages: tuple[dict[str, str], ...], system_prompt: str | None) -> tuple[dict[str, str], ...]:
    if not system_prompt or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": system_prompt}, *messages)


def _shape(shape: DataFormat) -> str:
    if shape is DataFormat.PROMPT_COMPLETION:
        return '{"prompt": "…", "completion": "…"}'
    return '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'


def _fault(path: Path, line: int, what: str) -> UserError:
    return UserError(FailureReason.DATA_INVALID, f"{path}, line {line}: {what}")
