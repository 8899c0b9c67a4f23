"""Runs a model over held-out conversations: the loss of the reference answers, and the model's own greedy ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmops_services.evaluation.scores import Measured, token_f1

MAX_NEW_TOKENS = 48
"""Generated answers are cut here: enough for the short answers that a word overlap can judge."""
MAX_GENERATED = 16
"""Answers are generated for at most this many examples of a set, evenly spaced over it; the loss is measured on all."""
BATCH_TOKENS = 4096
"""Tokens, padding included, that go through the model at once."""


@dataclass(frozen=True)
class HeldOut:
    """One example as tokens. `labels` are -100 where no loss is measured; `prompt_ids` end where the answer begins."""

    index: int
    input_ids: list[int]
    labels: list[int]
    prompt_ids: list[int]
    reference: str
    generate: bool


def evenly_spaced(count: int, limit: int) -> set[int]:
    """At most `limit` of the indices 0…count-1, spread over all of them."""
    return set(range(count)) if count <= limit else {index * count // limit for index in range(limit)}


def measure(
    model: Any, tokenizer: Any, examples: Sequence[HeldOut], stops: Sequence[int], step: Callable[[int], None]
) -> list[Measured]:
    """Loss and greedy answers of every example. `stops` end an answer; `step` is told how many examples a batch finished.

    The model is left in the mode (training or evaluation) that it was in.
    """
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            found = dict(_losses(model, tokenizer, examples, step))
            for index, answer in _answers(model, tokenizer, [e for e in examples if e.generate], stops, step):
                reference = next(example.reference for example in examples if example.index == index)
                found[index] = replace(found[index], answer=answer, token_f1=token_f1(answer, reference))
    finally:
        model.train(was_training)
    return [found[example.index] for example in examples]


def _batches(examples: Sequence[HeldOut], length: Callable[[HeldOut], int]) -> Iterator[list[HeldOut]]:
    batch: list[HeldOut] = []
    for example in sorted(examples, key=length):  # neighbours of like length need little padding
        if batch and length(example) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def _left_padded(rows: Sequence[list[int]], padding: int, device: Any) -> Any:
    import torch

    width = max(map(len, rows))
    return torch.tensor([[padding] * (width - len(row)) + row for row in rows], device=device)


def _inputs(rows: Sequence[list[int]], tokenizer: Any, device: Any) -> dict[str, Any]:
    import torch

    ids = _left_padded(rows, tokenizer.pad_token_id, device)
    mask = _left_padded([[1] * len(row) for row in rows], 0, device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": torch.clamp(mask.cumsum(-1) - 1, min=0)}


def _losses(
    model: Any, tokenizer: Any, examples: Sequence[HeldOut], step: Callable[[int], None]
) -> Iterator[tuple[int, Measured]]:
    import torch

    for batch in _batches(examples, lambda example: len(example.input_ids)):
        inputs = _inputs([example.input_ids for example in batch], tokenizer, model.device)
        labels = _left_padded([example.labels for example in batch], -100, model.device)
        # rows end together, so only as many last positions need logits as the longest stretch from a first learned token
        first = [next(i for i, label in enumerate(example.labels) if label != -100) for example in batch]
        keep = max(len(example.labels) - start for example, start in zip(batch, first, strict=True)) + 1
        keep = min(keep, labels.shape[1])
        logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits[:, :-1]
        wanted = labels[:, -keep:][:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), wanted, ignore_index=-100, reduction="none"
        )
        for example, loss, target in zip(batch, losses, wanted, strict=True):
            yield example.index, Measured(example.index, float(loss.sum()), int((target != -100).sum()))
        step(len(batch))


def _answers(
    model: Any, tokenizer: Any, examples: Sequence[HeldOut], stops: Sequence[int], step: Callable[[int], None]
) -> Iterator[tuple[int, str]]:
    from transformers import GenerationConfig

    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=list(stops), pad_token_id=tokenizer.pad_token_id
    )
    for batch in _batches(examples, lambda example: len(example.prompt_ids) + MAX_NEW_TOKENS):
        inputs = _inputs([example.prompt_ids for example in batch], tokenizer, model.device)
        width = inputs["input_ids"].shape[1]
        output = model.generate(**inputs, generation_config=greedy)
        for example, tokens in zip(batch, output[:, width:].tolist(), strict=True):
            yield example.index, tokenizer.decode(tokens, skip_special_tokens=True).strip()
        step(len(batch))
