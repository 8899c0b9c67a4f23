"""The driver: check first, then train on Ray what is left to train, then register. It never holds the model."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque

from llmops_api.lineage import DatasetContext
from llmops_api.programs import TrainingConfig, TrainingResult
from llmops_api.v1alpha1.meta import Progress
from llmops_services.evaluation.scores import decimal_string
from llmops_services.program import ProgressReporter, UserError, load_config
from llmops_services.training.cluster import fit
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
    finished = state.finished()
    if finished is None:
        finished = train(config, state, reporter, tracker)
    else:
        tracker.start()
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


def train(config: TrainingConfig, state: State, reporter: ProgressReporter, tracker: Tracker) -> Finished:
    """Train on Ray until the state folder says that only registering is left.

    The tracker starts when Ray has: what it imports would keep Ray waiting.
    """
    state.prune(config.spec.checkpoint.keep)
    relay = _Relay(state, reporter)
    relay.start()
    try:
        fit(config, state, tracker.start)
    except UserError:
        _end_run(tracker)
        raise
    finally:
        relay.end()
    state.prune(config.spec.checkpoint.keep)  # Ray counts this attempt's checkpoints only
    finished = state.finished()
    assert finished is not None, "a worker that ended well has written finished.json"
    return finished


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
