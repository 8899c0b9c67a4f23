"""The vectors of windows of texts: computed in this process, or by Ray Data actors when there are several workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from llmops_api.reasons import FailureReason
from llmops_services.allocation import keep_freed_memory
from llmops_services.embedding import Embedder, Vectors
from llmops_services.indexing.sync import Window
from llmops_services.program import TryAgain

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 2**30
"""Of a Ray that is started here; more than that is spilled to the disk."""


def embed_here(
    windows: Iterable[Window], load: Callable[[], Embedder], batch_size: int
) -> Iterator[tuple[Window, Vectors]]:
    """Embed in this process. The model is loaded at the first text, so that a sync without one needs none."""
    for window in windows:
        texts = window.texts
        yield window, load().encode_documents(texts, batch_size) if texts else np.empty((0, 0), dtype=np.float32)


def embed_on_ray(
    windows: Iterable[Window],
    *,
    workers: int,
    cpus: float,
    model: str,
    document_prefix: str,
    batch_size: int,
) -> Iterator[tuple[Window, Vectors]]:
    """Embed on `workers` Ray Data actors of `cpus` each (and a GPU each, where the cluster has as many).

    The windows are cut first, all of them, and wait in Ray's object store, which spills to the disk; vectors then come back in
    the order of the windows. Uses the cluster of RAY_ADDRESS, or starts Ray on this machine. Raises `TryAgain` when Ray
    loses what it cannot replace.
    """
    import pyarrow  # type: ignore[import-untyped]
    import ray
    import ray.data
    from ray.exceptions import RayError

    try:
        _start_ray(workers)
        parked: list[tuple[Any, int]] = []
        tables: list[Any] = []
        for window in windows:
            if texts := window.texts:
                parked.append((ray.put(window), len(texts)))
                tables.append(ray.put(pyarrow.table({"text": texts})))
            else:
                yield window, np.empty((0, 0), dtype=np.float32)
        if not parked:
            return
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= workers else 0  # type: ignore[no-untyped-call]
        dataset = ray.data.from_arrow_refs(tables).map_batches(
            _Worker,
            fn_constructor_args=(model, document_prefix, batch_size),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        blocks = iter(dataset.iter_batches(batch_size=None, batch_format="numpy"))
        rows = np.empty((0, 0), dtype=np.float32)
        for reference, size in parked:
            while len(rows) < size:  # Ray may cut its blocks elsewhere than we cut the windows; the order stays
                block = next(blocks)["vector"]
                rows = np.concatenate([rows, block]) if len(rows) else block
            yield ray.get(reference), rows[:size]
            rows = rows[size:]
    except RayError as error:
        raise TryAgain(FailureReason.RAY_FAILED, f"Ray lost the embedding: {error}") from error


def _start_ray(workers: int) -> None:
    import ray
    import ray.data

    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        cpus = max(workers, os.cpu_count() or 1)
        ray.init(
            "local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True


class _Worker:
    """A Ray Data actor with a model of its own."""

    def __init__(self, model: str, document_prefix: str, batch_size: int) -> None:
        keep_freed_memory()
        self._embedder = Embedder.load(model, document_prefix=document_prefix)
        self._batch_size = batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"vector": self._embedder.encode_documents(batch["text"].tolist(), self._batch_size)}
