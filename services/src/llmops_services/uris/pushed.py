"""What `llmops push` has stored in MLflow's artifact server: `artifact://<sha256>/<name>`. Every byte is checked by its digest."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import httpx
from pydantic import ValidationError

from llmops_api.artifacts import SERVER_PATH, Tree, authorization, blob_path, parse_artifact_uri, tree_path
from llmops_api.programs import Env
from llmops_api.reasons import FailureReason
from llmops_services.program import TryAgain, UserError, mlflow_away
from llmops_services.uris.cache import cached

log = logging.getLogger(__name__)

TIMEOUT = httpx.Timeout(60, connect=20)
TRIES = 3


def from_artifacts(uri: str) -> Path:
    """The file or folder that was pushed. Raises `UserError` and `TryAgain`."""
    try:
        digest, name = parse_artifact_uri(uri)
    except ValueError as error:
        raise UserError(FailureReason.URI_INVALID, str(error)) from error

    def fill(folder: Path) -> None:
        server = os.environ.get(Env.MLFLOW_TRACKING_URI)
        if not server or not server.startswith("http"):
            raise UserError(
                FailureReason.MLFLOW_MISSING,
                f"{uri}: set {Env.MLFLOW_TRACKING_URI} to the address of the MLflow server",
            )
        with httpx.Client(
            base_url=server.rstrip("/") + SERVER_PATH, timeout=TIMEOUT, headers=authorization(os.environ)
        ) as client:
            _fetch(uri, client, digest, name, folder)

    key = hashlib.sha256(f"{digest}/{name}".encode()).hexdigest()[:32]
    return cached(f"pushed-{key}", fill) / name


def _fetch(uri: str, client: httpx.Client, digest: str, name: str, folder: Path) -> None:
    listing = folder / "listing"
    _download(uri, client, tree_path(digest), digest, listing)
    try:
        files = Tree.model_validate_json(listing.read_bytes()).below(name)
    except ValidationError as error:
        raise UserError(
            FailureReason.URI_INVALID, f"{uri}: what is stored there is no list of files; push again"
        ) from error
    listing.unlink()
    if not files:
        raise UserError(
            FailureReason.FILE_MISSING, f"{uri}: nothing called {name} was pushed; push again and take what is printed"
        )
    log.info("downloading %d files, %.1f MB, of %s", len(files), sum(file.size for file in files) / 1e6, uri)
    for file in files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(uri, client, blob_path(file.sha256), file.sha256, target)


def _download(uri: str, client: httpx.Client, path: str, digest: str, target: Path) -> None:
    for attempt in range(1, TRIES + 1):
        whole = hashlib.sha256()
        try:
            with client.stream("GET", f"/{path}") as response:
                if response.status_code in (401, 403):
                    raise UserError(
                        FailureReason.ACCESS_DENIED,
                        f"{uri}: MLflow says {response.status_code}: correct its credentials",
                    )
                if response.status_code == 404:
                    raise UserError(
                        FailureReason.FILE_MISSING, f"{uri} is not in MLflow's artifact server: run `llmops push` again"
                    )
                response.raise_for_status()
                with target.open("wb") as file:
                    for chunk in response.iter_bytes(1 << 20):
                        whole.update(chunk)
                        file.write(chunk)
        except httpx.HTTPError as error:
            if attempt == TRIES:
                raise mlflow_away(type(error).__name__, f"{uri} is fetched when it does") from error
            continue
        if whole.hexdigest() == digest:
            return
    raise TryAgain(
        FailureReason.DOWNLOAD_DAMAGED, f"{uri}: what arrives is not what was pushed; run `llmops push` again"
    )
