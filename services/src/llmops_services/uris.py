"""From a URI of the API to a file or folder on this machine: `file://`, `pkg://`, `pvc://`, `hf://` and `mlflow://`.

What has to be downloaded or converted is written aside in the cache folder and renamed, under a lock, so that several programs
may ask for the same model at once and one that is killed leaves nothing half done behind. Nothing heavy is imported here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from filelock import FileLock, Timeout

from llmops_api.programs import Env
from llmops_services.program import TryAgain, UserError

log = logging.getLogger(__name__)

LOCK_SECONDS = 3600
"""How long one program waits for another that is downloading or converting the same model."""
CLAIMS = Path("/mnt/pvc")
"""In a cluster each claim that a `pvc://` URI names is mounted here, under its own name."""
DIGEST_TAG = "llmops.dev/digest"
"""Tag of a model version: `folder_digest` of its files, checked after every download."""

_MLFLOW = re.compile(r"(?P<name>[^/@:]+)(?:@(?P<alias>[^/@:]+)|/(?P<version>[0-9]+))")
_HF = re.compile(r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^@\s]+))?")


def local_path(uri: str, *, revision: str | None = None) -> Path:
    """The local file or folder that `uri` stands for; a GGUF file becomes a folder that transformers and vLLM read.

    `revision` is a branch, tag or commit of an `hf://` repository. Raises `UserError` when the URI is wrong or names nothing,
    `TryAgain` when what it is fetched from does not answer.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest:
        raise UserError(
            "UriInvalid", f"{uri!r} is not a URI: write file://, pkg://, pvc://, hf:// or mlflow:// and what follows"
        )
    if revision is not None and scheme != "hf":
        raise UserError("UriInvalid", f"{uri}: revision is only for hf:// repositories; remove it")
    match scheme:
        case "file":
            return _readable(uri, Path(unquote(rest)))
        case "pkg":
            return _readable(uri, _in_package(uri, rest))
        case "hf":
            return _from_hub(uri, rest, revision)
        case "pvc":
            return _readable(uri, _on_claim(uri, rest))
        case "mlflow":
            return _from_registry(uri, rest)
    raise UserError("UriInvalid", f"{uri}: {scheme}:// is not known; write file://, pkg://, pvc://, hf:// or mlflow://")


