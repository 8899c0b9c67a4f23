"""`llmops ask`: a question, its answer as it comes, and where it is from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from llmops_operator.cli.chat import Answer, Question, source_line, stream
from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.get import not_found
from llmops_operator.cli.kinds import find_kind, parse_targets
from llmops_operator.cli.places import Object, Place
from llmops_operator.cli.tables import dig


def ask(
    place: Place,
    namespace: str,
    service: str,
    text: str,
    *,
    rag: dict[str, Any],
    max_tokens: int,
    form: str | None,
    write: Callable[[str], None],
) -> None:
    """Ask and print. `rag` overrides the service's retrieval. Raises `CommandError`."""
    if form not in (None, "json"):
        raise CommandError(f'there is no output "{form}": write json, or leave -o out')
    if not text.strip():
        raise CommandError("the question is empty: write it after the service's name, in quotes")
    item = find_service(place, namespace, service)
    with place.reached(url_of(item, place.repair)) as url:
        question = Question(url, item["metadata"]["name"], text, rag, max_tokens, place.repair)
        answer = asyncio.run(_ask(question, write if form is None else lambda _: None))
    if form == "json":
        about = {"question": text, "answer": answer.text, "finishReason": answer.finish_reason, "id": answer.id}
        write(
            json.dumps({**about, "citations": answer.citations, "llmops": answer.about}, indent=2, ensure_ascii=False)
            + "\n"
        )
        return
    write("".join(f"{line}\n" for line in closing(answer)))


def closing(answer: Answer) -> list[str]:
    """What is shown after an answer."""
    lines = ["", *map(source_line, answer.citations)]
    if answer.finish_reason == "length":
        lines.append("(cut off: raise --max-tokens for a longer answer)")
    if answer.id:
        lines.append(f"answer/{answer.id}   `llmops lineage answer/{answer.id}` shows what it was made from")
    return lines


def find_service(place: Place, namespace: str, word: str) -> Object:
    """The RagService that `NAME` or `rag/NAME` means. Raises `CommandError`."""
    (target,) = parse_targets([word if "/" in word else f"rag/{word}"])
    if target.kind != find_kind("rag"):
        raise CommandError(f"{target} does not answer questions: name a RagService")
    with place.reading() as reader:
        item = reader.get((target.kind.kind, namespace, target.name or ""))
    if item is None:
        raise CommandError(not_found(target, namespace))
    return item


def url_of(item: Object, repair: str) -> str:
    """Where a service answers. Raises `CommandError` with what it waits for; `repair` is what helps when nothing works on it."""
    url = dig(item, "status", "url")
    if url:
        return str(url)
    ready: Object = next((c for c in dig(item, "status", "conditions") or () if c["type"] == "Ready"), {})
    why = ready.get("message") or f"no controller has looked at it: {repair}"
    raise CommandError(f"RagService {item['metadata']['name']} does not answer yet: {why}")


async def _ask(question: Question, write: Callable[[str], None]) -> Answer:
    shown = 0
    answer = Answer()
    async for answer in stream(question):
        write(answer.text[shown:])
        shown = len(answer.text)
    write("\n")
    return answer
