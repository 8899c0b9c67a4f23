"""The folders that outlive a try: those of one object, which go with it, and the cache that all programs share."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from llmops_operator.backends.local.durable import read_json, write_json
from llmops_operator.backends.local.home import Home
from llmops_operator.domain.workload import Owner, Scope, Volume, Workload

OWNER = ".owner.json"
"""In the folder of an object's volumes: whose they are, so that those of an object that vanished can be found."""


def path(home: Home, owner: Owner, volume: Volume) -> Path:
    """Where a volume lies."""
    return home.cache if volume.scope is Scope.SHARED else home.volumes(owner) / volume.name


def make(home: Home, owner: Owner, workload: Workload) -> bool:
    """Make the folders of a workload's volumes. True when the object has folders of its own now. Raises `OSError`."""
    own = any(volume.scope is Scope.OBJECT for volume in workload.volumes)
    record = home.volumes(owner) / OWNER
    if own and not record.exists():
        write_json(record, asdict(owner))
    for volume in workload.volumes:
        path(home, owner, volume).mkdir(parents=True, exist_ok=True)
    return own


def owners(home: Home) -> set[Owner]:
    """The objects that have folders."""
    records = (read_json(record) for record in (home.root / "volumes").glob(f"*/{OWNER}"))
    return {Owner(**record) for record in records if record is not None}


def discard(home: Home, owner: Owner) -> None:
    """Delete the folders of an object, the record last, so that what is left of them can still be found."""
    folder = home.volumes(owner)
    for inner in folder.glob("*"):
        if inner.name != OWNER:
            shutil.rmtree(inner, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
