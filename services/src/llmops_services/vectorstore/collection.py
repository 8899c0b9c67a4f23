"""One collection: one folder, one shard of Edge, one lock for its writers, none for its readers.

    collections/NAME-1a2b3c4d/collection.json   name, schema, and which shard is the current one; replaced durably
    collections/NAME-1a2b3c4d/shard-5e6f7a8b/   Edge's files; another one appears here when an optimized copy takes over

Edge logs every operation before it applies it and replays the log when it is opened: what was acknowledged outlives a killed
process. Log and segments are synced to the disk every few seconds, as by a Qdrant server.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import orjson
import qdrant_edge as edge

from .errors import StoreError, from_engine, not_found, reading_request
from .files import copy_sparse, move_folder, remove_folder, require_space, sync_directory, used_bytes, write_durably
from .optimizer import Journal, optimize_copy, quiet, worth_optimizing
from .schema import CollectionSchema, edge_config

log = logging.getLogger(__name__)

T = TypeVar("T")
Build = Callable[[CollectionSchema], tuple[list[edge.UpdateOperation], int]]
"""Makes a write for a schema: the operations, and how many points they bring (to know when an index is worth building)."""

DESCRIPTION = "collection.json"
RESERVE_BYTES = 64 * 2**20
"""Free space below which writes are refused. Edge writes through mapped files: with the disk full, the system would kill the
process instead of failing the write."""
_GROWTH = 8
"""Bytes on the disk, at most, per byte of a request's JSON: log, vectors, payload, indexes."""


