"""Repositories of the model hub: `hf://organisation/name@revision`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmops_api.programs import Env
from llmops_api.reasons import FailureReason
from llmops_services.program import TryAgain, UserError
from llmops_services.uris.cache import cache_dir
from llmops_services.uris.token import token_of

_HF = re.compile(r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^@\s]+))?")


def from_hub(uri: str, rest: str, revision: str | None) -> Path:
    """The folder of a repository at a revision."""
    match = _HF.fullmatch(rest)
    if match is None or "/" not in match["repo"]:
        raise UserError(
            FailureReason.URI_INVALID, f"{uri}: write hf://ORGANISATION/NAME or hf://ORGANISATION/NAME@REVISION"
        )
    if revision is not None and match["revision"] not in (None, revision):
        raise UserError(FailureReason.URI_INVALID, f"{uri}: also says revision {revision}; keep one of the two")
    revision = revision or match["revision"]
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "60")
    from huggingface_hub import errors, snapshot_download

    own_cache = os.environ.get(Env.CACHE_DIR) and not (os.environ.get("HF_HOME") or os.environ.get("HF_HUB_CACHE"))
    place = cache_dir() / "huggingface" if own_cache else None
    try:
        return Path(
            snapshot_download(match["repo"], revision=revision, cache_dir=place, etag_timeout=20, token=token_of(uri))
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(
            FailureReason.MODEL_NOT_FOUND,
            f"{uri}: the hub has no {match['repo']}{f' at {revision}' if revision else ''}, or hides it from this token; "
            "correct the name, or name a token that may read it in secretRef",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(
            FailureReason.MODEL_NOT_FOUND,
            f"{uri} is not in the cache and HF_HUB_OFFLINE forbids to fetch it; unset it, or write file://",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True", "ON", "YES"):
            raise UserError(
                FailureReason.MODEL_NOT_FOUND,
                f"{uri} is not in the cache and HF_HUB_OFFLINE forbids to fetch it; unset it, or write file://",
            ) from error
        if isinstance(error, OSError) and error.errno in (28, 122):
            raise
        raise TryAgain(
            FailureReason.HUB_UNREACHABLE,
            f"{uri}: the model hub does not answer ({type(error).__name__}): see whether this machine (in a cluster, the pod) may reach "
            "it, or needs HTTPS_PROXY or HF_ENDPOINT; it is tried again",
        ) from error
