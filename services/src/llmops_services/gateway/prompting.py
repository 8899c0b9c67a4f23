"""From a conversation to the question that is looked up, and to the prompt that holds the sources.

Decisions, also in docs/gateway.md:

- The question is the last message of the user. A short one (at most `FOLLOW_UP_WORDS` words) is often a follow-up that means
  nothing alone ("And in Norway?"): the user's message before it is looked up together with it.
- `prompt.system` comes first, what the client sent as system messages follows in the same message (chat templates take one).
- The question is put into `prompt.template` with the sources; the other messages stay as they are.
- A service with more than one index says before each source which index it is from, and before all sources what these indexes
  are about (their `description`), so that the model can tell one area from another.
- Without the engine's tokenizer the length of a text is estimated as one token for `BYTES_PER_TOKEN` bytes, which is more than
  English or German text has. Should the estimate fail, the engine says so and the chat is sent again with half of the sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llmops_api.programs import GatewayIndex
from llmops_api.v1alpha1.rag_service import Prompt
from llmops_services.gateway.lookup import Source

FOLLOW_UP_WORDS = 8
BYTES_PER_TOKEN = 3.5
HEADING_TOKENS = 24
"""Reserved for number, index, title and section of a source."""
MESSAGE_TOKENS = 8
"""Reserved for what a chat template puts around a message."""
ANSWER_TOKENS = 256
"""Reserved for the answer where the request has no max_tokens, but at most a quarter of the model's length."""

Message = dict[str, Any]


def text_of(message: Message) -> str:
    """The text of a message; of a list of parts that of its text parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def question_at(messages: Sequence[Message]) -> int | None:
    """The position of the message that is the question; None where the user has said nothing."""
    for position in range(len(messages) - 1, -1, -1):
        if messages[position].get("role") == "user" and text_of(messages[position]).strip():
            return position
    return None


def search_text(messages: Sequence[Message], question: int) -> str:
    """What is looked up for the question at this position."""
    text = text_of(messages[question]).strip()
    if len(text.split()) <= FOLLOW_UP_WORDS:
        before = question_at(messages[:question])
        if before is not None:
            return f"{text_of(messages[before]).strip()}\n{text}"
    return text


def build(
    messages: Sequence[Message],
    question: int,
    prompt: Prompt,
    sources: Sequence[Source],
    indexes: Sequence[GatewayIndex] = (),
) -> list[Message]:
    """The messages for the engine: numbered sources around the question, the conversation's other turns kept. `indexes` are all
    those of the service.
    """
    if len(indexes) > 1:
        blocks = [f"[{n}] {source.index}: {source.block()}" for n, source in enumerate(sources, 1)]
        used = {source.index for source in sources}
        if about := descriptions([index for index in indexes if index.name in used]):
            blocks.insert(0, about)
    else:
        blocks = [f"[{n}] {source.block()}" for n, source in enumerate(sources, 1)]
    asked = messages[question]
    filled = _fill(prompt.template, "\n\n".join(blocks), text_of(asked))
    content: Any = filled
    if isinstance(asked.get("content"), list):
        others = [part for part in asked["content"] if not (isinstance(part, dict) and part.get("type") == "text")]
        content = [*others, {"type": "text", "text": filled}]
    systems = [message for message in messages if message.get("role") in ("system", "developer")]
    system = "\n\n".join(text for text in (prompt.system, *map(text_of, systems)) if text.strip())
    built: list[Message] = [{"role": "system", "content": system}] if system else []
    for position, message in enumerate(messages):
        if position == question:
            built.append({**message, "content": content})
        elif message not in systems:
            built.append(message)
    return built


def descriptions(indexes: Sequence[GatewayIndex]) -> str:
    """What these indexes are about, a line each for those that say it."""
    return "\n".join(f"{index.name}: {index.description}" for index in indexes if index.description)


def _fill(template: str, sources: str, question: str) -> str:
    """Both places at once: a source or a question that holds "{question}" stays as it is."""
    parts = template.split("{sources}")
    return sources.join(part.replace("{question}", question) for part in parts)


def tokens(text: str) -> int:
    """The estimated number of tokens of a text."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def source_tokens(text: str) -> int:
    """The estimated number of tokens that a source with this text takes in the prompt."""
    return tokens(text) + HEADING_TOKENS


def room_for_sources(
    messages: Sequence[Message],
    question: int,
    prompt: Prompt,
    *,
    context_tokens: int,
    max_model_len: int | None,
    answer: int | None,
    indexes: Sequence[GatewayIndex] = (),
) -> int:
    """How many tokens of sources fit: `context_tokens`, or less where the model's length leaves less beside the conversation
    and an answer of `answer` tokens. Below 1 when nothing fits.
    """
    if max_model_len is None:
        return context_tokens
    bare = build(messages, question, prompt, ())
    taken = sum(tokens(text_of(message)) + MESSAGE_TOKENS for message in bare)
    if len(indexes) > 1:
        taken += tokens(descriptions(indexes))
    reserved = answer if answer is not None else min(ANSWER_TOKENS, max_model_len // 4)
    return min(context_tokens, max_model_len - taken - reserved)


def nothing_found(names: Sequence[str]) -> str:
    """The answer where no source is good enough; the model is not asked, it could only invent."""
    return f"I found nothing about this in {' or '.join(names)}."
