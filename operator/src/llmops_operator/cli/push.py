"""`llmops push`: the files that manifests name by `file://`, into MLflow's artifact server; the manifests come out naming them there.

Content-addressed (see `llmops_api.artifacts`): what is there already is not sent again.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import httpx

from llmops_api.artifacts import (
    SERVER_PATH,
    Tree,
    TreeFile,
    artifact_uri,
    authorization,
    blob_folder,
    blob_path,
    sha256_of,
    tree_path,
)
from llmops_api.v1alpha1.embedding_index import IndexSource
from llmops_operator.cli import tables
from llmops_operator.cli.data_files import check_data
from llmops_operator.cli.faults import CommandError, Faults
from llmops_operator.cli.manifests import Document
from llmops_operator.cli.places import Place
from llmops_operator.cli.write import valid_documents
from llmops_operator.domain.sentences import Loc

FORMS = ("yaml", "json")
TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""A server that keeps artifacts in an object store sends a large file on before it answers."""


def push(
    place: Callable[[], Place],
    names: Sequence[str],
    *,
    form: str,
    write: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Store what manifests name and print them as they are to be applied; progress by `warn`. Raises `CommandError`."""
    if form not in FORMS:
        raise CommandError(f'there is no output "{form}": write one of {", ".join(FORMS)}')
    documents = valid_documents(names, None)
    if faults := [fault for document in documents for fault in check_data(document)]:
        raise Faults(faults)
    if any(True for document in documents for _ in _uris(document)):
        with place().mlflow() as url, httpx.Client(timeout=TIMEOUT, headers=authorization(os.environ)) as client:
            stored = Uploads(client, url, warn)
            documents_out = [_replaced(document, stored) for document in documents]
            warn(stored.summary())
    else:
        documents_out = [document.value for document in documents]
        warn("nothing to push: no manifest names a file by file://")
    written = [_written(*pair) for pair in zip(documents, documents_out, strict=True)]
    if form == "json":
        write(tables.serialised(written, "json", single=len(written) == 1) + "\n")
    else:
        write("---\n".join(tables.serialised([one], "yaml", single=True) + "\n" for one in written))


class Uploads:
    """What has been sent to one MLflow server, and what was there already."""

    def __init__(self, client: httpx.Client, url: str, say: Callable[[str], None]) -> None:
        self._client, self._url, self._say = client, url, say
        self._listed: dict[str, dict[str, int]] = {}
        self._trees: dict[tuple[Path, tuple[str, ...]], str] = {}
        self.files = self.bytes = self.kept = 0

    def store(self, path: Path, include: Sequence[str]) -> str:
        """The `artifact://` URI of a file, or of the files of a folder that match one of the globs `include`.

        Raises `CommandError`.
        """
        known = (path, tuple(include))
        if known not in self._trees:
            self._trees[known] = self._store(path, include)
        return self._trees[known]

    def summary(self) -> str:
        """What was done, in a sentence."""
        size = f"{self.bytes / 1e6:.1f} MB" if self.bytes >= 100_000 else f"{self.bytes} bytes"
        return f"pushed {self.files} files ({size}) to {self._url}; {self.kept} were there already"

    def _store(self, path: Path, include: Sequence[str]) -> str:
        files = dict(_files(path, include))
        found = {name: TreeFile(path=name, **_digest(file)) for name, file in files.items()}
        tree = Tree.of(found.values()).to_bytes()
        digest = sha256_of(tree)
        if self._request("GET", tree_path(digest), missing=True).content == tree:
            self.kept += len(files)
        else:
            for name, file in files.items():
                self._blob(found[name], file)
            self._request("PUT", tree_path(digest), content=tree)
        return artifact_uri(digest, path.name)

    def _blob(self, file: TreeFile, path: Path) -> None:
        folder = blob_folder(file.sha256)
        if folder not in self._listed:
            answer = self._request("GET", "", params={"path": folder}).json()
            self._listed[folder] = {one["path"]: int(one.get("file_size", 0)) for one in answer.get("files", ())}
        if self._listed[folder].get(file.sha256) == file.size:
            self.kept += 1
            return
        self._say(f"pushing {file.path}")
        with path.open("rb") as data:
            self._request(
                "PUT", blob_path(file.sha256), content=data, headers={"content-length": str(path.stat().st_size)}
            )
        self._listed[folder][file.sha256] = file.size
        self.files += 1
        self.bytes += file.size

    def _request(self, method: str, path: str, *, missing: bool = False, **more: Any) -> httpx.Response:
        try:
            response = self._client.request(method, f"{self._url}{SERVER_PATH}{path and f'/{path}'}", **more)
        except httpx.HTTPError as error:
            raise CommandError(
                f"MLflow at {self._url} does not answer ({error or type(error).__name__}): "
                "look whether it runs, or name another one by MLFLOW_TRACKING_URI; a second push goes on where this one ended"
            ) from error
        if response.status_code == 200 or (missing and response.status_code in (404, 500)):
            return response
        repair = (
            "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, to what it takes"
            if response.status_code in (401, 403)
            else "it has to serve artifacts (mlflow server --serve-artifacts)"
        )
        raise CommandError(
            f"MLflow at {self._url} refused {method} {path} (HTTP {response.status_code} {response.text[:200].strip()}): {repair}"
        )


def _replaced(document: Document, stored: Uploads) -> dict[str, Any]:
    value: dict[str, Any] = copy.deepcopy(document.value)
    for loc, path in _uris(document):
        holder: Any = value
        for part in loc[:-1]:
            holder = holder[part]
        holder["uri"] = stored.store(path, _include(loc, holder))
    return value


def _include(loc: Loc, holder: dict[str, Any]) -> Sequence[str]:
    """What of a folder is sent: all of a model, and of an index's source what the indexer may read."""
    if "sources" not in loc:
        return ("**/*",)
    chosen: Sequence[str] = holder.get("include", IndexSource.model_fields["include"].default)
    return chosen


def _uris(document: Document) -> Iterator[tuple[Loc, Path]]:
    """Every `file://` of a valid object, and the path that it means."""
    return _below(("spec",), document.value["spec"])


def _below(loc: Loc, value: Any) -> Iterator[tuple[Loc, Path]]:
    inner: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        uri = value.get("uri")
        if isinstance(uri, str) and uri.startswith("file://"):
            yield (*loc, "uri"), Path(unquote(uri.removeprefix("file://")))
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for name, item in inner:
        yield from _below((*loc, name), item)


def _files(path: Path, include: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """The files of a tree by their names in it, which begin with the name of what is pushed. Raises `CommandError`."""
    if path.is_file():
        yield path.name, path
        return
    for _ in os.walk(path, onerror=_refuse):
        pass  # a glob passes over a folder that may not be listed, and less would be stored than is there
    for file in sorted({file for pattern in include for file in path.glob(pattern) if file.is_file()}):
        yield f"{path.name}/{file.relative_to(path).as_posix()}", file


def _digest(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"sha256": digest, "size": file.tell()}
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise CommandError(f"{error.filename} cannot be read ({error.strerror}): allow it, or leave it out") from error


def _written(document: Document, value: dict[str, Any]) -> dict[str, Any]:
    """Without a namespace that nobody has written: kubectl takes the one of its context."""
    if ("metadata", "namespace") in document.lines:
        return value
    metadata = {name: item for name, item in value["metadata"].items() if name != "namespace"}
    return {**value, "metadata": metadata}
