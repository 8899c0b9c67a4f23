"""Embedding on the actors of a real Ray."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from index_program import Index, payloads, prose, start
from waiting import wait_until

from llmops_api.programs import ExitCode
from llmops_services.vectorstore.process import StoreProcess


def test_two_ray_data_actors_give_the_same_points(index: Index, store: StoreProcess, tmp_path: Path) -> None:
    index.write(**{f"d{number}": prose(number, 6) for number in range(30)})
    index.sync(embedding={**index.spec["embedding"], "batchSize": 8, "documentPrefix": "passage: "})
    wanted = index.points()
    index.client.delete_collection(next(iter(index.collections())))
    index.configure(compute={"workers": 2, "resources": {"cpu": "500m"}})
    process = start(index, store.url, progress=tmp_path / "progress.json")
    actors: set[int] = set()

    def ended() -> bool:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
            actors.update(child.pid for child in children if "MapBatches(_Worker)" in "".join(child.cmdline()))
        return process.poll() is not None

    wait_until(ended, "the sync", seconds=240)  # two actors import torch, on cores that others may have
    assert process.returncode == ExitCode.DONE
    assert len(actors) == 2
    found = index.points()
    assert payloads(found) == payloads(wanted)
    for key, record in found.items():
        assert isinstance(record.vector, dict)
        other = wanted[key].vector
        assert isinstance(other, dict)
        assert np.allclose(record.vector["dense"], other["dense"], atol=1e-5)
        assert record.vector["bm25"] == other["bm25"]
    assert json.loads((tmp_path / "progress.json").read_text())["percent"] == 100
