"""How every program begins and ends: its config file, its progress and result files, and its documented exit codes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from llmops_api.programs import Env, ExitCode, Failure, Said
from llmops_api.reasons import FailureReason
from llmops_api.v1alpha1.meta import Model, Progress
from llmops_services.shortages import disk_full

log = logging.getLogger(__name__)

C = TypeVar("C", bound=BaseModel)

ROOM_FOR_ANYTHING = 1 << 20
"""With fewer bytes free a disk counts as full."""


class UserError(Exception):
    """The user's mistake: never retried. The message says what is wrong, where, and what to write instead."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TryAgain(Exception):
    """Something outside did not answer; the same again later may work."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def mlflow_away(cause: str, meanwhile: str) -> TryAgain:
    """What to say when MLflow does not answer; `meanwhile` says what becomes of the work."""
    return TryAgain(
        FailureReason.MLFLOW_UNREACHABLE,
        f"MLflow at {os.environ.get(Env.MLFLOW_TRACKING_URI)} does not answer ({cause}): see whether it runs and what its log says, "
        f"or correct {Env.MLFLOW_TRACKING_URI}; {meanwhile}",
    )


def load_config(model: type[C], path: str | os.PathLike[str]) -> C:
    """Read and check a JSON config file. Raises `UserError` that names file and field."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            FailureReason.CONFIG_MISSING, f"{path}: cannot be read ({error.strerror}); give the path of a JSON file"
        ) from error
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise UserError(FailureReason.CONFIG_INVALID, f"{path}: {faults}") from error


def write_json(path: str | os.PathLike[str], value: Model) -> None:
    """Write aside and rename, so that a reader never sees half a file."""
    target = Path(path)
    aside = target.with_name(f"{target.name}.{os.getpid()}.new")
    aside.write_text(json.dumps(value.dump()), encoding="utf-8")
    aside.replace(target)


def say(what: Said, value: Model) -> None:
    """Say it as one line of standard output, written at once so that no other line gets into it."""
    sys.stdout.write(f"{what}{json.dumps(value.dump())}\n")
    sys.stdout.flush()


class ProgressReporter:
    """Writes samples of the progress to `Env.PROGRESS_FILE` at most twice a second, and every change of `doing`; without that
    file it says one on standard output every five seconds at most.
    """

    def __init__(self) -> None:
        self._path = os.environ.get(Env.PROGRESS_FILE)
        self._written = float("-inf")
        self._doing = ""

    def report(self, progress: Progress) -> None:
        """Take a sample. One that cannot be written is dropped: progress is never worth failing for."""
        now = time.monotonic()
        if now - self._written < (0.5 if self._path else 5.0) and not (self._path and self._matters(progress)):
            return
        self._written, self._doing = now, progress.doing
        try:
            if self._path:
                write_json(self._path, progress)
            else:
                say(Said.PROGRESS, progress)
        except OSError as error:
            log.warning("cannot report progress: %s", error)

    def _matters(self, progress: Progress) -> bool:
        return progress.doing != self._doing or progress.percent == 100


def run_program(main: Callable[[str], BaseModel | None]) -> None:
    """Run `main(config_path)` and leave with the exit code that its end calls for, its result or `Failure` written."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if len(sys.argv) != 2:
        print(f"usage: python -m {main.__module__.removesuffix('.__main__')} CONFIG.json", file=sys.stderr)
        sys.exit(ExitCode.USER_ERROR)
    try:
        result = main(sys.argv[1])
    except UserError as error:
        _fail(ExitCode.USER_ERROR, error.reason, str(error))
    except TryAgain as error:
        _fail(ExitCode.TRY_AGAIN, error.reason, str(error))
    except MemoryError as error:
        _fail(
            ExitCode.OUT_OF_MEMORY,
            FailureReason.OUT_OF_MEMORY,
            str(error) or "not enough memory: lower batchSize or the lengths, or give more memory",
        )
    except Exception as error:
        if not disk_full(error):
            raise
        where = getattr(error, "filename", None) or _full_folder()
        _fail(
            ExitCode.TRY_AGAIN,
            FailureReason.DISK_FULL,
            f"{where}: no space left on the disk; free some, it goes on by itself",
        )
    else:
        if isinstance(result, Model):
            _leave(result)


def _full_folder() -> str:
    """The folder that a write may have failed in which does not say where it was."""
    known = (os.environ.get(Env.STATE_DIR), os.environ.get(Env.CACHE_DIR), tempfile.gettempdir())
    return next((one for one in known if one and shutil.disk_usage(one).free < ROOM_FOR_ANYTHING), "a file")


def _leave(result: Model) -> None:
    if path := os.environ.get(Env.RESULT_FILE):
        write_json(path, result)
    else:
        say(Said.RESULT, result)


def _fail(code: ExitCode, reason: FailureReason, message: str) -> None:
    log.error("%s: %s", reason, message)
    try:
        _leave(Failure(reason=reason, message=message[:3000]))
    except OSError as error:
        log.warning("cannot write the result: %s", error)
    sys.exit(code)
