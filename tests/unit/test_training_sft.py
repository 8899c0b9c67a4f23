"""What our training changes in TRL's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def test_on_a_cpu_only_what_has_a_label_meets_the_vocabulary_to_the_same_loss_and_gradients(
    tiny_chat_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer import utils

    from llmops_services.training.sft import score_labels_only

    rows = []
    projection = utils._ChunkedLogProbFunction.apply

    def counted(hidden: Any, *rest: Any) -> Any:
        rows.append(len(hidden))
        return projection(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", SimpleNamespace(apply=counted))
    monkeypatch.setattr(utils, "_use_triton", utils._use_triton)  # given back afterwards
    model = AutoModelForCausalLM.from_pretrained(tiny_chat_model, dtype=torch.float32)
    utils.add_fused_lm_head(model)
    tokens = torch.arange(40).reshape(2, 20)
    labels = torch.full_like(tokens, -100)
    labels[0, 15:], labels[1, 18:] = tokens[0, 15:], tokens[1, 18:]

    def learn() -> tuple[float, list[Any]]:
        loss = model(input_ids=tokens, labels=labels, fused_lm_head=True).loss
        return float(loss.detach()), list(torch.autograd.grad(loss, list(model.parameters())))

    loss, gradients = learn()
    score_labels_only()
    loss_now, gradients_now = learn()
    assert rows == [2 * 19, 5 + 2]
    assert loss_now == pytest.approx(loss, rel=1e-6)
    for now, before in zip(gradients_now, gradients, strict=True):
        torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-6)
    assert loss_now == pytest.approx(float(model(input_ids=tokens, labels=labels).loss.detach()), rel=1e-5)
