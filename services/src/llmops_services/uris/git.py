"""Folders and files of git repositories: `git+https://host/repository@ref#path`. `ref` is a branch, a tag or a commit."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from llmops_api.reasons import FailureReason
from llmops_services.program import TryAgain, UserError
from llmops_services.uris.cache import cached
from llmops_services.uris.token import token_of

log = logging.getLogger(__name__)

_GIT = re.compile(r"git\+(?P<address>https?://[^/@#]+/[^@#]+)(?:@(?P<ref>[^@#\s-][^@#\s]*))?(?:#(?P<path>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
ASK_SECONDS, FETCH_SECONDS = 60, 1800


def from_git(uri: str) -> Path:
    """The path in a checkout of the commit that the ref names now. Raises `UserError` and `TryAgain`."""
    match = _GIT.fullmatch(uri)
    inside = PurePosixPath(unquote(match["path"] or "")) if match else PurePosixPath()
    if match is None or ".." in inside.parts or inside.is_absolute():
        raise UserError(
            FailureReason.URI_INVALID, f"{uri}: write git+https://host/repository@ref#path/in/it, with no .. in it"
        )
    address, ref = match["address"], match["ref"] or "HEAD"
    commit = ref if _COMMIT.fullmatch(ref) else _commit_of(uri, address, ref)

    def fill(folder: Path) -> None:
        log.info("fetching %s: %s is commit %s", address, ref, commit)
        _git(uri, "init", "--quiet", str(folder))
        _git(uri, "-C", str(folder), "fetch", "--quiet", "--depth", "1", address, commit, seconds=FETCH_SECONDS)
        _git(uri, "-C", str(folder), "checkout", "--quiet", "--detach", "FETCH_HEAD", seconds=FETCH_SECONDS)
        shutil.rmtree(folder / ".git")

    name = PurePosixPath(urlsplit(address).path).name.removesuffix(".git")
    where = hashlib.sha256(address.encode()).hexdigest()[:8]
    folder = cached(f"{name}-{where}-{commit[:16]}", fill)
    found = (folder / inside).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise UserError(FailureReason.URI_INVALID, f"{uri}: {inside} leads out of the repository; write a path in it")
    return found


def _commit_of(uri: str, address: str, ref: str) -> str:
    lines = _git(uri, "ls-remote", address, ref, f"{ref}^{{}}").splitlines()
    named = {name: commit for commit, _, name in (line.partition("\t") for line in lines)}
    # A tag with a message is an object of its own; `^{}` is the commit that it names.
    for name in (f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}", ref):
        if name in named:
            return named[name]
    raise UserError(
        FailureReason.REVISION_MISSING, f"{uri}: the repository has no branch or tag {ref}; correct what follows @"
    )


def _git(uri: str, *arguments: str, seconds: float = ASK_SECONDS) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C"}
    if token := token_of(uri):
        # In the environment, because arguments can be seen by everybody on the machine.
        basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        env |= {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
        }
    try:
        return subprocess.run(
            ["git", *arguments],
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        ).stdout
    except FileNotFoundError as error:
        raise UserError(
            FailureReason.GIT_MISSING, f"{uri}: git is not installed here; install it, or write another URI"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise TryAgain(FailureReason.SERVER_UNREACHABLE, f"{uri}: git had no answer within {seconds} s") from error
    except subprocess.CalledProcessError as error:
        raise _meaning(uri, error.stderr.strip()) from error


def _meaning(uri: str, said: str) -> UserError | TryAgain:
    last = said.splitlines()[-1] if said else "it says nothing"
    if "No space left" in said:
        return TryAgain(FailureReason.DISK_FULL, f"{uri}: no space left on the disk; free some, it goes on by itself")
    if "could not read Username" in said or "Authentication failed" in said or "403" in said:
        return UserError(
            FailureReason.ACCESS_DENIED, f"{uri}: git was refused ({last}): name a token that may read it in secretRef"
        )
    if "not found" in said or "not our ref" in said or "couldn't find remote ref" in said:
        return UserError(
            FailureReason.REPOSITORY_MISSING, f"{uri}: there is no such repository or commit ({last}); correct the URI"
        )
    return TryAgain(FailureReason.SERVER_UNREACHABLE, f"{uri}: git failed ({last})")
