"""All collections and aliases of one folder, held by one process at a time.

    lock           who holds the folder
    aliases.json   alias to collection, replaced durably
    collections/   one folder per collection, see `collection`
    scratch/       what is not yet, or no longer, part of the store; emptied at the start

A collection is written in `scratch` and renamed into `collections`, and goes the other way when it is deleted: at any moment it is
there as a whole or not at all.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from llmops_api.reasons import FailureReason
from llmops_services.program import TryAgain, UserError

from .aliases import changed_aliases, read_aliases, write_aliases
from .collection import RESERVE_BYTES, Collection
from .errors import StoreError, not_found, wrong_input
from .files import move_folder, remove_folder, require_space
from .schema import CollectionSchema

log = logging.getLogger(__name__)

_THREADS = 8
_FLUSH_INTERVAL_S = 5.0
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


class Catalog:
    """The collections and aliases of a folder. Made by `open`; its methods belong to the event loop's thread."""

    def __init__(self, folder: Path, lock: IO[str]) -> None:
        self._folder = folder
        self._lock = lock
        self._scratch = folder / "scratch"
        self._alias_file = folder / "aliases.json"
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="vectorstore")
        self._changing = asyncio.Lock()
        self._closing = asyncio.Event()
        self.collections: dict[str, Collection] = {}
        self.aliases: dict[str, str] = {}

    @classmethod
    def open(cls, folder: Path) -> Catalog:
        """Take the folder, remove what an earlier process left unfinished, and list what is there (blocks).

        Raises `TryAgain` when another process holds the folder, `UserError` when it cannot be used.
        """
        try:
            (folder / "collections").mkdir(parents=True, exist_ok=True)
            lock = _take(folder)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise UserError(
                FailureReason.FOLDER_UNUSABLE,
                f"folder: {folder} cannot be used ({error.strerror}); give one that can be written",
            ) from error
        catalog = cls(folder, lock)
        shutil.rmtree(catalog._scratch, ignore_errors=True)
        catalog._scratch.mkdir(exist_ok=True)
        for path in sorted((folder / "collections").iterdir()):
            catalog._list(path)
        aliases = read_aliases(catalog._alias_file)
        # A collection is gone before its aliases are; a process killed in between leaves them behind.
        catalog.aliases = {alias: name for alias, name in aliases.items() if name in catalog.collections}
        return catalog

    def _list(self, path: Path) -> None:
        try:
            collection = Collection(path, executor=self._executor, scratch=self._scratch)
        except (OSError, KeyError, ValueError) as error:
            log.error("%s is left out, it cannot be read as a collection: %s", path, error)
            return
        collection.remove_leftovers()
        self.collections[collection.name] = collection

    def resolve(self, name: str) -> Collection:
        """The collection of that name, or the one that the alias of that name points at."""
        collection = self.collections.get(name) or self.collections.get(self.aliases.get(name, ""))
        if collection is None:
            raise not_found(f"Collection `{name}` doesn't exist!")
        return collection

    async def create(self, name: str, schema: CollectionSchema) -> None:
        """Add an empty collection."""
        self._check_free(name)
        aside = self._scratch / uuid4().hex
        target = self._folder / "collections" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:100]}-{uuid4().hex[:8]}"
        try:
            await asyncio.to_thread(self._build, aside, name, schema)
            async with self._changing:
                self._check_free(name)
                await asyncio.to_thread(move_folder, aside, target)
                self.collections[name] = Collection(target, executor=self._executor, scratch=self._scratch)
        finally:  # nothing is left aside but where it failed, or where another request was faster
            remove_folder(aside)

    def _check_free(self, name: str) -> None:
        if not 1 <= len(name) <= 255 or _FORBIDDEN.search(name):
            raise StoreError(
                422, 'Validation error in path parameters: [collection_name: 1 to 255 characters, none of <>:"/\\|?*]'
            )
        if name in self.collections:
            raise StoreError(409, f"Wrong input: Collection `{name}` already exists!")
        if name in self.aliases:
            raise wrong_input(f"Can't create collection with name {name}. Alias with the same name already exists")

    def _build(self, aside: Path, name: str, schema: CollectionSchema) -> None:
        require_space(self._folder, RESERVE_BYTES)
        Collection.build(aside, name, schema)

    async def delete(self, name: str) -> bool:
        """Remove a collection and its aliases; False where there is none of that name."""
        async with self._changing:
            collection = self.collections.get(name)
            if collection is None:
                return False
            remove_folder(await collection.drop())
            del self.collections[name]
            kept = {alias: target for alias, target in self.aliases.items() if target != name}
            if kept != self.aliases:
                self.aliases = kept
                await asyncio.to_thread(write_aliases, self._alias_file, kept)
        return True

    async def change_aliases(self, actions: Any) -> None:
        """Apply all of `actions` durably, or none."""
        async with self._changing:
            changed = changed_aliases(self.aliases, actions, self.collections)
            if changed != self.aliases:
                await asyncio.to_thread(write_aliases, self._alias_file, changed)
                self.aliases = changed

    async def flush_regularly(self) -> None:
        """Sync all collections every few seconds until `close`."""
        while not self._closing.is_set():
            try:
                await asyncio.wait_for(self._closing.wait(), _FLUSH_INTERVAL_S)
            except TimeoutError:
                for collection in list(self.collections.values()):
                    await collection.flush()

    async def close(self) -> None:
        """Flush and close everything and release the folder."""
        self._closing.set()
        await asyncio.gather(*(collection.close() for collection in self.collections.values()))
        await asyncio.to_thread(self._executor.shutdown)
        self._lock.close()


def _take(folder: Path) -> IO[str]:
    lock = (folder / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise TryAgain(
            FailureReason.FOLDER_HELD, f"{folder} is held by process {holder}; stop that process or give another folder"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
