"""Lineage in MLflow: one daemon thread writes what is recorded, retries what fails, and watches the model registry.

The MLflow client blocks, so nothing but this thread ever calls it. What is waiting is bounded; what was written is remembered
while the controllers may still ask for it, and found again in MLflow when it was forgotten.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mlflow import MlflowClient, environment_variables
from mlflow.exceptions import MlflowException

from llmops_api.lineage import ModelType
from llmops_api.reasons import FailureReason, Reason
from llmops_api.v1alpha1.rag_service import RegisteredModel
from llmops_operator.controllers.lineage import writing
from llmops_operator.controllers.lineage.writing import NotYet
from llmops_operator.controllers.ports import Key
from llmops_operator.domain.lineage import (
    Record,
    Recorded,
    RecordState,
    RegisteredVersion,
    Resolution,
    Unrecorded,
    Unresolved,
)
from llmops_operator.domain.timing import timestamp

log = logging.getLogger(__name__)

REMEMBERED = 10_000
"""So many objects' records are remembered."""
TRIES_FOR_OTHERS = 5
"""So often a record waits for what it points at before it is written without."""

Id = tuple[str, str]
"""(uid, key of the record)"""


@dataclass
class Waiting:
    """A record that is not written yet. `due` is on the monotonic clock."""

    key: Key
    record: Record
    due: float = 0.0
    failures: int = 0


