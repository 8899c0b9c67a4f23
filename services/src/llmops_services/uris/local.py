"""What lies on this machine: files, files of Python packages and of mounted claims; a GGUF file becomes a folder of safetensors."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from llmops_api.reasons import FailureReason
from llmops_services.program import UserError
from llmops_services.uris.cache import cached, file_digest

log = logging.getLogger(__name__)

CLAIMS = Path("/mnt/pvc")
"""In a cluster each claim that a `pvc://` URI names is mounted here, under its own name."""


def readable(uri: str, path: Path) -> Path:
    """A path that can be read; a GGUF file is converted."""
    try:
        there = path.exists()
    except PermissionError as error:
        raise UserError(
            FailureReason.FILE_UNREADABLE,
            f"{uri}: {path} may not be read, because a folder above it may not be entered; allow it (chmod +x)",
        ) from error
    if not there:
        raise UserError(
            FailureReason.FILE_MISSING, f"{uri}: there is no {path}; correct the path, or put the file there"
        )
    if not os.access(path, os.R_OK):
        raise UserError(FailureReason.FILE_UNREADABLE, f"{uri}: {path} may not be read; allow it (chmod +r)")
    return _converted(path) if path.suffix == ".gguf" else path.absolute()


def on_claim(uri: str, rest: str) -> Path:
    """What lies on a claim."""
    claim, _, inside = rest.partition("/")
    parts = PurePosixPath(unquote(inside)).parts
    if not claim or ".." in parts or "/" in parts:
        raise UserError(FailureReason.URI_INVALID, f"{uri}: write pvc://CLAIM/path/on/the/claim, with no .. in it")
    folder = CLAIMS / claim
    if not folder.is_dir():
        raise UserError(
            FailureReason.CLAIM_MISSING,
            f"{uri}: the claim is not mounted at {folder}. Claims are mounted in a cluster; on this machine write file:// and "
            "the path of the same folder",
        )
    return folder.joinpath(*parts)


def in_package(uri: str, rest: str) -> Path:
    """What lies in an installed Python package, which is not imported for it."""
    module, _, inside = rest.partition("/")
    parts = PurePosixPath(unquote(inside)).parts
    if not module.isidentifier() or ".." in parts or PurePosixPath(inside).is_absolute():
        raise UserError(FailureReason.URI_INVALID, f"{uri}: write pkg://MODULE/path/in/the/package, with no .. in it")
    spec = importlib.util.find_spec(module)  # of a top-level name: does not import it
    roots = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    if not roots:
        raise UserError(
            FailureReason.PACKAGE_MISSING,
            f"{uri}: no Python package {module} is installed here; install it, or correct the name",
        )
    places = [root.joinpath(*parts) for root in roots]
    return next((place for place in places if place.exists()), places[0])


def _converted(path: Path) -> Path:
    digest = file_digest(path)

    def fill(folder: Path) -> None:
        start = time.monotonic()
        log.info("converting %s (%.0f MB) to safetensors, once", path, path.stat().st_size / 1e6)
        try:
            _convert_gguf(path, folder)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise UserError(
                FailureReason.MODEL_UNREADABLE,
                f"{path} cannot be converted ({error}); give a GGUF file that transformers reads, or a safetensors folder",
            ) from error
        log.info("converted in %.0f s", time.monotonic() - start)

    return cached(f"{path.stem}-{digest[:16]}", fill)


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
