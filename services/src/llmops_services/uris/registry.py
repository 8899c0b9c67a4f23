"""Versions of models in MLflow's registry: `mlflow://name@alias` and `mlflow://name/version`."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

from llmops_api.programs import Env
from llmops_api.reasons import FailureReason
from llmops_services.program import TryAgain, UserError, mlflow_away
from llmops_services.shortages import disk_full
from llmops_services.uris.cache import cached, folder_digest

log = logging.getLogger(__name__)

DIGEST_TAG = "llmops.dev/digest"
"""Tag of a model version: `folder_digest` of its files, checked after every download."""

_MLFLOW = re.compile(r"(?P<name>[^/@:]+)(?:@(?P<alias>[^/@:]+)|/(?P<version>[0-9]+))")


def from_registry(uri: str, rest: str) -> Path:
    """The folder of a registered version."""
    match = _MLFLOW.fullmatch(rest)
    if match is None:
        raise UserError(
            FailureReason.URI_INVALID,
            f"{uri}: write mlflow://NAME@ALIAS or mlflow://NAME/VERSION, for example mlflow://qa/3",
        )
    if not os.environ.get(Env.MLFLOW_TRACKING_URI):
        raise UserError(
            FailureReason.MLFLOW_MISSING, f"{uri}: set {Env.MLFLOW_TRACKING_URI} to the address of the MLflow server"
        )
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
                    FailureReason.DOWNLOAD_DAMAGED,
                    f"{uri}: what was downloaded has digest {got[:12]}, not {wanted[:12]}",
                )

        return cached(key, fill)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(
                FailureReason.MODEL_NOT_FOUND,
                f"{uri}: MLflow has no such version or alias; see its Models page, and correct the URI",
            ) from error
        if disk_full(error):
            raise
        raise mlflow_away(error.error_code, f"{uri} is fetched when it does") from error