class MlflowLineage:
    """Implements `controllers.lineage.port.Lineage`. Seconds: `timeout` of one request, `poll` between two looks at the registry,
    `retry` and `retry_cap` the least and longest pause after a failure. Addresses of pages begin with `external_url`, where the
    server is another one for people than for this process.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        external_url: str | None = None,
        timeout: int = 5,
        poll: float = 2.0,
        retry: float = 1.0,
        retry_cap: float = 30.0,
        capacity: int = 10_000,
    ) -> None:
        self._uri, self._poll, self._retry, self._cap, self._capacity = tracking_uri, poll, retry, retry_cap, capacity
        self._pages = (external_url or tracking_uri).rstrip("/")
        self._changed = threading.Condition()
        self._waiting: OrderedDict[Id, Waiting] = OrderedDict()
        self._states: OrderedDict[str, dict[str, Recorded | Unrecorded]] = OrderedDict()
        self._watched: dict[Key, RegisteredModel] = {}
        self._versions: dict[RegisteredModel, Resolution] = {}
        self._outage: Unrecorded | None = None
        self._outage_failures = 0
        self._stopping = False
        self.errors = 0
        """How many calls of MLflow have failed."""
        self._tell: Callable[[Key], None] = lambda key: None
        self._thread = threading.Thread(target=self._run, name="lineage", daemon=True)
        # As defaults, not in the environment: programs started from this process would inherit that. The user's own values win.
        environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.default = timeout
        environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.default = 0
        environment_variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.default = True

    # From the event loop's thread

    def start(self, listener: Callable[[Key], None]) -> None:
        """Start the thread."""
        loop = asyncio.get_running_loop()

        def tell(key: Key) -> None:
            try:
                loop.call_soon_threadsafe(listener, key)
            except RuntimeError:
                log.debug("the event loop is closed; nobody is told about %s", key)

        self._tell = tell
        self._thread.start()

    def stop(self, patience: float = 5.0) -> None:
        """Have what is due written, then end. Returns after `patience` seconds at most; what is left is asked for again next time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(patience)

    def record(self, key: Key, record: Record) -> bool:
        """Have a record written."""
        id_ = (record.owner.uid, record.key)
        with self._changed:
            if id_ in self._waiting or isinstance(self._states.get(id_[0], {}).get(id_[1]), Recorded):
                return True
            if len(self._waiting) >= self._capacity:
                return False
            self._waiting[id_] = Waiting(key, record)
            if self._outage:
                self._set_state(id_, self._outage)
                self._tell(key)
            self._changed.notify()
        return True

    def states(self, uid: str) -> RecordState:
        """How the records of an object stand."""
        with self._changed:
            return RecordState(by_key=dict(self._states.get(uid, {})))

    def resolve(self, key: Key, reference: RegisteredModel | None) -> Resolution | None:
        """The version that a reference names, as last seen."""
        with self._changed:
            if reference is None:
                old = self._watched.pop(key, None)
                if old is not None and old not in self._watched.values():
                    self._versions.pop(old, None)
                return None
            if self._watched.get(key) != reference:
                self._watched[key] = reference
                self._changed.notify()
            return self._versions.get(reference)

    def run_url(self, experiment_id: str, run_id: str) -> str | None:
        """The address of a run's page."""
        return writing.run_url(self._pages, experiment_id, run_id)

    # In the thread

    def _run(self) -> None:
        client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        look_at = 0.0
        while True:
            with self._changed:
                waiting = self._next()
                if waiting is None and self._stopping:
                    return
                now = time.monotonic()
                unknown = any(reference not in self._versions for reference in self._watched.values())
                look = bool(self._watched) and (now >= look_at or (unknown and self._outage is None))
                if waiting is None and not look:
                    self._changed.wait(self._pause(now, look_at))
                    continue
            if look and not self._stopping:
                look_at = time.monotonic() + self._poll
                self._look_at_registry(client)
            if waiting is not None:
                self._write(client, waiting)

    def _next(self) -> Waiting | None:
        now = time.monotonic()
        return next((one for one in self._waiting.values() if one.due <= now), None)

    def _pause(self, now: float, look_at: float) -> float | None:
        times = [one.due for one in self._waiting.values()]
        if self._watched:
            times.append(look_at)
        return max(0.01, min(times) - now) if times else None

    def _write(self, client: MlflowClient, waiting: Waiting) -> None:
        record = waiting.record
        id_ = (record.owner.uid, record.key)
        try:
            recorded = writing.write(client, record, last_try=waiting.failures >= TRIES_FOR_OTHERS)
            if recorded.run_url:
                page = recorded.run_url.removeprefix(self._uri.rstrip("/"))
                recorded = replace(recorded, run_url=f"{self._pages}{page}")
        except NotYet:
            with self._changed:
                self._put_off(waiting)
        except Exception as error:
            self._failed(waiting, error)
        else:
            with self._changed:
                self._waiting.pop(id_, None)
                self._set_state(id_, recorded)
                self._recovered()
            self._tell(waiting.key)

    def _put_off(self, waiting: Waiting) -> None:
        waiting.failures += 1
        waiting.due = time.monotonic() + min(self._cap, self._retry * 2.0 ** min(waiting.failures - 1, 30))

    def _failed(self, waiting: Waiting, error: Exception) -> None:
        """One that MLflow refuses waits by itself; when MLflow does not answer, all wait."""
        self.errors += 1
        said = Unrecorded(_said(error), timestamp(datetime.now(UTC)))
        with self._changed:
            if _refused(error):
                self._put_off(waiting)
                id_ = (waiting.record.owner.uid, waiting.record.key)
                known = self._states.get(id_[0], {}).get(id_[1])
                if not isinstance(known, Unrecorded) or known.error != said.error:
                    log.warning("MLflow refuses a record of %s %s/%s: %s", *waiting.key, said.error)
                    self._set_state(id_, said)
                    self._tell(waiting.key)
                return
            self._out(said)

    def _out(self, said: Unrecorded) -> None:
        """MLflow does not answer: everything waits, and everybody who waits is told once."""
        self._outage_failures += 1
        pause = time.monotonic() + min(self._cap, self._retry * 2.0 ** min(self._outage_failures - 1, 30))
        began = self._outage is None
        if began:
            log.warning("MLflow does not answer: %s; it is tried again until it does", said.error)
        self._outage = self._outage or said
        for id_, one in self._waiting.items():
            one.due = max(one.due, pause)
            if began:
                self._set_state(id_, self._outage)
                self._tell(one.key)

    def _recovered(self) -> None:
        if self._outage is None:
            return
        log.info("MLflow answers again")
        self._outage, self._outage_failures = None, 0
        for one in self._waiting.values():
            one.due = 0.0

    def _set_state(self, id_: Id, state: Recorded | Unrecorded) -> None:
        self._states.setdefault(id_[0], {})[id_[1]] = state
        self._states.move_to_end(id_[0])
        while len(self._states) > REMEMBERED:
            self._states.popitem(last=False)

    def _look_at_registry(self, client: MlflowClient) -> None:
        with self._changed:
            references = {reference: self._versions.get(reference) for reference in self._watched.values()}
        for reference, known in references.items():
            if reference.version and isinstance(known, RegisteredVersion):
                continue
            try:
                found = _resolve(client, reference)
            except Exception as error:
                self.errors += 1
                said = Unrecorded(_said(error), timestamp(datetime.now(UTC)))
                if not _refused(error):
                    self._registry_away(said, references)
                    return
                found = Unresolved(Reason.REGISTRY_REFUSED, f"MLflow refuses to look up {reference.name}: {said.error}")
            self._found(reference, found)
            with self._changed:
                self._recovered()

    def _registry_away(self, said: Unrecorded, references: Mapping[RegisteredModel, Resolution | None]) -> None:
        """What is known stays known; of the rest it is said why not."""
        with self._changed:
            self._out(said)
            outage = self._outage or said
        message = f"MLflow has not answered since {outage.since}: {outage.error}; see whether it runs, it is asked until it does"
        for reference, known in references.items():
            if not isinstance(known, RegisteredVersion):
                self._found(reference, Unresolved(Reason.MLFLOW_UNAVAILABLE, message))

    def _found(self, reference: RegisteredModel, found: Resolution) -> None:
        with self._changed:
            if self._versions.get(reference) == found:
                return
            keys = [key for key, watched in self._watched.items() if watched == reference]
            if keys:
                self._versions[reference] = found
        for key in keys:
            self._tell(key)


def _resolve(client: MlflowClient, reference: RegisteredModel) -> Resolution:
    where = f"@{reference.alias}" if reference.alias else f"/{reference.version}"
    version = writing.registered_version(client, reference.name + where)
    if version is None:
        what = f'alias "{reference.alias}"' if reference.alias else f"version {reference.version}"
        return Unresolved(
            FailureReason.MODEL_NOT_FOUND,
            f'the model registry has no {what} of "{reference.name}": train and register it, or correct spec.model.adapter.model',
        )
    model_id = writing.logged_model_id(version)
    full = model_id is not None and client.get_logged_model(model_id).model_type == ModelType.FULL
    return RegisteredVersion(reference.name, str(version.version), adapter=not full)


def _refused(error: Exception) -> bool:
    """Whether MLflow answered and said no, so that only this record is to blame."""
    if not isinstance(error, MlflowException):
        return True
    return error.error_code not in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


def _said(error: Exception) -> str:
    return str(error).splitlines()[0][:500] if str(error) else type(error).__name__
