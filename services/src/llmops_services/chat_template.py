"""One text in training and in serving: a chat template that marks what the assistant says, and renders as the model's own does.

A tokenizer's template rarely has the `{% generation %}` markers that a loss on the assistant's tokens alone needs. Templates of
the ChatML family get them here, others by TRL; either way the marked template is used only if it renders the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from llmops_api.reasons import FailureReason
from llmops_services.program import UserError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""What a model without a chat template gets."""

Conversation = list[dict[str, str]]

_SYSTEM = {"role": "system", "content": "Answer in one sentence."}
_ASK = {"role": "user", "content": "Is it 5 o'clock?\n{{ no }} "}
_SAY = {"role": "assistant", "content": "Yes, “almost”: 你好 <b>.\n\n- and more"}
PROBES: tuple[Conversation, ...] = (
    [_ASK, _SAY],
    [_SYSTEM, _ASK, _SAY],
    [_SYSTEM, _ASK, _SAY, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": " Quite "}],
    [_SYSTEM, _ASK],
    [_ASK],
)
"""Conversations on which two templates are compared."""


@dataclass(frozen=True)
class ChatTemplates:
    """The template that is saved with the model and serves, and the one that trains: the same text, the answers marked."""

    serving: str
    training: str


def chat_templates(tokenizer: Any) -> ChatTemplates:
    """Templates for a transformers tokenizer. Raises `UserError` where none with markers renders the model's own text."""
    serving = tokenizer.chat_template or CHATML
    if not isinstance(serving, str):  # several templates by name
        serving = serving.get("default", CHATML)
    if "{% generation %}" in serving or "{%- generation" in serving:
        return ChatTemplates(serving, serving)
    for training in (_marked_chatml(tokenizer, serving), _known_to_trl(tokenizer, serving)):
        if training is not None and first_difference(tokenizer, serving, training) is None:
            return ChatTemplates(serving, training)
    raise UserError(
        FailureReason.CHAT_TEMPLATE_UNMARKED,
        "the model's chat template does not say which tokens are the assistant's: put {% generation %} and "
        "{% endgeneration %} around them in its chat_template.jinja, and name that folder as baseModel",
    )


def first_difference(tokenizer: Any, one: str, other: str) -> str | None:
    """Why two templates are not interchangeable: None, or a sentence with the first text that differs."""
    rendered = 0
    for probe in PROBES:
        for prompt in (False, True):
            texts = [render(tokenizer, template, probe, add_generation_prompt=prompt) for template in (one, other)]
            rendered += texts[0] is not None
            if texts[0] != texts[1]:
                return f"{texts[0]!r} and {texts[1]!r}"
    return None if rendered else "neither renders any conversation"


def render(tokenizer: Any, template: str, messages: Conversation, *, add_generation_prompt: bool = False) -> str | None:
    """The text of a conversation; None where the template refuses it."""
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except (TemplateError, TypeError, ValueError):
        return None


def _marked_chatml(tokenizer: Any, serving: str) -> str | None:
    """ChatML with markers, and with the system message that the model's own template puts where there is none."""
    user = {"role": "user", "content": "?"}
    text = render(tokenizer, serving, [user]) or ""
    before, found, _ = text.partition("<|im_start|>user\n?")
    if not found:
        return None
    with_system = render(tokenizer, serving, [{"role": "system", "content": "!"}, user]) or ""
    always = with_system.partition("<|im_start|>system\n!")[0]  # a token that begins every text
    default = before.removeprefix(always)
    start = f"{{{{ {json.dumps(always)} }}}}" if always else ""
    if default:
        start += f"{{% if messages[0]['role'] != 'system' %}}{{{{ {json.dumps(default)} }}}}{{% endif %}}"
    return (
        f"{start}{{% for message in messages %}}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
        "{% else %}{{ message['content'] + '<|im_end|>' + '\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def _known_to_trl(tokenizer: Any, serving: str) -> str | None:
    if tokenizer.chat_template != serving:
        return None
    from trl.chat_template_utils import get_training_chat_template

    try:
        template = get_training_chat_template(tokenizer)
    except ValueError:
        return None
    return template if isinstance(template, str) else None
