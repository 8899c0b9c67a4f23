"""Ray around the workers: a cluster of the job's own or a given one, Ray Train's run, and what its errors mean."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmops_api.programs import ExitCode, TrainingConfig
from llmops_api.reasons import FailureReason
from llmops_api.v1alpha1.meta import Compute
from llmops_services.allocation import KEPT_BYTES
from llmops_services.program import TryAgain, UserError
from llmops_services.shortages import oom_kills
from llmops_services.training.state import State

log = logging.getLogger(__name__)

_RAY_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray lets its workers wait for everything else on the machine; here they are the work
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # file URIs stay relative to where the program was started
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less; the control plane starts the next attempt
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it makes what dill captures come out in the log
    # A step allocates and frees hundreds of MB: glibc would give them back to the kernel each time, and the page faults of
    # getting them again cost a quarter of a step on a CPU (bench/training.py).
    "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def fit(config: TrainingConfig, state: State, started: Callable[[], None]) -> None:
    """Run the workers until they are done; `started` is called when Ray is up. Raises `UserError`, `TryAgain` or `MemoryError` as they ended."""
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    from llmops_services.training.worker import OUT_OF_MEMORY, WorkerEnded, train_worker

    compute = config.spec.compute
    scratch = ray_folder(state)
    cores = _cores(compute)
    _start_ray(cores * compute.workers, scratch)
    killed_before = oom_kills()
    try:
        started()
        on_gpu, processes = spread(compute, int(ray.cluster_resources().get("GPU", 0)))  # type: ignore[no-untyped-call]
        cpus = cores * compute.workers / processes
        trainer = (TorchTrainer if "RAY_ADDRESS" in os.environ else lean(TorchTrainer))(
            train_worker,
            train_loop_config={
                "config": config.dump(),
                "state": str(state.folder),
                "threads": max(1, int(cpus)),
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=processes, use_gpu=on_gpu, resources_per_worker={"CPU": int(cpus) or cpus}
            ),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # Ray's types are those of its older trainer
                name=state.checkpoints.name,
                storage_path=str(state.folder),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.spec.checkpoint.keep),
                # Fewer GPUs than workers are for none of them, but torch takes what it sees; Ray has it look before our code runs.
                worker_runtime_env={} if on_gpu else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}},
            ),
        )
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        causes = list(error.worker_failures.values())
        ended = next((end for cause in causes if (end := _find(cause, WorkerEnded))), None)
        if ended is None:
            out_of_memory = any(_find(cause, ray.exceptions.OutOfMemoryError) for cause in causes)
            if out_of_memory or oom_kills() > killed_before:
                raise MemoryError(OUT_OF_MEMORY) from error
            if any(_find(cause, ray.exceptions.RayActorError) for cause in causes):
                raise TryAgain(
                    FailureReason.WORKER_LOST, f"a training worker died: {str(causes[0]).splitlines()[0]}"
                ) from error
            raise
        if ended.code is ExitCode.USER_ERROR:
            raise UserError(ended.reason, ended.message) from error
        if ended.code is ExitCode.OUT_OF_MEMORY:
            raise MemoryError(ended.message) from error
        raise TryAgain(ended.reason, ended.message) from error
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def spread(compute: Compute, gpus: int) -> tuple[bool, int]:
    """Whether to train on GPUs of a cluster that has so many, and in how many processes: one for each GPU that is asked for; where
    there are fewer, one a worker.
    """
    processes = compute.shares if gpus >= compute.shares else compute.workers
    return gpus >= processes, processes


def ray_folder(state: State) -> Path:
    """Where the job's own Ray keeps its sockets and logs: always the same for a job, so that a killed attempt's are found, and
    short, for a socket's path holds 107 characters.
    """
    return Path(tempfile.gettempdir()) / f"llmops-ray-{hashlib.sha256(str(state.folder).encode()).hexdigest()[:10]}"


def lean(trainer: Any) -> Any:
    """A Ray trainer without two of the processes that Ray starts for each training, which cost a laptop ten seconds: the one
    that frees what a dead controller had reserved (our cluster dies with the driver) and the one for Ray Data (not used here).
    """

    class Lean(trainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            spared = ("PlacementGroupCleanerCallback", "DatasetsCallback")
            return [each for each in super()._create_default_callbacks() if type(each).__name__ not in spared]

    return Lean


def _start_ray(cores: int, scratch: Path) -> None:
    """Connect to the cluster of `RAY_ADDRESS`, or start one with so many cores for this job alone, with its files in `scratch`."""
    import ray

    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level=logging.WARNING)
        return
    for attempt in (1, 2):  # Ray gives its own processes 30 s to start, which a busy machine may not hold
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            ray.init(
                include_dashboard=False,
                num_cpus=max(os.cpu_count() or 1, cores),
                object_store_memory=100 << 20,  # checkpoints go to the disk, and nothing else is exchanged
                logging_level=logging.WARNING,
                _temp_dir=str(scratch),
                # processes that wait for work would each import Ray for nothing: the workers get ones of their own
                _system_config={"prestart_worker_first_driver": False},
            )
        except Exception as error:
            ray.shutdown()
            log.warning("Ray did not start: %s", error)
            if attempt == 2:
                raise TryAgain(FailureReason.RAY_NOT_STARTED, f"Ray did not start: {error}") from error
        else:
            return


def _cores(compute: Compute) -> int:
    """CPUs of each worker: what the spec asks for, or else a fair share of this machine's."""
    asked = compute.resources.cpu
    if asked is not None:
        cores = float(asked[:-1]) / 1000 if asked.endswith("m") else float(asked)
        return max(1, math.ceil(cores))
    return max(1, (os.cpu_count() or 1) // compute.workers)


def _find(error: BaseException | None, kind: type[Any]) -> Any:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kind):
            return error
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__
    return None
