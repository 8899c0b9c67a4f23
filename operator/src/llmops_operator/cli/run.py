"""`llmops run DIR`: a folder's manifests brought about in one go, its questions asked, and where the answers are from."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from llmops_operator.backends.local.daemon import Serving
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.store import SqliteStore
from llmops_operator.cli.data_files import check_data
from llmops_operator.cli.faults import CommandError, Faults
from llmops_operator.cli.hosting import INTERRUPTED, log_to_home, with_daemon
from llmops_operator.cli.kinds import KINDS
from llmops_operator.cli.manifests import Document
from llmops_operator.cli.places import Key
from llmops_operator.cli.screen import Screen, make_console, make_screen, row_of
from llmops_operator.cli.showing import Show
from llmops_operator.cli.standing import UNDERWAY, Standing, State, reused, standing
from llmops_operator.cli.tables import dig
from llmops_operator.cli.up import pause
from llmops_operator.cli.validation import notes
from llmops_operator.cli.write import key_of, named, store_document, valid_documents
from llmops_operator.domain.sync_due import SYNC_REQUESTED
from llmops_operator.domain.timing import timestamp

QUESTIONS = "ask.txt"


def run(folder: Path, name: str, *, namespace: str | None, once: bool, timeout: float | None) -> int:
    """Bring about the manifests of the folder `name`; the exit code. Raises `CommandError`."""
    source = Path(name)
    if not source.is_dir():
        raise CommandError(f"{name} is not a folder: name one with manifests (*.yaml) in it")
    documents = valid_documents([name], namespace)
    if faults := [fault for document in documents for fault in check_data(document)]:
        raise Faults(faults)
    questions = _questions(source / QUESTIONS)
    home = Home.at(folder)
    log_to_home(home)
    console = make_console()
    screen = make_screen(console)
    session = _Run(documents, screen, timeout)

    async def work(serving: Serving) -> int:
        await session.bring_about(serving)
        screen.close()
        await Show(console, serving, session.services()).all(questions, once=once)
        session.shown = True
        if not once:
            await asyncio.Event().wait()
        return 0

    for note in notes(documents):
        screen.note(note)
    screen.note(f"starting MLflow and the vector store in {home.root}")
    try:
        code = asyncio.run(with_daemon(home, work, note=screen.note))
    finally:
        screen.close()
    return 0 if code == INTERRUPTED and session.shown else code


def _questions(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be read ({error}): write one question a line, as UTF-8") from error


class _Run:
    """The objects of a folder on their way."""

    def __init__(self, documents: list[Document], screen: Screen, timeout: float | None) -> None:
        self._screen, self._timeout = screen, timeout
        order = [kind.kind for kind in KINDS]
        self._documents = {key_of(d): d for d in sorted(documents, key=lambda d: order.index(d.value["kind"]))}
        self._store: SqliteStore
        self._failing: dict[Key, float] = {}
        self.shown = False

    def services(self) -> list[dict[str, Any]]:
        """The RagServices of the folder, as they are now."""
        return [dict(self._item(key)) for key in self._documents if key[0] == "RagService"]

    async def bring_about(self, serving: Serving) -> None:
        """Apply, and return when everything is ready. Raises `CommandError` with the sentence of what has failed for good."""
        self._store = serving.store
        now = datetime.now(UTC).replace(microsecond=0)
        before = {key: self._store.get(key) for key in self._documents}
        for key, document in self._documents.items():
            what = store_document(self._store, _asking_for_a_sync(document, now))
            if key[0] != "EmbeddingIndex" or what == "created":  # the new annotation always makes it "configured"
                self._screen.note(f"{named(key)} {what}")
        changed = asyncio.Event()
        self._store.subscribe(lambda _: changed.set())
        until = None if self._timeout is None else time.monotonic() + self._timeout
        done: set[Key] = set()
        while len(done) < len(self._documents):
            standings = {key: await self._standing(key, now) for key in self._documents}
            self._screen.show([row_of(self._item(key), self._believed(key, where)) for key, where in standings.items()])
            for key, where in standings.items():
                if where.state is State.DONE and key not in done:
                    done.add(key)
                    if sentence := reused(before[key], self._item(key)):
                        self._screen.note(sentence)
            self._give_up(standings, until)
            if len(done) < len(self._documents):
                await pause(changed)

    async def _standing(self, key: Key, since: datetime) -> Standing:
        """Where an object stands. What a status says of a service may be from an earlier daemon, so it is asked itself."""
        found = standing(self._item(key), since)
        url = dig(self._item(key), "status", "url")
        if key[0] != "RagService" or found.state is not State.DONE or url is None or await _answers(url):
            return found
        return UNDERWAY

    def _item(self, key: Key) -> dict[str, Any]:
        item = self._store.get(key)
        if item is None:
            raise CommandError(f"{named(key)} was deleted meanwhile")
        return dict(item)

    def _believed(self, key: Key, where: Standing) -> Standing:
        """A failure is one when it has lasted: until then it is shown as what is being waited for."""
        if where.state is not State.FAILED:
            self._failing.pop(key, None)
            return where
        lasted = time.monotonic() - self._failing.setdefault(key, time.monotonic())
        return where if lasted >= where.after_seconds else replace(where, state=State.UNDERWAY)

    def _give_up(self, standings: dict[Key, Standing], until: float | None) -> None:
        failed = [
            f"{named(key)}: {where.sentence}"
            for key, where in standings.items()
            if self._believed(key, where).state is State.FAILED
        ]
        if failed:
            raise CommandError("\n".join(failed))
        if until is not None and time.monotonic() > until:
            late = [key for key, where in standings.items() if where.state is not State.DONE]
            rows = [row_of(self._item(key)) for key in late]
            raise CommandError("\n".join(f"timed out waiting for {row.name}: {row.doing}" for row in rows))


async def _answers(url: str) -> bool:
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=5.0) as client:
            return (await client.get(f"{url}/readyz")).status_code == 200
    except httpx.HTTPError:
        return False


def _asking_for_a_sync(document: Document, now: datetime) -> Document:
    """Documents may have changed without the manifest: an index is asked to look."""
    if document.value["kind"] != "EmbeddingIndex":
        return document
    metadata = document.value["metadata"]
    annotations = {**(metadata.get("annotations") or {}), SYNC_REQUESTED: timestamp(now)}
    return replace(document, value={**document.value, "metadata": {**metadata, "annotations": annotations}})
