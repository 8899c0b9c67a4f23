"""From a URI of the API to a file or folder on this machine, one module for each way to get there.

What has to be downloaded or converted is written aside in the cache folder and renamed, under a lock, so that several programs
may ask for the same model at once and one that is killed leaves nothing half done behind. Nothing heavy is imported here.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from llmops_api.reasons import FailureReason
from llmops_services.program import UserError
from llmops_services.uris.cache import cache_dir, file_digest, folder_digest
from llmops_services.uris.git import from_git
from llmops_services.uris.hub import from_hub
from llmops_services.uris.local import in_package, on_claim, readable
from llmops_services.uris.pushed import from_artifacts
from llmops_services.uris.registry import DIGEST_TAG, from_registry
from llmops_services.uris.s3 import from_s3
from llmops_services.uris.web import from_web

__all__ = ["DIGEST_TAG", "cache_dir", "file_digest", "folder_digest", "local_path"]

SCHEMES = "file://, pkg://, pvc://, hf://, mlflow://, s3://, https://, git+https:// or artifact://"


def local_path(uri: str, *, revision: str | None = None) -> Path:
    """The local file or folder that `uri` stands for; a GGUF file becomes a folder that transformers and vLLM read.

    `revision` is a branch, tag or commit of an `hf://` repository. Raises `UserError` when the URI is wrong or names nothing,
    `TryAgain` when what it is fetched from does not answer.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest:
        raise UserError(FailureReason.URI_INVALID, f"{uri!r} is not a URI: write {SCHEMES} and what follows")
    if revision is not None and scheme != "hf":
        raise UserError(FailureReason.URI_INVALID, f"{uri}: revision is only for hf:// repositories; remove it")
    match scheme:
        case "file":
            return readable(uri, Path(unquote(rest)))
        case "pkg":
            return readable(uri, in_package(uri, rest))
        case "pvc":
            return readable(uri, on_claim(uri, rest))
        case "hf":
            return from_hub(uri, rest, revision)
        case "mlflow":
            return from_registry(uri, rest)
        case "https" | "http":
            return readable(uri, from_web(uri))
        case "git+https" | "git+http":
            return readable(uri, from_git(uri))
        case "s3":
            return readable(uri, from_s3(uri, rest))
        case "artifact":
            return readable(uri, from_artifacts(uri))
    raise UserError(FailureReason.URI_INVALID, f"{uri}: {scheme}:// is not known; write {SCHEMES}")
