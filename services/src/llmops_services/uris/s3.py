"""Objects of an S3 store: `s3://bucket/key` is the object of that key, or else the folder of all objects below `key/`.

Where the store is and who reads it stands in the usual variables (AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID, …), or in the
entry of a Secret that is written like an AWS credentials file. Each object is asked for its ETag; what has not changed is taken
from the cache.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from llmops_api.reasons import FailureReason
from llmops_services.program import TryAgain, UserError
from llmops_services.uris.cache import cache_dir, cached
from llmops_services.uris.token import token_of

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

CONNECT_SECONDS, REQUEST_SECONDS = 20, 60
AT_ONCE = 16
"""So many objects are asked for and read at the same time."""
BUFFER = 8 << 20
MISSING = frozenset({"NO_SUCH_BUCKET", "NO_SUCH_KEY", "RESOURCE_NOT_FOUND"})
REFUSED = frozenset(
    (
        *("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "INVALID_CLIENT_TOKEN_ID", "INVALID_SIGNATURE", "EXPIRED_TOKEN"),
        *("SIGNATURE_DOES_NOT_MATCH", "MISSING_AUTHENTICATION_TOKEN", "UNRECOGNIZED_CLIENT"),
    )
)


def from_s3(uri: str, rest: str) -> Path:
    """The file or folder, as it is now. Raises `UserError` and `TryAgain`."""
    bucket, _, key = rest.partition("/")
    store, where = _connect(uri)
    with _meaning(uri):
        found = _objects(store, bucket, key.rstrip("/"))
        if not found:
            raise UserError(FailureReason.FILE_MISSING, f"{uri}: nothing is there; correct the key, or put it there")
        folders = {str(folder) for name in found for folder in PurePosixPath(name).parents}
        for name in found:
            if {"", ".", ".."} & set(name.split("/")) or name in folders:
                raise UserError(
                    FailureReason.FILE_UNREADABLE, f"{uri}: {name!r} cannot be the name of a file; rename that object"
                )
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tags = dict(zip(found, pool.map(partial(_etag, store), found.values()), strict=True))
        stands = json.dumps([where, bucket, tags], sort_keys=True)
        memory = cache_dir() / "s3" / f"{hashlib.sha256(uri.encode()).hexdigest()[:32]}.json"
        before = _remembered(memory)
        folder = cached(
            f"s3-{hashlib.sha256(stands.encode()).hexdigest()[:32]}",
            lambda folder: _fill(uri, store, found, tags, before, folder),
        )
    memory.parent.mkdir(parents=True, exist_ok=True)
    aside = memory.with_suffix(f".{os.getpid()}.new")
    aside.write_text(json.dumps({"folder": folder.name, "tags": tags}), encoding="utf-8")
    aside.replace(memory)
    name = PurePosixPath(key).name
    return folder / name if found == {name: f"{bucket}/{key}"} else folder


def _connect(uri: str) -> tuple[S3FileSystem, str]:
    """The store, and its address."""
    from pyarrow import fs  # type: ignore[import-untyped]

    given = _given(uri)
    endpoint = (
        given.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    )
    if endpoint and not re.match("https?://[^/]", endpoint):
        raise UserError(
            FailureReason.ENVIRONMENT_INVALID,
            f"{uri}: the store's address is {endpoint!r}: write AWS_ENDPOINT_URL_S3 like https://minio.example.com:9000",
        )
    region = given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    store = fs.S3FileSystem(
        access_key=given.get("aws_access_key_id"),
        secret_key=given.get("aws_secret_access_key"),
        session_token=given.get("aws_session_token"),
        region=region,
        endpoint_override=endpoint,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
    )
    return store, endpoint or region


def _given(uri: str) -> Mapping[str, str]:
    """What the entry of the source's `secretRef` holds."""
    text = token_of(uri)
    if text is None:
        return {}
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
        found = parser["default"]
        return {
            **found,
            "aws_access_key_id": found["aws_access_key_id"],
            "aws_secret_access_key": found["aws_secret_access_key"],
        }
    except (configparser.Error, KeyError):
        raise UserError(
            FailureReason.ACCESS_DENIED,
            f"{uri}: the entry that secretRef names is to be an AWS credentials file: a line [default], then aws_access_key_id = … "
            "and aws_secret_access_key = …",
        ) from None


def _objects(store: S3FileSystem, bucket: str, key: str) -> dict[str, str]:
    """Paths in the store by their names below `key`."""
    from pyarrow import fs

    path = f"{bucket}/{key}".rstrip("/")
    if key and store.get_file_info(path).type == fs.FileType.File:
        return {PurePosixPath(key).name: path}
    try:
        below = store.get_file_info(fs.FileSelector(path, recursive=True))
    except FileNotFoundError:
        return {}
    return {one.path.removeprefix(f"{path}/"): one.path for one in below if one.type == fs.FileType.File}


def _etag(store: S3FileSystem, path: str) -> str:
    with store.open_input_stream(path, compression=None) as stream:
        return str(stream.metadata()["ETag"].decode())


def _fill(
    uri: str,
    store: S3FileSystem,
    found: Mapping[str, str],
    tags: Mapping[str, str],
    before: tuple[Path, Mapping[str, str]],
    folder: Path,
) -> None:
    old, known = before

    def fetch(name: str) -> bool:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if known.get(name) == tags[name] and _linked(old / name, target):
            return False
        stream = store.open_input_stream(found[name], compression=None, buffer_size=BUFFER)
        with stream, target.open("wb") as file:
            while chunk := stream.read(BUFFER):
                file.write(chunk)
        if _etag(store, found[name]) != tags[name]:
            raise TryAgain(FailureReason.DOWNLOAD_DAMAGED, f"{uri}: {name} was changed while it was read")
        return True

    with ThreadPoolExecutor(AT_ONCE) as pool:
        fetched = sum(pool.map(fetch, found))
    log.info("%s: read %d of %d objects", uri, fetched, len(found))


def _linked(old: Path, new: Path) -> bool:
    """Have the file of the time before at the new place. False when that cannot be, for whatever reason."""
    try:
        os.link(old, new)
    except OSError:
        return False
    return True


def _remembered(memory: Path) -> tuple[Path, Mapping[str, str]]:
    """The folder that was made last for a URI, and the ETags of what is in it."""
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
        return cache_dir() / "models" / found["folder"], found["tags"]
    except (OSError, ValueError, KeyError):
        return cache_dir(), {}


@contextmanager
def _meaning(uri: str) -> Iterator[None]:
    """What the store's refusals mean."""
    try:
        yield
    except FileNotFoundError as error:
        raise TryAgain(FailureReason.DOWNLOAD_DAMAGED, f"{uri}: an object is gone since it was listed") from error
    except OSError as error:
        said = re.search(r"AWS Error (\w+)", str(error))
        if said is None:
            raise
        if said[1] in MISSING:
            raise UserError(
                FailureReason.FILE_MISSING, f"{uri}: the store has no such bucket or key; correct the URI"
            ) from error
        if said[1] in REFUSED:
            raise UserError(
                FailureReason.ACCESS_DENIED,
                f"{uri}: the store says {said[1]}: give credentials that may list and read it, in AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or name them in secretRef",
            ) from error
        raise TryAgain(FailureReason.SERVER_UNREACHABLE, f"{uri}: the store does not answer ({said[1]})") from error
