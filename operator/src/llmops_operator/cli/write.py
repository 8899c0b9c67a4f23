"""`llmops validate`, `apply` and `delete`: what a person wishes, into the home's store. Works with and without a daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmops_operator.backends.local.admission import Refused
from llmops_operator.backends.local.database import StoreError
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.store import Applied, SqliteStore
from llmops_operator.cli.data_files import check_chunks, check_data
from llmops_operator.cli.faults import CommandError, Faults
from llmops_operator.cli.kinds import BY_KIND, Target, parse_targets
from llmops_operator.cli.laptop import Laptop, daemon_runs
from llmops_operator.cli.manifests import Document, read_manifests, with_absolute_files
from llmops_operator.cli.places import Key
from llmops_operator.cli.validation import check, notes
from llmops_operator.controllers.ports import Conflict, NotFound

Say = Callable[[str], None]


def valid_documents(names: Sequence[str], namespace: str | None) -> list[Document]:
    """The objects of manifests, every one of them valid, with absolute URIs and a namespace. Raises `Faults`."""
    documents = [_with_namespace(with_absolute_files(document), namespace) for document in read_manifests(names)]
    if faults := check(documents) or [fault for document in documents for fault in check_chunks(document)]:
        raise Faults(faults)
    return documents


def _with_namespace(document: Document, namespace: str | None) -> Document:
    metadata = document.value.get("metadata") if isinstance(document.value, dict) else None
    if not isinstance(metadata, dict):
        return document
    written = metadata.get("namespace")
    if written is not None and namespace not in (None, written):
        message = f'is "{written}", but the command says -n {namespace}: leave one of them out'
        raise Faults([document.fault(("metadata", "namespace"), message)])
    if written is None:
        metadata = {**metadata, "namespace": namespace or "default"}
    return replace(document, value={**document.value, "metadata": metadata})


def key_of(document: Document) -> Key:
    """The key of a valid object."""
    metadata = document.value["metadata"]
    return document.value["kind"], metadata["namespace"], metadata["name"]


def named(key: Key) -> Target:
    """The object as it is printed: trainingjob.llmops.dev/name."""
    return Target(BY_KIND[key[0]], key[2])


def validate(namespace: str | None, names: Sequence[str], *, say: Say, warn: Say) -> None:
    """Say that each object is valid, or raise `Faults` with all that is wrong with them and their data."""
    documents = valid_documents(names, namespace)
    if faults := [fault for document in documents for fault in check_data(document)]:
        raise Faults(faults)
    for note in notes(documents):
        warn(note)
    for document in documents:
        say(f"{named(key_of(document))} is valid")


def apply(home: Path, namespace: str | None, names: Sequence[str], *, say: Say, warn: Say) -> None:
    """Store all objects of manifests if all of them are valid. Data that is wrong or missing is told, and does not hinder: it
    may come later, and the object's conditions say that it is waited for. Raises `CommandError`.
    """
    documents = valid_documents(names, namespace)
    for note in notes(documents):
        warn(note)
    for document in documents:
        for fault in check_data(document):
            warn(f"warning: {fault}")
    refused: list[str] = []
    with stored(home) as store:
        for document in documents:
            try:
                say(f"{named(key_of(document))} {store_document(store, document)}")
            except CommandError as error:
                refused.append(str(error))
    if not daemon_runs(home):
        warn("saved; start `llmops up` to act on it")
    if refused:
        raise CommandError("\n".join(refused))


def store_document(store: SqliteStore, document: Document) -> Applied:
    """Store one object. Raises `CommandError` that names file and line when it is refused."""
    try:
        return store.apply(document.value)
    except Refused as error:
        raise Faults([document.fault(fault.path, fault.message) for fault in error.faults]) from error
    except Conflict as error:
        raise Faults([document.fault(("metadata", "resourceVersion"), str(error))]) from error


def delete(
    home: Path,
    namespace: str | None,
    words: Sequence[str],
    names: Sequence[str],
    *,
    ignore_not_found: bool,
    wait: bool,
    timeout: float | None,
    say: Say,
    warn: Say,
) -> None:
    """Delete objects and, with `wait`, return when they are gone; `timeout` None waits for ever. Raises `CommandError`."""
    if bool(words) == bool(names):
        raise CommandError("say what to delete: either objects (TYPE/NAME, TYPE NAME) or manifests (-f)")
    with stored(home) as store:
        keys = _of_manifests(names, namespace) if names else _of_words(store, words, namespace or "default")
        missing = []
        for key in keys:
            try:
                store.delete(key)
            except NotFound:
                missing.append(key)
            else:
                say(f"{named(key)} deleted" if store.get(key) is None else f"{named(key)} is being deleted")
        left = [key for key in keys if store.get(key) is not None]
    if left and wait:
        left = _wait(home, left, timeout, say)
    if left and not daemon_runs(home):
        warn("what ran for it has to be cleaned up: start `llmops up`, which does it")
    elif left and wait:
        raise CommandError("\n".join(f"timed out waiting for {named(key)} to be gone" for key in left))
    if missing and not ignore_not_found:
        raise CommandError("\n".join(f"{named(key)} not found in namespace {key[1]}" for key in missing))


def _wait(home: Path, keys: list[Key], timeout: float | None, say: Say) -> list[Key]:
    from llmops_operator.cli.waiting import wait_gone

    left = wait_gone(Laptop(home), keys, timeout, lambda: daemon_runs(home))
    for key in keys:
        if key not in left:
            say(f"{named(key)} deleted")
    return left


def _of_words(store: SqliteStore, words: Sequence[str], namespace: str) -> list[Key]:
    targets = parse_targets(words)
    if any(target.name is None for target in targets):
        raise CommandError(f"name what to delete: write {targets[0].kind.short}/NAME")
    return [(target.kind.kind, namespace, target.name or "") for target in targets]


def _of_manifests(names: Sequence[str], namespace: str | None) -> list[Key]:
    """Only what names the objects has to be right in a manifest that is deleted; dependents go before what they depend on."""
    keys = []
    for document in read_manifests(names):
        document = _with_namespace(document, namespace)
        value: Any = document.value
        try:
            keys.append(key_of(document))
            BY_KIND[value["kind"]]
        except (KeyError, TypeError) as error:
            raise Faults(
                [document.fault((), "this names no object: kind and metadata.name have to be there")]
            ) from error
    return keys[::-1]


@contextmanager
def stored(home: Path) -> Iterator[SqliteStore]:
    """The store of a home, made when there is none. What goes wrong in it becomes a `CommandError`."""
    place = Home.at(home)
    try:
        place.create()
        store = SqliteStore(place.objects)
    except OSError as error:
        raise CommandError(f"{home} cannot be used ({error.strerror}): name another folder with --home") from error
    except StoreError as error:
        raise CommandError(str(error)) from error
    try:
        yield store
    except StoreError as error:
        raise CommandError(str(error)) from error
    finally:
        store.close()
