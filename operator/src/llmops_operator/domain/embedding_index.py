"""An EmbeddingIndex: syncs whenever there is a reason for one, while the version before goes on serving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from llmops_api.names import index_alias
from llmops_api.programs import IndexingResult
from llmops_api.reasons import Reason
from llmops_api.v1alpha1.embedding_index import (
    DeletionPolicy,
    EmbeddingIndex,
    EmbeddingIndexCondition,
    EmbeddingIndexSpec,
    EmbeddingIndexStatus,
)
from llmops_api.v1alpha1.meta import Attempt, Condition, ConditionStatus
from llmops_operator.domain import attempts as tries_of
from llmops_operator.domain.attempts import Tries
from llmops_operator.domain.conditions import (
    Aspect,
    carried,
    fails,
    find,
    holds,
    is_true,
    reported,
    summarised,
    updated,
    waits,
)
from llmops_operator.domain.decision import Decision, Event, normal, owner_of, transitions, warning, without
from llmops_operator.domain.index_workloads import indexer, sync_name
from llmops_operator.domain.lineage import RECORDING, IndexRecord, Recorded, RecordState, lineage_aspect, version_key
from llmops_operator.domain.sync_due import REFRESH, RETRY, due, requested_at
from llmops_operator.domain.timing import Timing, seconds_since, timestamp
from llmops_operator.domain.workload import Workload, WorkloadStatus

KIND = "EmbeddingIndex"
FINALIZER = "llmops.dev/collections"
MAX_ATTEMPTS = 16
NO_GATE = Reason.NO_GATE
"""The reason of GatePassed when nothing is asked of a version."""
WHAT_TO_LOWER = "lower embedding.batchSize, or raise compute.resources.memory"
On = EmbeddingIndexCondition


@dataclass(frozen=True)
class IndexInput:
    """Everything that decides about an EmbeddingIndex. `manifest` writes the object as the user did, as YAML; `not_dropped` is why its
    collections could not be dropped just now.
    """

    index: EmbeddingIndex
    now: datetime
    manifest: Callable[[], str] = str
    workloads: Mapping[str, WorkloadStatus] = field(default_factory=dict)
    records: RecordState = field(default_factory=RecordState)
    timing: Timing = field(default_factory=Timing)
    not_dropped: str = ""


def decide(i: IndexInput) -> Decision[EmbeddingIndexStatus]:
    """What is to be done about an EmbeddingIndex now."""
    index, old = i.index, i.index.status
    if index.metadata.deletion_timestamp:
        return _deleted(i)
    tries = tries_of.look(
        old.attempts,
        i.workloads,
        i.now,
        name=lambda number: sync_name(index, number),
        parse=IndexingResult.model_validate,
        lower=WHAT_TO_LOWER,
    )
    aspects: dict[str, Aspect] = {}
    events: tuple[Event, ...] = ()
    status = old
    if tries.result is not None:
        status, aspects = _taken(i, tries.result)
    elif tries.ended is not None:
        aspects[On.SYNCED] = _failed(tries.ended)

    changed = _synced_generation(old.conditions) != index.metadata.generation
    if tries.open and changed:
        tries = tries_of.stopped(tries, i.now, tries_of.SPEC_CHANGED, "the spec was edited: it is done anew")
    if tries.open and index.spec.suspend:
        tries = tries_of.stopped(tries, i.now, tries_of.SUSPENDED)
    cause, wait = (
        (None, None)
        if tries.open or index.spec.suspend
        else due(index, tries.attempts, changed=changed, now=i.now, timing=i.timing)
    )
    if cause:
        last = tries.attempts[-1].number if tries.attempts else 0
        tries = tries_of.begun(tries.attempts, last + 1, i.now)
        events = (*events, normal(Reason.SYNC_STARTED, f"sync {last + 1}: {cause}"))
        if cause not in (RETRY, REFRESH):
            aspects[On.SYNCED] = waits(Reason.SYNCING, f"sync {last + 1} runs")
    status = status.model_copy(
        update={
            "attempts": tries.attempts[-MAX_ATTEMPTS:],
            "progress": tries.seen.progress if tries.open and tries.seen else None,
        }
    )
    return _decision(i, status, tries, aspects, events, wait, started=cause is not None)


def _synced_generation(conditions: tuple[Condition, ...]) -> int:
    """The generation that the last sync was begun for: the one that the condition Synced is about."""
    synced = find(conditions, On.SYNCED)
    return synced.observed_generation if synced else 0


def _failed(attempt: Attempt) -> Aspect:
    if tries_of.final(attempt):
        return reported(attempt.reason, attempt.message)
    return reported(attempt.reason, f"{attempt.message} (it is tried again)")


def _taken(i: IndexInput, result: IndexingResult) -> tuple[EmbeddingIndexStatus, dict[str, Aspect]]:
    """The status and conditions after a sync that ended well."""
    old, serving, counts = i.index.status, result.serving, result.counts
    status = old.model_copy(
        update={
            "alias": result.alias,
            "version": serving,
            "candidate": result.candidate,
            "documents": serving.documents if serving else 0,
            "chunks": serving.chunks if serving else 0,
            "sources": result.sources,
            "last_sync_time": old.attempts[-1].start_time,
            "last_sync": counts,
            "rejected": result.rejected,
            "rejected_count": result.rejected_count,
            "embedding_model_digest": result.embedding_model_digest or None,
        }
    )
    if _served_key(status) != _served_key(old):
        status = status.model_copy(update={"run_id": None, "run_url": None})
    seen = result.candidate or serving
    held = f"{seen.documents} documents, {seen.chunks} chunks; " if seen else ""
    rejected = (
        f"; {result.rejected_count} documents were rejected, see status.rejected" if result.rejected_count else ""
    )
    did = f"{counts.added} added, {counts.updated} updated, {counts.deleted} deleted, {counts.unchanged} unchanged"
    aspects: dict[str, Aspect] = {On.SYNCED: holds(Reason.SYNCED, f"{held}{did}{rejected}")}
    if result.gate_passed is None:
        aspects[On.GATE_PASSED] = holds(NO_GATE, "evaluation.gate is not set: each version passes")
    elif result.gate_passed:
        aspects[On.GATE_PASSED] = holds(Reason.GATE_PASSED, result.gate_message)
    else:
        aspects[On.GATE_PASSED] = fails(Reason.GATE_NOT_PASSED, result.gate_message)
    if _newest_key(status) not in (None, _newest_key(old)):
        aspects[On.LINEAGE_RECORDED] = RECORDING
    return status, aspects


def _served_key(status: EmbeddingIndexStatus) -> str | None:
    return version_key(status.version, held_back=False) if status.version else None


def _newest_key(status: EmbeddingIndexStatus) -> str | None:
    """The key of the record of the last sync: of the version that is held back, or else of the one that is served."""
    return version_key(status.candidate, held_back=True) if status.candidate else _served_key(status)


def _decision(
    i: IndexInput,
    status: EmbeddingIndexStatus,
    tries: Tries,
    aspects: dict[str, Aspect],
    events: tuple[Event, ...],
    wait: float | None,
    *,
    started: bool,
) -> Decision[EmbeddingIndexStatus]:
    index, spec = i.index, i.index.spec
    generation, now = index.metadata.generation, timestamp(i.now)
    asked = requested_at(index)
    aspects[On.ACCEPTED] = holds(Reason.ACCEPTED, asked if isinstance(asked, str) else "the spec is valid")
    aspects[On.SUSPENDED] = (
        holds(Reason.SUSPENDED, "spec.suspend is set: nothing is synced until it is false")
        if spec.suspend
        else waits(Reason.ACTIVE)
    )
    aspects[On.SYNCED] = _synced(i, tries, aspects.get(On.SYNCED), started=started)
    gate = aspects.get(On.GATE_PASSED) or carried(status.conditions, On.GATE_PASSED)
    aspects[On.SERVING] = _serving(status, gate)
    status, record = _recorded(i, status, aspects, gate)
    parts = (aspects[On.ACCEPTED], aspects[On.SYNCED], gate, aspects[On.SERVING])
    aspects[On.READY] = summarised(parts, holds(Reason.READY, aspects[On.SERVING].message))
    told = transitions(i.index.status.conditions, aspects)
    conditions = updated(status.conditions, aspects, On, generation=generation, now=now)
    phase = _phase(spec, tries, aspects[On.READY])
    status = status.model_copy(update={"conditions": conditions, "observed_generation": generation, "phase": phase})

    numbers = [attempt.number for attempt in tries.attempts[-1:]]
    keep = {sync_name(index, number) for number in numbers}
    if tries.ended is not None and tries.ended.reason in tries_of.STOPPED_BY_US:
        keep.discard(sync_name(index, tries.ended.number))
    wanted: tuple[Workload, ...] = ()
    if tries.open:
        wanted = (indexer(index, tries.open.number),)
    return Decision(
        status,
        workloads=wanted,
        remove=without(i.workloads, keep),
        finalizer=spec.deletion_policy is DeletionPolicy.DELETE,
        events=(*events, *told),
        record=record,
        requeue_after=wait,
    )


def _synced(i: IndexInput, tries: Tries, fresh: Aspect | None, *, started: bool) -> Aspect:
    """The condition Synced is about the generation that the last sync was begun for. While a sync is only a refresh or another
    try, it goes on saying what was known before.
    """
    about = i.index.metadata.generation if started else _synced_generation(i.index.status.conditions)
    aspect = fresh or carried(i.index.status.conditions, On.SYNCED)
    if not tries.attempts:
        aspect = waits(Reason.SUSPENDED, "never synced: set spec.suspend to false")
    elif fresh is None and tries.open:
        before = tries.attempts[-2] if len(tries.attempts) > 1 else None
        retried = before is not None and tries_of.failed(before) and before.reason == aspect.reason
        if tries.seen and tries.seen.reason:
            aspect = reported(tries.seen.reason, tries.seen.message)
        elif aspect.status is not ConditionStatus.TRUE and not retried:
            aspect = waits(Reason.SYNCING, f"sync {tries.open.number} runs")
    elif (
        fresh is None and tries.attempts[-1].reason == tries_of.SUSPENDED and aspect.status is not ConditionStatus.TRUE
    ):
        aspect = waits(Reason.SUSPENDED, "the sync was stopped: set spec.suspend to false")
    return replace(aspect, observed_generation=about)


def _serving(status: EmbeddingIndexStatus, gate: Aspect) -> Aspect:
    if status.version is None:
        return waits(Reason.NOTHING_SERVED, "no version is served yet")
    if gate.status is ConditionStatus.FALSE:
        return holds(Reason.SERVING, f"{status.version.collection}; a newer version did not pass its gate")
    return holds(Reason.SERVING, status.version.collection)


def _recorded(
    i: IndexInput, status: EmbeddingIndexStatus, aspects: dict[str, Aspect], gate: Aspect
) -> tuple[EmbeddingIndexStatus, IndexRecord | None]:
    """The newest version as a record, until it is known to be written. Sets LineageRecorded in `aspects`."""
    served, key = _served_key(status), _newest_key(status)
    if status.run_id is None and served and isinstance(state := i.records.of(served), Recorded):
        status = status.model_copy(update={"run_id": state.run_id, "run_url": state.run_url})
    newest = status.candidate or status.version
    known = is_true(status.conditions, On.LINEAGE_RECORDED) and On.LINEAGE_RECORDED not in aspects
    if newest is None or key is None or known:
        return status, None
    aspects[On.LINEAGE_RECORDED] = lineage_aspect(i.records, key)
    if isinstance(i.records.of(key), Recorded) or not i.records.enabled:
        return status, None
    verdict = {ConditionStatus.TRUE: True, ConditionStatus.FALSE: False}.get(gate.status)
    record = IndexRecord(
        owner=owner_of(KIND, i.index.metadata),
        generation=i.index.metadata.generation,
        manifest=i.manifest(),
        version=newest,
        sources=status.sources,
        embedding_uri=i.index.spec.embedding.model.uri,
        embedding_digest=status.embedding_model_digest or "",
        gate_passed=None if gate.reason == NO_GATE else verdict,
        gate_message="" if gate.reason == NO_GATE else gate.message,
        held_back=status.candidate is not None,
    )
    return status, record


def _phase(spec: EmbeddingIndexSpec, tries: Tries, ready: Aspect) -> str:
    if spec.suspend:
        return "Suspended"
    if tries.open:
        return "Syncing"
    if ready.status is ConditionStatus.TRUE:
        return "Ready"
    return "Failed" if tries.attempts and tries_of.failed(tries.attempts[-1]) else "Pending"


def _deleted(i: IndexInput) -> Decision[EmbeddingIndexStatus]:
    """Drop the collections, when that is asked for and there are any. Neither a vector store that is away nor a pod that does not end
    holds the object up longer than the deadline: what still runs for it is removed when it is gone, too.
    """
    index, status = i.index, i.index.status
    # The last sync may have pods where it is not observed any more: they too have to end before anything is dropped.
    syncs = (sync_name(index, attempt.number) for attempt in status.attempts[-1:])
    gone = Decision(status, remove=tuple(sorted({*i.workloads, *syncs})), discard_volumes=True)
    if FINALIZER not in index.metadata.finalizers:
        return gone
    if index.spec.deletion_policy is DeletionPolicy.RETAIN or not status.attempts:
        return Decision(status, finalizer=False)
    alias = index_alias(index.metadata.namespace, index.metadata.name)
    status = status.model_copy(update={"phase": "Deleting", "progress": None})
    if not i.not_dropped:
        return replace(gone, status=status, drop=alias, finalizer=False)
    waited = seconds_since(str(index.metadata.deletion_timestamp), i.now)
    left = i.timing.drop_deadline - waited
    if left <= 0:
        said = f"gave up dropping the collections after {int(waited)} s: {i.not_dropped}"
        by_hand = f"{said}. Drop the alias {alias} and the collections {alias}.* by hand"
        return Decision(status, finalizer=False, events=(warning(Reason.COLLECTIONS_LEFT_BEHIND, by_hand),))
    why = f"{i.not_dropped}. It is tried again until {i.timing.drop_deadline:g} s after the deletion"
    aspects: dict[str, Aspect] = {On.READY: fails(Reason.COLLECTIONS_NOT_DROPPED, why)}
    generation = index.metadata.generation
    conditions = updated(status.conditions, aspects, On, generation=generation, now=timestamp(i.now))
    return Decision(
        status.model_copy(update={"conditions": conditions}),
        events=transitions(status.conditions, aspects),
        requeue_after=min(i.timing.retry_first, left),
    )