class Collection:
    """A collection that is open, or opens itself at its first use. All methods belong to the event loop's thread.

    `executor` runs the engine's calls; other threads sync, copy and remove files, so that no query waits for these.
    `scratch` is a folder on the same disk for copies.
    """

    def __init__(self, folder: Path, *, executor: Executor, scratch: Path) -> None:
        description = orjson.loads((folder / DESCRIPTION).read_bytes())
        self.name: str = description["name"]
        self.folder = folder
        self.schema = CollectionSchema.model_validate(description["schema"])
        self._shard_folder = folder / description["shard"]
        self._optimized_points: int = description["optimized_points"]
        self._executor = executor
        self._scratch = scratch
        self._shard: edge.EdgeShard | None = None
        self._dropped = False
        self._dirty = False
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._written = asyncio.Event()
        self._unindexed = 0
        self._writes = 0
        self._journal: Journal | None = None
        self._optimization: asyncio.Task[None] | None = None

    @staticmethod
    def build(folder: Path, name: str, schema: CollectionSchema) -> None:
        """Write an empty collection into a new folder (blocks)."""
        shard = f"shard-{uuid4().hex[:8]}"
        (folder / shard).mkdir(parents=True)
        try:
            edge.EdgeShard.create(str(folder / shard), edge_config(schema)).close()
        except Exception as error:
            raise from_engine(error) from error
        _describe(folder, name, schema, shard, optimized_points=0)
        sync_directory(folder)

    @property
    def optimizing(self) -> bool:
        """Whether a better index is being built beside the one that answers."""
        return self._journal is not None

    async def read(self, ask: Callable[[edge.EdgeShard], T]) -> T:
        """Run `ask` on the shard in a thread. Readers wait for nobody."""
        shard = await self._open()
        return await self._in_thread(_asking, ask, shard)

    async def write(self, build: Build, *, size: int) -> int:
        """Apply the operations that `build` makes in a thread, in the order in which writers came; returns the write's number.

        `size`: bytes of the request.
        """
        await self._open()
        async with self._writing:
            shard = await self._open()
            try:
                points = await self._in_thread(self._apply, shard, build, size)
            finally:
                self._dirty = True
            self._unindexed += points
            self._written.set()
            self._consider_optimizing()
            self._writes += 1
            return self._writes - 1

    async def change_schema(self, change: Callable[[CollectionSchema], CollectionSchema]) -> None:
        """Replace the schema durably."""
        async with self._writing:
            if self._dropped:
                raise self._gone()
            schema = change(self.schema)
            await asyncio.to_thread(self._describe, schema)
            self.schema = schema
            self._consider_optimizing()

    def remove_leftovers(self) -> None:
        """Remove shards that never became, or no longer are, the current one (blocks)."""
        for path in self.folder.glob("shard-*"):
            if path != self._shard_folder:
                shutil.rmtree(path, ignore_errors=True)

    async def flush(self) -> None:
        """Sync what was written since the last flush. What cannot be synced is logged and tried again the next time."""
        async with self._writing:
            if self._shard is None or not self._dirty:
                return
            try:
                await self._in_thread(self._shard.flush)
            except Exception as error:
                log.error("%s: cannot be flushed: %s", self.name, error)
            else:
                self._dirty = False

    async def close(self) -> None:
        """Flush and let go of the files. Nothing may be asked of the collection afterwards."""
        await self._stop_optimizing()
        async with self._writing, self._opening:
            self._dropped = True
            shard, self._shard = self._shard, None
            if shard is not None:
                await self._in_thread(shard.close)

    async def drop(self) -> Path:
        """Take the folder out of the collections, durably, and let go of it; returns where it lies now, to be removed."""
        await self._stop_optimizing()
        async with self._writing, self._opening:
            if self._dropped:
                raise self._gone()
            grave = self._scratch / uuid4().hex
            await asyncio.to_thread(move_folder, self.folder, grave)
            self._dropped = True
            await self._let_go()
            return grave

    async def _let_go(self, successor: edge.EdgeShard | None = None) -> None:
        """Drop the reference to the shard in a thread: with the last one Edge flushes and closes, which takes a moment."""
        references = [self._shard]
        self._shard = successor
        await self._in_thread(references.clear)

    def _gone(self) -> StoreError:
        return not_found(f"Collection `{self.name}` doesn't exist!")

    async def _open(self) -> edge.EdgeShard:
        if self._shard is not None:
            return self._shard
        async with self._opening:
            if self._dropped:
                raise self._gone()
            if self._shard is None:
                self._shard = await self._in_thread(_load, self.name, self._shard_folder)
                points = await self._in_thread(lambda shard: shard.info().points_count, self._shard)
                self._unindexed = max(0, points - self._optimized_points)
                self._consider_optimizing()
            return self._shard

    def _apply(self, shard: edge.EdgeShard, build: Build, size: int) -> int:
        with reading_request():
            operations, points = build(self.schema)
        require_space(self.folder, RESERVE_BYTES + _GROWTH * size)
        for operation in operations:
            failed = True
            try:
                shard.update(operation)
                failed = False
            except BaseException as error:  # a panic of the engine is no Exception
                raise from_engine(error) from error
            finally:
                if self._journal is not None:
                    self._journal.add(operation, failed=failed, size=size // len(operations))
        return points

    def _consider_optimizing(self) -> None:
        if self._optimization is None and worth_optimizing(self.schema, self._unindexed, self._optimized_points):
            self._optimization = asyncio.create_task(self._optimize())

    async def _optimize(self) -> None:
        """Build the index in a copy, replay what was written meanwhile, and put the copy in the shard's place."""
        work = self._scratch / uuid4().hex
        try:
            await quiet(self._written)
            async with self._writing:
                self._unindexed = 0  # a failure is tried again when as much again has been written
                points = await asyncio.to_thread(self._copy, work / "shard")
                self._journal = journal = Journal()
            await journal.guard(optimize_copy(work / "shard", self.folder / DESCRIPTION))
            await self._take_over(work / "shard", journal, points)
        except Exception as error:
            log.warning("%s: not optimized, the shard stays as it is: %s", self.name, error)
        finally:
            self._journal = None
            self._optimization = None
            remove_folder(work)

    def _copy(self, target: Path) -> int:
        shard = self._shard
        if shard is None:
            raise RuntimeError("the collection is closed")
        shard.flush()
        require_space(self._scratch, 3 * used_bytes(self._shard_folder) + RESERVE_BYTES)
        copy_sparse(self._shard_folder, target)
        return int(shard.info().points_count)

    async def _take_over(self, optimized: Path, journal: Journal, points: int) -> None:
        old, fresh = self._shard_folder, self.folder / f"shard-{uuid4().hex[:8]}"
        await asyncio.to_thread(move_folder, optimized, fresh)
        shard = await self._in_thread(_load, self.name, fresh)
        await self._in_thread(journal.replay, shard)
        async with self._writing:
            await self._in_thread(journal.replay, shard)
            await self._in_thread(shard.flush)
            # From here on `fresh` may be the current one on the disk: it is not removed whatever happens. A copy that did
            # not become the current one is removed when the store starts.
            await asyncio.to_thread(self._describe, self.schema, fresh.name, points)
            self._shard_folder, self._optimized_points = fresh, points
            await self._let_go(shard)
        remove_folder(old)
        log.info("%s: optimized %d points", self.name, points)

    async def _stop_optimizing(self) -> None:
        if (task := self._optimization) is not None:
            task.cancel()
            await asyncio.wait([task])

    def _describe(
        self, schema: CollectionSchema, shard: str | None = None, optimized_points: int | None = None
    ) -> None:
        _describe(
            self.folder,
            self.name,
            schema,
            shard or self._shard_folder.name,
            self._optimized_points if optimized_points is None else optimized_points,
        )

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


def _asking(ask: Callable[[edge.EdgeShard], T], shard: edge.EdgeShard) -> T:
    try:
        return ask(shard)
    except StoreError:
        raise
    except BaseException as error:  # a panic of the engine is no Exception
        raise from_engine(error) from error


def _load(name: str, folder: Path) -> edge.EdgeShard:
    require_space(folder, RESERVE_BYTES)  # the log is replayed into mapped files
    try:
        return edge.EdgeShard.load(str(folder))
    except BaseException as error:  # a panic of the engine is no Exception
        raise StoreError(
            500, f"Service internal error: collection {name} in {folder} cannot be opened: {error}"
        ) from error


def _describe(folder: Path, name: str, schema: CollectionSchema, shard: str, optimized_points: int) -> None:
    description = {
        "name": name,
        "schema": schema.model_dump(exclude_none=True),
        "shard": shard,
        "optimized_points": optimized_points,
    }
    write_durably(folder / DESCRIPTION, orjson.dumps(description, option=orjson.OPT_INDENT_2))
