"""The embedding model: its tokens and its digest without torch, its vectors with it.

Chunking and an unchanged sync need only the tokenizer and the digest, so that those are read from the model's files here; torch
and sentence-transformers are imported by `Embedder.load` and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llmops_api.embedding_models import tokens_read, transformer_folder
from llmops_api.reasons import FailureReason
from llmops_services.program import UserError
from llmops_services.uris import cache_dir, file_digest, local_path

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]
"""Shape (number of texts, dimensions); every row has length 1, so that a dot product is a cosine."""


def model_path(model: str | os.PathLike[str]) -> Path:
    """The local folder of a model that is given by URI or by path. Raises `UserError` and `TryAgain` like `uris.local_path`."""
    return local_path(model) if isinstance(model, str) and "://" in model else Path(model)


def model_digest(path: Path) -> str:
    """sha256, in hex, over the names and contents of a model's files; what is written about it (*.md) does not count.

    Digests of files are remembered in the cache folder by size, time of change and inode, so that looking again costs a stat
    for each file.
    """
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.suffix != ".md"
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise UserError(
            FailureReason.MODEL_UNREADABLE, f"{path} holds no files; give the folder of a sentence-transformers model"
        )
    memory = cache_dir() / "digests" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
    known = _read_json(memory)
    seen: dict[str, str] = {}
    whole = hashlib.sha256()
    for file in files:
        name, stat = file.relative_to(path).as_posix(), file.stat()
        key = f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
        seen[key] = known.get(key) or file_digest(file)
        whole.update(f"{name}\0{seen[key]}\n".encode())
    if seen != known:
        memory.parent.mkdir(parents=True, exist_ok=True)
        aside = memory.with_suffix(f".{os.getpid()}.new")
        aside.write_text(json.dumps(seen), encoding="utf-8")
        aside.replace(memory)
    return whole.hexdigest()


@dataclass(frozen=True)
class Tokens:
    """The tokenizer of an embedding model. `special` tokens are added to every text; more than `maximum` are never read."""

    tokenizer: Tokenizer
    special: int
    maximum: int

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """Read `tokenizer.json` and the length limit from a model's folder. Raises `UserError` when it is no embedding model."""
        first, maximum = transformer_folder(path), tokens_read(path)
        file = next((found for found in (first / "tokenizer.json", path / "tokenizer.json") if found.is_file()), None)
        if file is None:
            raise UserError(
                FailureReason.MODEL_UNREADABLE,
                f"{path} has no tokenizer.json; give the folder of a sentence-transformers model with a fast tokenizer",
            )
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                FailureReason.MODEL_UNREADABLE, f"{file} cannot be read ({error}); download the model again"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if maximum is None:
            raise UserError(
                FailureReason.MODEL_UNREADABLE,
                f"{first} does not say how many tokens the model reads; write max_seq_length into sentence_bert_config.json",
            )
        return cls(tokenizer, tokenizer.num_special_tokens_to_add(False), maximum)

    def count(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text, without the special ones."""
        return [len(found) for found in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def starts(self, texts: Sequence[str]) -> list[list[int]]:
        """For each text the character positions at which its tokens begin, without the special ones."""
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [[start for start, _ in one.offsets] for one in found]


class Embedder:
    """An embedding model with its prefixes. Works offline; one instance may be used by one thread at a time."""

    def __init__(
        self,
        model: SentenceTransformer,
        path: Path,
        tokens: Tokens,
        *,
        query_prefix: str = "",
        document_prefix: str = "",
    ) -> None:
        self._model = model
        self.path = path
        self.tokens = tokens
        self.query_prefix = query_prefix
        self.document_prefix = document_prefix
        self.dimensions = int(model.get_embedding_dimension() or 0)
        """Length of a vector."""

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        query_prefix: str = "",
        document_prefix: str = "",
        device: str | None = None,
    ) -> Embedder:
        """Load a sentence-transformers model from a URI or a folder, on `device` or the best one there is.

        Raises `UserError` when it is not such a model, `TryAgain` when it cannot be fetched now.
        """
        path = model_path(model)
        tokens = Tokens.load(path)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said aloud, or the library warns after a fork
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            loaded = SentenceTransformer(str(path), device=device, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                FailureReason.MODEL_UNREADABLE,
                f"{path} cannot be loaded as an embedding model ({error}); give the folder of a sentence-transformers model",
            ) from error
        # the limit that chunks were cut for holds here too, whatever this version of the library makes of the config files
        loaded.max_seq_length = min(tokens.maximum, loaded.max_seq_length or tokens.maximum)
        if loaded.max_seq_length < tokens.maximum:
            raise UserError(
                FailureReason.MODEL_UNREADABLE,
                f"{path}: its files say {tokens.maximum} tokens, but the model reads only {loaded.max_seq_length}; "
                "correct max_seq_length in sentence_bert_config.json",
            )
        return cls(loaded, path, tokens, query_prefix=query_prefix, document_prefix=document_prefix)

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text that are read, special ones included; what is beyond them has no influence."""
        return self.tokens.maximum

    @property
    def digest(self) -> str:
        """`model_digest` of its files."""
        return model_digest(self.path)

    def encode_documents(self, texts: Sequence[str], batch_size: int = 32) -> Vectors:
        """Embed texts behind the document prefix; texts of like length share a batch, so that little is padded."""
        return self._encode([self.document_prefix + text for text in texts], batch_size)

    def encode_queries(self, texts: Sequence[str], batch_size: int = 32) -> Vectors:
        """Embed questions behind the query prefix."""
        return self._encode([self.query_prefix + text for text in texts], batch_size)

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a text, without prefix and special tokens."""
        return self.tokens.count([text])[0]

    def _encode(self, texts: list[str], batch_size: int) -> Vectors:
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        # prompt="" switches a default prompt of the model's config off: the prefixes of the spec are the only ones
        found = self._model.encode(
            texts,
            prompt="",
            batch_size=batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(found, dtype=np.float32)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
