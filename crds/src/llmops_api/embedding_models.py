"""What the files of an embedding model say of how much it reads: the command asks before anything starts, the programs as they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def transformer_folder(model: Path) -> Path:
    """The folder of the transformer within a sentence-transformers model, the model's own folder when it is a plain one."""
    modules = _read(model / "modules.json")
    if isinstance(modules, list) and modules and isinstance(modules[0], dict):
        return model / str(modules[0].get("path", ""))
    return model


def tokens_read(model: Path) -> int | None:
    """How many tokens of a text a model reads, special ones included: what sentence-transformers takes as `max_seq_length`.

    None when its files do not say, or are not there.
    """
    folder = transformer_folder(model)
    said = _value(folder / "sentence_bert_config.json", "max_seq_length")
    if isinstance(said, int) and said > 0:
        return said
    limits = (
        _value(folder / "tokenizer_config.json", "model_max_length"),
        _value(folder / "config.json", "max_position_embeddings"),
    )
    return min(
        (int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < 1_000_000), default=None
    )


def chunks_too_long(max_tokens: int, model: str, read: int) -> str | None:
    """What is wrong when chunks of `max_tokens` are cut for a model that reads `read` tokens; None when nothing is."""
    if max_tokens <= read:
        return None
    return (
        f"chunking.maxTokens is {max_tokens}, but {model} reads only {read} tokens of a text (special tokens included): what is "
        f"beyond them would never be found. Write maxTokens: {read} or less, or take a model that reads more"
    )


def _value(file: Path, key: str) -> Any:
    found = _read(file)
    return found.get(key) if isinstance(found, dict) else None


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
