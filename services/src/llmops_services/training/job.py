"""The driver: check first, then train on Ray what is left to train, then register. It never holds the model."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import Any

from llmops_api.lineage import DatasetContext
from llmops_api.programs import ExitCode, TrainingConfig, TrainingResult
from llmops_api.v1alpha1.meta import Progress
from llmops_services.evaluation.scores import decimal_string
from llmops_services.program import ProgressReporter, TryAgain, UserError, load_config
from llmops_services.training.data import read_examples
from llmops_services.training.journal import Entry, JournalReader
from llmops_services.training.progress import LOADING, REGISTERING, percent_of_job
from llmops_services.training.state import Finished, State
from llmops_services.training.tracking import DataFacts, Tracker
from llmops_services.uris import file_digest, local_path

log = logging.getLogger(__name__)

RELAY_SECONDS = 0.5


def main(config_path: str) -> TrainingResult:
    """Run a training job from where its state folder says it is. Raises `UserError`, `TryAgain` or `MemoryError`."""
    config = load_config(TrainingConfig, config_path)
    reporter = ProgressReporter()
    reporter.report(Progress(doing=LOADING))
    data = check_data(config)
    state = State.of_environment()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the tracker's own retries do not end that soon
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    tracker = Tracker(config, state, data)
    tracker.start()
    try:
        finished = state.finished() or train(config, state, reporter)
    except UserError:
        _end_run(tracker)
        raise
    reporter.report(Progress(doing=REGISTERING, percent=percent_of_job(REGISTERING, 0)))
    tracker.finish()
    result = _register(tracker, config, state, finished, data)
    reporter.report(Progress(doing=REGISTERING, step=finished.steps, total=finished.steps, percent=100, seconds_left=0))
    return result


def check_data(config: TrainingConfig) -> tuple[DataFacts, ...]:
    """Read all data files, before anything that takes time. Raises `UserError` with file and line."""
    spec = config.spec
    sources = [(DatasetContext.TRAINING, spec.data.train.uri)]
    if spec.evaluation:
        sources.append((DatasetContext.DOMAIN_EVALUATION, spec.evaluation.domain.uri))
        if spec.evaluation.general:
            sources.append((DatasetContext.GENERAL_EVALUATION, spec.evaluation.general.uri))
    facts = []
    for context, uri in sources:
        path = local_path(uri)
        rows = len(read_examples(path, spec.data.format))
        facts.append(DataFacts(context, uri, path, file_digest(path), rows))
    return tuple(facts)


def train(config: TrainingConfig, state: State, reporter: ProgressReporter) -> Finished:
    """Train on Ray until the state folder says that only registering is left."""
    state.prune(config.spec.checkpoint.keep)
    relay = _Relay(state, reporter)
    relay.start()
    try:
        _fit(config, state)
    finally:
        relay.end()
    finished = state.finished()
    assert finished is not None, "a worker that ended well has written finished.json"
    return finished


def _fit(config: TrainingConfig, state: State) -> None:
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    from llmops_services.training.worker import OUT_OF_MEMORY, WorkerEnded, train_worker

    compute = config.spec.compute
    scratch = Path(tempfile.gettempdir()) / f"llmops-ray-{config.object.uid[:8] or 'job'}"
    _start_ray(compute.workers, scratch)
    try:
        threads = _threads(config)
        on_gpu = ray.cluster_resources().get("GPU", 0) >= compute.workers
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "config": config.dump(),
                "state": str(state.folder),
                "threads": threads,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=compute.workers, use_gpu=on_gpu, resources_per_worker={"CPU": threads}
            ),
            run_config=ray.train.RunConfig(
                name=state.checkpoints.name,
                storage_path=str(state.folder),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.spec.checkpoint.keep),
            ),
        )
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        causes = list(error.worker_failures.values())
        ended = next((end for cause in causes if (end := _find(cause, WorkerEnded))), None)
        if ended is None:
            if any(_find(cause, ray.exceptions.OutOfMemoryError) for cause in causes):
                raise MemoryError(OUT_OF_MEMORY) from error
            if any(_find(cause, ray.exceptions.RayActorError) for cause in causes):
                raise TryAgain("WorkerLost", f"a training worker died: {str(causes[0]).splitlines()[0]}") from error
            raise
        if ended.code is ExitCode.USER_ERROR:
            raise UserError(ended.reason, ended.message) from error
        if ended.code is ExitCode.OUT_OF_MEMORY:
            raise MemoryError(ended.message) from error
        raise TryAgain(ended.reason, ended.message) from error
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


_RAY_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # file URIs stay relative to where the program was started
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def _start_ray(workers: int, scratch: Path) -> None:
    """Connect to the cluster of `RAY_ADDRESS`, or start one for this job alone, with its files in `scratch`."""
    import ray

    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level=logging.WARNING)
        return
    for attempt in (1, 2):  # Ray gives its own processes 30 s to start, which a busy machine may not hold
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            ray.init(
                include_dashboard=False,
                num_cpus=max(os.cpu_count() or 1, workers),
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
                raise TryAgain("RayNotStarted", f"Ray did not start: {error}") from error
        else:
            return


def _threads(config: TrainingConfig) -> int:
    """CPUs of each worker: what the spec asks for, or else a fair share of this machine's."""
    asked = config.spec.compute.resources.cpu
    if asked is not None:
        cores = float(asked[:-1]) / 1000 if asked.endswith("m") else float(asked)
        return max(1, math.ceil(cores))
    return max(1, (os.cpu_count() or 1) // config.spec.compute.workers)


def _find(error: BaseException | None, kind: type[Any]) -> Any:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kind):
            return error
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__
    return None


class _Relay(threading.Thread):
    """Passes the newest journal entry on as the program's progress."""

    def __init__(self, state: State, reporter: ProgressReporter) -> None:
        super().__init__(name="progress", daemon=True)
        self._reader, self._reporter, self._ending = JournalReader(state.journal), reporter, threading.Event()
        while deque(self._reader.read(), maxlen=1):  # what attempts before have said
            pass

    def run(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(RELAY_SECONDS)
            if newest := deque(self._reader.read(), maxlen=1):
                self._reporter.report(_progress(newest[0]))

    def end(self) -> None:
        self._ending.set()
        self.join(10)


def _progress(entry: Entry) -> Progress:
    loss = entry.metrics.get("loss")
    return Progress(
        doing=entry.doing,
        step=entry.step,
        total=entry.total,
        percent=entry.percent,
        seconds_left=entry.seconds_left,
        loss=None if loss is None else decimal_string(loss),
    )


def _register(
    tracker: Tracker, config: TrainingConfig, state: State, finished: Finished, data: tuple[DataFacts, ...]
) -> TrainingResult:
    from mlflow import MlflowClient

    from llmops_services.training.registry import register

    return tracker.retry(lambda: register(MlflowClient(), tracker.run_id, config, state, finished, data))


def _end_run(tracker: Tracker) -> None:
    """Close the run of a job that will not be tried again, if MLflow is there."""
    from mlflow import MlflowClient

    try:
        tracker.finish(patience=15)
        MlflowClient().set_terminated(tracker.run_id, "FAILED")
    except Exception as error:
        log.warning("the run stays open in MLflow: %s", error)
