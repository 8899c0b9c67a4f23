"""When and how a collection's vector index is built: in a copy of the shard, by a process of its own.

Edge holds Python's interpreter lock for the whole of `optimize` (seconds to minutes), which would stop every collection and
`/healthz` with it. So the store copies the shard, has this program optimize the copy, applies to it what was written
meanwhile, and swaps it in.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import orjson
import qdrant_edge as edge

from .schema import OPTIMIZER_DEFAULTS, CollectionSchema, edge_config

_TIMEOUT_S = 3600.0
_QUIET_S = 2.0
_PATIENCE_S = 30.0
_CHANGED_SHARE = 0.2
_JOURNAL_BYTES = 64 * 2**20
_PR_SET_PDEATHSIG = 1


def worth_optimizing(schema: CollectionSchema, unindexed: int, indexed: int) -> bool:
    """Whether `unindexed` points more than the `indexed` ones are worth an index: from Qdrant's threshold on (KB of vectors,
    0 for never), and a fifth of the collection, since a copy costs time in proportion to the whole.
    """
    threshold: int = OPTIMIZER_DEFAULTS["indexing_threshold"]
    if schema.optimizers_config and schema.optimizers_config.indexing_threshold is not None:
        threshold = schema.optimizers_config.indexing_threshold
    large = unindexed * schema.vector_bytes >= threshold * 1024
    return threshold > 0 and large and unindexed >= _CHANGED_SHARE * indexed


async def quiet(written: asyncio.Event) -> None:
    """Return when `written` was not set for a moment, or when waiting for that took too long."""
    loop = asyncio.get_running_loop()
    patience = loop.time() + _PATIENCE_S
    while loop.time() < patience:
        written.clear()
        try:
            await asyncio.wait_for(written.wait(), _QUIET_S)
        except TimeoutError:
            return


async def optimize_copy(shard: Path, description: Path) -> None:
    """Optimize the shard in the folder `shard` of the collection described by the file `description`.

    Raises RuntimeError with the program's last words when it fails; a cancelled call ends the program.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(shard), str(description), stderr=asyncio.subprocess.PIPE
    )
    try:
        _, words = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"optimizer ended with {process.returncode}: {words.decode(errors='replace')[-2000:]}")


class Journal:
    """What was written while a copy is being optimized: bounded, since it lies in memory."""

    def __init__(self) -> None:
        self._left = _JOURNAL_BYTES
        self._entries: deque[tuple[edge.UpdateOperation, bool]] = deque()
        self._full = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def add(self, operation: edge.UpdateOperation, *, failed: bool, size: int) -> None:
        """Note an operation (in a writer's thread)."""
        self._left -= size
        if self._left >= 0:
            self._entries.append((operation, failed))
        else:
            self._entries.clear()
            self._loop.call_soon_threadsafe(self._full.set)

    async def guard(self, optimization: Coroutine[Any, Any, None]) -> None:
        """Wait for `optimization`; give it up when there was more written than can be noted."""
        running, full = asyncio.create_task(optimization), asyncio.create_task(self._full.wait())
        try:
            await asyncio.wait({running, full}, return_when=asyncio.FIRST_COMPLETED)
            self._check()
            await running
        finally:
            for task in (running, full):
                task.cancel()
            await asyncio.wait({running, full})

    def replay(self, shard: edge.EdgeShard) -> None:
        """Apply what was noted so far, in a thread. An operation that failed the first time may fail again."""
        while self._entries:
            operation, failed = self._entries.popleft()
            try:
                shard.update(operation)
            except Exception:
                if not failed:
                    raise
        self._check()

    def _check(self) -> None:
        if self._left < 0:
            raise RuntimeError("more was written meanwhile than can be caught up with; it is tried again later")


def _main(shard: Path, description: Path) -> None:
    if sys.platform == "linux":  # an orphan would go on for minutes on a copy that nobody waits for
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(10)
    schema = CollectionSchema.model_validate(orjson.loads(description.read_bytes())["schema"])
    opened = edge.EdgeShard.load(str(shard), edge_config(schema))
    opened.optimize()
    opened.close()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
