"""Questions become vectors: in a thread, those that wait together as one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from llmops_services.embedding import Vectors

BATCH = 32
"""The most questions that are encoded at once: more make the first of them wait without being much faster each."""


class EncodesQueries(Protocol):
    """The part of an `Embedder` that is used here."""

    def encode_queries(self, texts: Sequence[str], batch_size: int = ...) -> Vectors:
        """Vectors of shape (texts, dimensions)."""


class Encoder:
    """Encodes questions with one model. While a batch is being encoded, the next questions gather; so a lone question does not
    wait, and many do not queue up one by one. Whoever calls bounds how many wait. The thread ends with the object.
    """

    def __init__(self, model: EncodesQueries) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._waiting: deque[tuple[str, asyncio.Future[list[float]]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def encode(self, question: str) -> list[float]:
        """The question's vector. Raises what the model raises."""
        result: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, result))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="encoder")
        return await result

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch: list[tuple[str, asyncio.Future[list[float]]]] = []
                while self._waiting and len(batch) < BATCH:
                    question, result = self._waiting.popleft()
                    if not result.done():  # its client has not gone away
                        batch.append((question, result))
                if not batch:
                    continue
                try:
                    vectors = await loop.run_in_executor(
                        self._thread, self._encode, [question for question, _ in batch]
                    )
                except Exception as error:  # any failure of the model is the askers' to report
                    for _, result in batch:
                        if not result.done():
                            result.set_exception(error)
                    continue
                for (_, result), vector in zip(batch, vectors, strict=True):
                    if not result.done():
                        result.set_result(vector)
        finally:
            self._task = None

    def _encode(self, questions: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._model.encode_queries(questions, batch_size=BATCH).tolist()
        return vectors