def cache_dir() -> Path:
    """The folder for downloaded and converted models."""
    return Path(os.environ.get(Env.CACHE_DIR) or Path.home() / ".cache" / "llmops")


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256, in hex, over the relative names and contents of all files below `folder`; a file's own digest if it is one."""
    if folder.is_file():
        return file_digest(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = (f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _readable(uri: str, path: Path) -> Path:
    if not path.exists():
        raise UserError("FileMissing", f"{uri}: there is no {path}; correct the path, or put the file there")
    if not os.access(path, os.R_OK):
        raise UserError("FileUnreadable", f"{uri}: {path} may not be read; allow it (chmod +r)")
    return _converted(path) if path.suffix == ".gguf" else path.absolute()


def _on_claim(uri: str, rest: str) -> Path:
    claim, _, inside = rest.partition("/")
    parts = PurePosixPath(unquote(inside)).parts
    if not claim or ".." in parts or "/" in parts:
        raise UserError("UriInvalid", f"{uri}: write pvc://CLAIM/path/on/the/claim, with no .. in it")
    folder = CLAIMS / claim
    if not folder.is_dir():
        raise UserError(
            "ClaimMissing",
            f"{uri}: the claim is not mounted at {folder}. Claims are mounted in a cluster; on this machine write file:// and "
            "the path of the same folder",
        )
    return folder.joinpath(*parts)


def _in_package(uri: str, rest: str) -> Path:
    module, _, inside = rest.partition("/")
    parts = PurePosixPath(unquote(inside)).parts
    if not module.isidentifier() or ".." in parts or PurePosixPath(inside).is_absolute():
        raise UserError("UriInvalid", f"{uri}: write pkg://MODULE/path/in/the/package, with no .. in it")
    spec = importlib.util.find_spec(module)  # of a top-level name: does not import it
    roots = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    if not roots:
        raise UserError(
            "PackageMissing", f"{uri}: no Python package {module} is installed here; install it, or correct the name"
        )
    places = [root.joinpath(*parts) for root in roots]
    return next((place for place in places if place.exists()), places[0])


def _cached(key: str, fill: Callable[[Path], None]) -> Path:
    """The cache entry `key`; made by `fill(folder)` when there is none. One process makes it, the others wait."""
    target = cache_dir() / "models" / key
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{target}.lock")
    try:
        with suppress(Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked:
            log.info("waiting for another program that is making %s", target)
            lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise TryAgain(
            "CacheLocked", f"{target} has been in the making elsewhere for {LOCK_SECONDS} s; still waiting"
        ) from error
    try:
        if not target.exists():
            aside = target.with_name(
                f"{key}.new"
            )  # only the holder of the lock writes here; a killed one's is thrown away
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            fill(aside)
            aside.rename(target)
    finally:
        lock.release()
    return target


def _converted(path: Path) -> Path:
    digest = file_digest(path)

    def fill(folder: Path) -> None:
        start = time.monotonic()
        log.info("converting %s (%.0f MB) to safetensors, once", path, path.stat().st_size / 1e6)
        try:
            _convert_gguf(path, folder)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise UserError(
                "ModelUnreadable",
                f"{path} cannot be converted ({error}); give a GGUF file that transformers reads, or a safetensors folder",
            ) from error
        log.info("converted in %.0f s", time.monotonic() - start)

    return _cached(f"{path.stem}-{digest[:16]}", fill)


def _convert_gguf(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    quantized = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)  # the weights arrive dequantized
    # the config still says quantized, and vLLM would believe it: the weights go into a model that was never quantized
    settings = {key: value for key, value in quantized.config.to_dict().items() if key != "quantization_config"}
    with torch.device("meta"):
        model: Any = type(quantized)(type(quantized.config).from_dict(settings))
    model.load_state_dict(quantized.state_dict(), assign=True)
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _from_hub(uri: str, rest: str, revision: str | None) -> Path:
    match = _HF.fullmatch(rest)
    if match is None or "/" not in match["repo"]:
        raise UserError("UriInvalid", f"{uri}: write hf://ORGANISATION/NAME or hf://ORGANISATION/NAME@REVISION")
    if revision is not None and match["revision"] not in (None, revision):
        raise UserError("UriInvalid", f"{uri}: also says revision {revision}; keep one of the two")
    revision = revision or match["revision"]
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "60")
    from huggingface_hub import errors, snapshot_download

    own_cache = os.environ.get(Env.CACHE_DIR) and not (os.environ.get("HF_HOME") or os.environ.get("HF_HUB_CACHE"))
    place = cache_dir() / "huggingface" if own_cache else None
    try:
        return Path(snapshot_download(match["repo"], revision=revision, cache_dir=place, etag_timeout=20))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(
            "ModelNotFound",
            f"{uri}: the hub has no {match['repo']}{f' at {revision}' if revision else ''}, or hides it from this token; "
            "correct the name, or set HF_TOKEN to a token that may read it",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(
            "ModelNotFound",
            f"{uri} is not in the cache and HF_HUB_OFFLINE forbids to fetch it; unset it, or write file://",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True", "ON", "YES"):
            raise UserError(
                "ModelNotFound",
                f"{uri} is not in the cache and HF_HUB_OFFLINE forbids to fetch it; unset it, or write file://",
            ) from error
        if isinstance(error, OSError) and error.errno in (28, 122):
            raise
        raise TryAgain("HubUnreachable", f"{uri}: the model hub does not answer ({type(error).__name__})") from error


def _from_registry(uri: str, rest: str) -> Path:
    match = _MLFLOW.fullmatch(rest)
    if match is None:
        raise UserError(
            "UriInvalid", f"{uri}: write mlflow://NAME@ALIAS or mlflow://NAME/VERSION, for example mlflow://qa/3"
        )
    if not os.environ.get(Env.MLFLOW_TRACKING_URI):
        raise UserError("MLflowMissing", f"{uri}: set {Env.MLFLOW_TRACKING_URI} to the address of the MLflow server")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    import mlflow.artifacts
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, name = MlflowClient(), match["name"]
    try:
        if match["alias"]:
            version = client.get_model_version_by_alias(name, match["alias"])
        else:
            version = client.get_model_version(name, match["version"])
        key = f"{name}-v{version.version}-{hashlib.sha256(str(version.source).encode()).hexdigest()[:12]}"

        def fill(folder: Path) -> None:
            log.info("downloading %s version %s", name, version.version)
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{name}/{version.version}", dst_path=str(folder), tracking_uri=client.tracking_uri
            )
            wanted = version.tags.get(DIGEST_TAG)
            # MLflow adds this file while downloading; it is none of the model's
            (folder / "registered_model_meta").unlink(missing_ok=True)
            if wanted and (got := folder_digest(folder)) != wanted:
                raise TryAgain(
                    "DownloadDamaged", f"{uri}: what was downloaded has digest {got[:12]}, not {wanted[:12]}"
                )

        return _cached(key, fill)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(
                "ModelNotFound", f"{uri}: MLflow has no such version or alias; see its Models page, and correct the URI"
            ) from error
        raise TryAgain("MLflowUnreachable", f"{uri}: MLflow does not answer ({error.error_code})") from error
