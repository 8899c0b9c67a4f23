"""A training that runs out of disk or of memory, by a disk that is really full and a kernel that really kills."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import filled, small_disk
from training_job import Job, lines, the_run
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
def disk(job: Job) -> Iterator[Path]:
    """The job's state folder as a disk of 8 MB."""
    with small_disk(job.state.folder, 8):
        yield job.state.folder


def test_a_disk_that_fills_up_in_the_middle_is_named_and_the_next_attempt_goes_on(
    job: Job, disk: Path, mlflow_client: Any
) -> None:
    job.spec["hyperparameters"]["maxSteps"] = 60
    process = job.start()
    wait_until(lambda: job.state.latest_checkpoint() is not None, "a checkpoint")
    with filled(disk):
        full = job.end(process)
    assert (full["code"], full["reason"]) == (ExitCode.TRY_AGAIN, "DiskFull"), job.log()
    assert f"{disk}: no space left on the disk" in full["message"]
    reached = job.state.latest_checkpoint()
    assert reached is not None

    result = job.end(job.start())
    assert result["code"] == ExitCode.DONE, job.log()
    assert f"going on from {reached}" in (job.folder / "log").read_text("utf-8")
    run = the_run(mlflow_client, job)
    points = mlflow_client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in points) == list(range(1, 61))
    assert len(mlflow_client.search_model_versions(f"name = '{job.folder.name}'")) == 1


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A control group of the kernel's whose memory can be limited."""
    group = CONTROL_GROUPS / f"llmops-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error}): that takes root and control groups v1")
    if not (group / "memory.limit_in_bytes").exists():
        group.rmdir()
        pytest.skip("no control group can be made here: that takes control groups v1")
    yield group
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.2)


def test_a_worker_that_the_kernel_kills_for_want_of_memory_is_told_what_to_lower(job: Job, control_group: Path) -> None:
    long = "It is alpha and beta and gamma, and delta after that. " * 20
    (job.folder / "train.jsonl").write_text(lines(128, 1).replace("It is", long), "utf-8")
    job.spec["data"]["maxLength"] = 1024
    job.spec["hyperparameters"] |= {"batchSize": 128, "gradientAccumulationSteps": 1}

    def join() -> None:
        (control_group / "cgroup.procs").write_text(str(os.getpid()))

    process = job.start(join)
    wait_until(lambda: job.progress().get("doing") == "evaluating before", "the evaluation")
    used = dict(line.split() for line in (control_group / "memory.stat").read_text().splitlines())
    (control_group / "memory.limit_in_bytes").write_text(str(int(used["total_rss"]) + (400 << 20)))
    result = job.end(process)
    assert (result["code"], result["reason"]) == (ExitCode.OUT_OF_MEMORY, "OutOfMemory"), job.log()
    assert "lower hyperparameters.batchSize or data.maxLength" in result["message"]
