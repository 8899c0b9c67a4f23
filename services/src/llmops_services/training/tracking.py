"""The job's run in MLflow while it goes on: created once, fed from the journal by a thread that outlasts MLflow's absences.

Everything is looked up by the object's uid before it is created, so that any number of attempts leave one run.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmops_api.lineage import DATASET_CONTEXT, MANIFEST_ARTIFACT, DatasetContext, ModelType, Tag, digest32
from llmops_api.programs import TrainingConfig
from llmops_services.program import TryAgain, mlflow_away
from llmops_services.training.journal import Entry, JournalReader
from llmops_services.training.state import State

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 300.0
"""How long a finished training waits for MLflow before it gives up and leaves the rest to the next attempt."""
KEPT = "the training is kept"
FLUSH_SECONDS = 2.0
"""Metrics are gathered for this long: one write with many steps costs MLflow as much as one with a single step."""
ENTRIES_A_BATCH = 100
"""MLflow takes 1000 metrics in one request."""


@dataclass(frozen=True)
class DataFacts:
    """What MLflow is told about a data file."""

    context: DatasetContext
    uri: str
    path: Path
    sha256: str
    rows: int

    def entity(self) -> Dataset:
        """As MLflow's entity, whose digest holds 36 characters only; the whole hash is in the profile."""
        from mlflow.entities import Dataset

        return Dataset(
            name=self.path.stem,
            digest=digest32(self.sha256),
            source_type="local",
            source=json.dumps({"uri": self.uri}),
            profile=json.dumps({"num_rows": self.rows, "sha256": self.sha256}),
        )


class Tracker(threading.Thread):
    """Opens the run and sends it the samples, and the metrics of the journal, each step once, until `finish`."""

    def __init__(self, config: TrainingConfig, state: State, data: tuple[DataFacts, ...]) -> None:
        super().__init__(name="mlflow", daemon=True)
        self._config, self._state, self._data = config, state, data
        self._ending = threading.Event()
        self._deadline = float("inf")
        self._trouble = ""
        self._shown: set[tuple[Path, int]] = set()
        self.run_id = ""
        self.experiment_id = ""

    def run(self) -> None:
        """The thread's body: never raises; what went wrong last is in the error of `finish`."""
        try:
            client = self.retry(_client)
            run = self.retry(lambda: open_run(client, self._config, self._data))
            self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
            log.info("MLflow run %s in experiment %s", self.run_id, self.experiment_id)
            history = self.retry(lambda: client.get_metric_history(self.run_id, "loss"))
            self._follow(client, {metric.step for metric in history})
        except TryAgain:
            self._ending.wait()

    def finish(self, patience: float = PATIENCE_SECONDS) -> None:
        """Wait until all metrics are in MLflow. Raises `TryAgain` after `patience` seconds."""
        self._deadline = time.monotonic() + patience
        self._ending.set()
        self.join(patience + 60)  # a request on its way may take until its own timeout
        if self.is_alive() or self._trouble:
            raise mlflow_away(self._trouble or "no reply", KEPT)

    def retry(self, call: Callable[[], T]) -> T:
        """Call until it succeeds, with longer and longer pauses up to 10 s. Raises `TryAgain` after the deadline of `finish`."""
        pause = 0.5
        while True:
            try:
                result = call()
            except Exception as error:
                if not self._trouble:
                    log.warning("MLflow does not do what it is asked, trying again until it does: %s", error)
                self._trouble = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
                if time.monotonic() + pause > self._deadline:
                    raise mlflow_away(self._trouble, KEPT) from error
                threading.Event().wait(pause)
                pause = min(10.0, pause * 2)
            else:
                if self._trouble:
                    log.info("MLflow answers again")
                self._trouble = ""
                return result

    def _follow(self, client: MlflowClient, sent: set[int]) -> None:
        reader = JournalReader(self._state.journal)
        while True:
            ending = self._ending.is_set()  # asked before reading: what is written until now is then read
            self._show(client)
            while entries := list(reader.read()):
                fresh = []
                for entry in entries:
                    if entry.metrics and entry.step not in sent:
                        sent.add(entry.step)
                        fresh.append(entry)
                for start in range(0, len(fresh), ENTRIES_A_BATCH):
                    metrics = _metrics(fresh[start : start + ENTRIES_A_BATCH])
                    self.retry(lambda metrics=metrics: client.log_batch(self.run_id, metrics=metrics))  # type: ignore[misc]
            if ending:
                return
            self._ending.wait(FLUSH_SECONDS)

    def _show(self, client: MlflowClient) -> None:
        """Send the samples that were written since the last time."""
        for sample in self._state.samples:
            if sample.exists() and (written := (sample, sample.stat().st_mtime_ns)) not in self._shown:
                self.retry(lambda sample=sample: client.log_artifact(self.run_id, str(sample)))  # type: ignore[misc]
                self._shown.add(written)


