"""A training that runs out of disk or of memory, by a disk that is really full and a kernel that really kills."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from training_job import Job, the_run
from waiting import wait_until

from llmops_api.programs import ExitCode
from llmops_services.shortages import disk_full, memory_short

pytestmark = pytest.mark.timeout(280)

CONTROL_GROUPS = Path("/sys/fs/cgroup/memory")


def test_what_libraries_raise_when_a_disk_is_full_is_understood() -> None:
    import torch

    for save in (lambda: torch.save(torch.ones(1 << 20), "/dev/full"), lambda: Path("/dev/full").write_bytes(b"x")):
        with pytest.raises((RuntimeError, OSError)) as caught:
            save()
        assert disk_full(caught.value)
    assert disk_full(
        Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    )  # safetensors
    assert not disk_full(RuntimeError("PytorchStreamReader failed reading zip archive"))


def test_what_libraries_raise_when_memory_is_short_is_understood() -> None:
    import torch

    for allocate in (lambda: torch.empty(1 << 55), lambda: bytearray(1 << 55)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert memory_short(caught.value)
    assert not memory_short(RuntimeError("shapes do not match"))


@pytest.fixture
def small_disk(job: Job) -> Iterator[Path]:
    """The job's state folder as a disk of 8 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder = job.state.folder
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_in_the_middle_is_named_and_the_next_attempt_goes_on(
    job: Job, small_disk: Path, mlflow_client: Any
) -> None:
    job.spec["hyperparameters"]["maxSteps"] = 200
    process = job.start()
    ended = threading.Event()

    def fill() -> None:
        """Somebody else, who takes all that is left again and again."""
        with (small_disk / "of-somebody-else").open("wb", buffering=0) as file:
            while not ended.wait(0.005):
                with contextlib.suppress(OSError):
                    file.write(bytes(1 << 16))

    wait_until(lambda: job.state.latest_checkpoint() is not None, "a checkpoint")
    filling = threading.Thread(target=fill)
    filling.start()
    try:
        full = job.end(process)
    finally:
        ended.set()
        filling.join()
    assert (full["code"], full["reason"]) == (ExitCode.TRY_AGAIN, "DiskFull"), job.log()
    assert f"{small_disk}: no space left on the disk" in full["message"]
    reached = job.state.latest_checkpoint()
    assert reached is not None

    (small_disk / "of-somebody-else").unlink()
    result = job.end(job.start())
    assert result["code"] == ExitCode.DONE, job.log()
    assert f"going on from {reached}" in (job.folder / "log").read_text("utf-8")
    run = the_run(mlflow_client, job)
    points = mlflow_client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in points) == list(range(1, 201))
    assert len(mlflow_client.search_model_versions(f"name = '{job.folder.name}'")) == 1
