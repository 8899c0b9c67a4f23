"""Files of a web server: `https://host/path`, and folders as .tar.gz, .tgz, .tar or .zip archives.

The server is asked each time whether the file has changed (its ETag or date); what has not is taken from the cache. With
`#sha256=…` at its end a URI stands for these very bytes: another file is refused, and one in the cache is not asked for again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx

from llmops_api.reasons import FailureReason
from llmops_services.program import TryAgain, UserError
from llmops_services.uris.cache import cache_dir, cached, empty_folder, file_digest, one_at_a_time
from llmops_services.uris.token import token_of

log = logging.getLogger(__name__)

TIMEOUT = httpx.Timeout(60, connect=20)
TRIES = 5
"""A connection that breaks is made again so often while nothing arrives, and goes on where it was."""
CHUNK = 1 << 20
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
UNPACKED_LIMIT = 100
"""An archive that grows to more than so many times its size is refused."""


def from_web(uri: str) -> Path:
    """The file of an address, or the folder that an archive holds. Raises `UserError` and `TryAgain`."""
    address, _, fragment = uri.partition("#")
    pinned = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    if fragment and not pinned:
        raise UserError(
            FailureReason.URI_INVALID, f"{uri}: after # only sha256=<64 hex digits> may stand; correct or remove it"
        )
    parts = urlsplit(address)
    name = PurePosixPath(unquote(parts.path)).name
    if not parts.hostname or parts.username or not name:
        raise UserError(
            FailureReason.URI_INVALID, f"{uri}: write https://host/path/of/a/file; a token belongs into secretRef"
        )
    entry = cache_dir() / "web" / hashlib.sha256(uri.encode()).hexdigest()[:32]
    with one_at_a_time(entry):
        known = _read(entry / "known.json")
        if not (pinned and known.get("sha256") == pinned[1] and _folder(name, pinned[1]).exists()):
            known = _ask(uri, address, name, entry, known, pinned[1] if pinned else None)
    folder = _folder(name, known["sha256"])
    return folder if name.endswith(ARCHIVES) else folder / name


def _folder(name: str, digest: str) -> Path:
    return cache_dir() / "models" / f"{name}-{digest[:32]}"


def _ask(uri: str, address: str, name: str, entry: Path, known: dict[str, str], wanted: str | None) -> dict[str, str]:
    """Download what has changed, and say what there is now: its digest and how the server recognises it."""
    headers = {"Accept-Encoding": "identity"}
    if token := token_of(uri):
        headers["Authorization"] = f"Bearer {token}"
    if known and _folder(name, known["sha256"]).exists():
        conditions = {"If-None-Match": known.get("etag"), "If-Modified-Since": known.get("modified")}
        headers |= {key: value for key, value in conditions.items() if value}
    fresh = empty_folder(entry / "new")
    try:
        part, content = fresh / "download", fresh / "content"
        made = _download(uri, address, part, headers)
        if not made:
            return known
        if wanted and made["sha256"] != wanted:
            raise UserError(
                FailureReason.DIGEST_WRONG,
                f"{uri}: the file there has sha256 {made['sha256']}; correct the URI or the file",
            )
        if name.endswith(ARCHIVES):
            _unpack(uri, name, part, content)
        else:
            content.mkdir()
            part.rename(content / name)

        def put(folder: Path) -> None:
            content.rename(folder)

        cached(_folder(name, made["sha256"]).name, put)  # another address may bring the same bytes
        aside = entry / "known.new"
        aside.write_text(json.dumps(made), encoding="utf-8")
        aside.replace(entry / "known.json")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return made


def _download(uri: str, address: str, part: Path, headers: dict[str, str]) -> dict[str, str]:
    """The file at `part`; empty when the server says that nothing has changed."""
    answer: dict[str, str] = {}
    failures = 0
    with httpx.Client(timeout=TIMEOUT, follow_redirects=True) as client:
        while True:
            have = part.stat().st_size if part.exists() else 0
            ask = dict(headers)
            if have and answer.get("etag"):
                ask |= {"Range": f"bytes={have}-", "If-Range": answer["etag"]}
            try:
                with client.stream("GET", address, headers=ask) as response:
                    if response.status_code == 304:
                        return {}
                    _refuse(uri, response.status_code)
                    if response.status_code != 206:
                        have = 0
                    answer = {
                        "etag": response.headers.get("etag", ""),
                        "modified": response.headers.get("last-modified", ""),
                    }
                    with part.open("ab" if have else "wb") as file:
                        for chunk in response.iter_raw():
                            file.write(chunk)
                            failures = (
                                0 if answer["etag"] else failures
                            )  # one that cannot go on begins anew, not for ever
                return {**answer, "sha256": file_digest(part)}
            except httpx.TransportError as error:
                failures += 1
                if failures >= TRIES:
                    raise TryAgain(
                        FailureReason.SERVER_UNREACHABLE,
                        f"{uri}: no answer ({type(error).__name__}): see whether this machine (in a cluster, the pod) may reach "
                        f"{urlsplit(address).hostname}, or needs HTTPS_PROXY; it is tried again",
                    ) from error
                log.warning("%s broke off (%s), going on", uri, type(error).__name__)


def _refuse(uri: str, status: int) -> None:
    if status in (401, 403):
        raise UserError(
            FailureReason.ACCESS_DENIED, f"{uri}: the server says {status}: name a token that may read it in secretRef"
        )
    if status in (404, 410):
        raise UserError(
            FailureReason.FILE_MISSING, f"{uri}: the server has no such file ({status}); correct the address"
        )
    if status >= 500 or status in (408, 429):
        raise TryAgain(FailureReason.SERVER_UNREACHABLE, f"{uri}: the server says {status}")
    if status >= 300:
        raise UserError(FailureReason.FILE_UNREADABLE, f"{uri}: the server says {status}; write the address of a file")


def _unpack(uri: str, name: str, archive: Path, folder: Path) -> None:
    """Only files and folders, all of them below `folder`."""
    limit = max(archive.stat().st_size, CHUNK) * UNPACKED_LIMIT
    try:
        if name.endswith(".zip"):
            with zipfile.ZipFile(archive) as zipped:
                _check_size(uri, sum(one.file_size for one in zipped.infolist()), limit)
                zipped.extractall(folder)  # noqa: S202 - keeps names inside by itself
        else:
            with tarfile.open(archive) as packed:
                _check_size(uri, sum(one.size for one in packed), limit)
                packed.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (28, 122):
            raise
        raise UserError(
            FailureReason.ARCHIVE_UNREADABLE, f"{uri} cannot be unpacked ({error}): pack it anew"
        ) from error
    archive.unlink()


def _check_size(uri: str, size: int, limit: int) -> None:
    if size > limit:
        raise UserError(
            FailureReason.ARCHIVE_TOO_LARGE, f"{uri} would unpack to {size >> 20} MiB: give a folder on a claim instead"
        )


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