def _metrics(entries: list[Entry]) -> list[Any]:
    from mlflow.entities import Metric

    # a retry sends the same time stamps again, and MLflow stores the same point once
    return [Metric(key, value, entry.time, entry.step) for entry in entries for key, value in entry.metrics.items()]


def _client() -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient()


def open_run(client: MlflowClient, config: TrainingConfig, data: tuple[DataFacts, ...]) -> Any:
    """The job's run, found by the uid of the object or created, with parameters, inputs and manifest; the same if called again."""
    from mlflow.entities import DatasetInput, InputTag, LoggedModelInput, Param, RunStatus

    obj = config.object
    experiment = _experiment(client, f"llmops/{obj.namespace}")
    found = client.search_runs([experiment], f"tags.`{Tag.UID}` = '{obj.uid}'", max_results=1)
    run = found[0] if found else client.create_run(experiment, run_name=obj.name, tags=_tags(config))
    run_id = run.info.run_id
    if run.info.status != RunStatus.to_string(RunStatus.RUNNING):
        client.update_run(run_id, "RUNNING")
    client.log_batch(run_id, params=[Param(key, value[:6000]) for key, value in _parameters(config).items()])
    inputs = [DatasetInput(facts.entity(), [InputTag(DATASET_CONTEXT, facts.context)]) for facts in data]
    client.log_inputs(run_id, datasets=inputs)
    client.log_inputs(run_id, models=[LoggedModelInput(_base_model(client, experiment, config))])
    if config.manifest:
        client.log_text(run_id, config.manifest, MANIFEST_ARTIFACT)
    return client.get_run(run_id)


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:  # another program was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
            assert found is not None
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _tags(config: TrainingConfig) -> dict[str, str]:
    obj = config.object
    return {
        **object_tags(config),
        Tag.GENERATION: str(obj.generation),
        "mlflow.source.name": f"{obj.kind}/{obj.namespace}/{obj.name}",
        "mlflow.source.type": "JOB",
    }


def object_tags(config: TrainingConfig) -> dict[str, str]:
    """Which object something in MLflow belongs to."""
    obj = config.object
    return {Tag.UID: obj.uid, Tag.KIND: obj.kind, Tag.NAMESPACE: obj.namespace, Tag.NAME: obj.name}


def _parameters(config: TrainingConfig) -> dict[str, str]:
    spec = config.spec.dump()
    for changeable in ("suspend", "backoffLimit", "activeDeadlineSeconds"):  # MLflow's parameters never change
        spec.pop(changeable, None)
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = json.dumps(value) if isinstance(value, (list, dict, bool)) else str(value)

    walk("", spec)
    return flat


def _base_model(client: MlflowClient, experiment: str, config: TrainingConfig) -> str:
    """The id of the logged model that the training starts from: the registered one, or an external one for this URI."""
    source = config.spec.base_model
    if source.uri.startswith("mlflow://"):
        name, _, version = source.uri.removeprefix("mlflow://").replace("@", "/@").partition("/")
        found = (
            client.get_model_version_by_alias(name, version[1:])
            if version.startswith("@")
            else client.get_model_version(name, version)
        )
        if str(found.source).startswith("models:/"):
            return str(found.source).removeprefix("models:/")
    uri = f"{source.uri}@{source.revision}" if source.revision else source.uri
    tag = uri.replace("'", "%27")
    known = client.search_logged_models(
        [experiment], f"tags.`{Tag.URI}` = '{tag}' AND model_type = '{ModelType.BASE}'", max_results=1
    )
    if known:
        return str(known[0].model_id)
    model = client.create_logged_model(
        experiment,
        name=logged_model_name(Path(uri.partition("://")[2]).name),
        model_type=ModelType.BASE,
        tags={Tag.URI: tag, "mlflow.model.isExternal": "true"},
    )
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def logged_model_name(text: str) -> str:
    """`text` without the characters that MLflow refuses in the name of a logged model."""
    return "".join("-" if char in "./:%\"'" else char for char in text)
