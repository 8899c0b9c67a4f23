"""How files that lay beside a manifest are kept in MLflow's artifact server: `llmops push` writes it, the programs read it.

    llmops/blobs/<first two digits of sha256>/<sha256>     the bytes of one file
    llmops/trees/<sha256>                                  a `Tree`: which file is which blob

Both are named by the sha256 of their own bytes, so that nothing is ever changed or stored twice. A tree is written after all its
blobs: where there is a tree, all of it is there. A blob may have been cut off on its way and is there only when its size is right;
whoever reads one compares its sha256. `artifact://<sha256 of a tree>/<name>` is a file of that tree, or a folder of it.
The paths are below `/api/2.0/mlflow-artifacts/artifacts/` of an MLflow server.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Self
from urllib.parse import quote, unquote

from pydantic import Field, model_validator

from llmops_api.v1alpha1.meta import Model

SCHEME = "artifact"
ROOT = "llmops"
SERVER_PATH = "/api/2.0/mlflow-artifacts/artifacts"
"""Where an MLflow server answers: GET and PUT of a path below it; GET with `?path=` lists a folder."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_URI = re.compile(rf"{SCHEME}://(?P<tree>[0-9a-f]{{64}})/(?P<name>[^?#]+)")


class TreeFile(Model):
    """A file of a tree; `path` is relative, with slashes, and leads nowhere else."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _stays_inside(self) -> Self:
        if not is_inside(self.path):
            raise ValueError(f"{self.path!r} is no path below a folder: write one without .., without a leading slash")
        return self


class Tree(Model):
    """A file or folder that was stored, with all files below it, by path."""

    files: tuple[TreeFile, ...]

    @classmethod
    def of(cls, files: Iterable[TreeFile]) -> Tree:
        """The tree of some files, in whatever order they come."""
        return cls(files=tuple(sorted(files, key=lambda file: file.path)))

    def to_bytes(self) -> bytes:
        """The bytes that are stored: equal trees have equal bytes."""
        text = json.dumps(self.dump(), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return text.encode()

    def below(self, name: str) -> tuple[TreeFile, ...]:
        """The file `name`, or the files of the folder `name`; empty when there is neither."""
        return tuple(file for file in self.files if file.path == name or file.path.startswith(f"{name}/"))


def is_inside(path: str) -> bool:
    """Whether a path with slashes stays below the folder that it is put in."""
    parts = PurePosixPath(path).parts
    return "/".join(parts) == path and ".." not in parts and not path.startswith("/") and not {"\\", "\0"} & set(path)


def sha256_of(data: bytes) -> str:
    """The name of what holds these bytes."""
    return hashlib.sha256(data).hexdigest()


def blob_path(sha256: str) -> str:
    """Where a file's bytes lie."""
    return f"{blob_folder(sha256)}/{sha256}"


def blob_folder(sha256: str) -> str:
    """The folder of a blob: one of 256, so that a list of one stays short."""
    return f"{ROOT}/blobs/{sha256[:2]}"


def tree_path(sha256: str) -> str:
    """Where a tree lies."""
    return f"{ROOT}/trees/{sha256}"


def artifact_uri(tree: str, name: str) -> str:
    """The URI of the file or folder `name` of a tree."""
    return f"{SCHEME}://{tree}/{quote(name)}"


def parse_artifact_uri(uri: str) -> tuple[str, str]:
    """The sha256 of the tree, and the name in it. Raises `ValueError` with what to write."""
    match = _URI.fullmatch(uri)
    name = unquote(match["name"]).rstrip("/") if match else ""
    if match is None or not is_inside(name):
        raise ValueError(f"{uri!r} is not what `llmops push` prints: write {SCHEME}://<sha256>/<name>, or push again")
    return match["tree"], name


def authorization(environment: Mapping[str, str]) -> dict[str, str]:
    """The header that says who asks, by the variables that MLflow's own client reads; a password goes before a token, as there."""
    user, password = environment.get("MLFLOW_TRACKING_USERNAME"), environment.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    token = environment.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
