"""What a decision is: the status to write, the workloads to have, and what to tell people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmops_api.programs import ObjectId
from llmops_api.reasons import Reason
from llmops_api.v1alpha1.meta import Condition, ConditionStatus, ObjectMeta
from llmops_operator.domain.conditions import Aspect
from llmops_operator.domain.lineage import Record
from llmops_operator.domain.workload import Owner, Workload

Status = TypeVar("Status", covariant=True)


@dataclass(frozen=True)
class Event:
    """A transition that people are told about."""

    type_: str
    reason: str
    message: str


def normal(reason: str, message: str) -> Event:
    """Something went on."""
    return Event("Normal", reason, message)


def warning(reason: str, message: str) -> Event:
    """Something a person should look at."""
    return Event("Warning", reason, message)


@dataclass(frozen=True)
class Decision(Generic[Status]):
    """What is to be so. Acting on it: the finalizer first, then the status, then `remove`, then `workloads`.

    A name in both `remove` and `workloads` is started anew. `drop` is the alias of an index whose collections are to go once what is to be
    removed is gone. `finalizer` None leaves it as it is; taking it away comes last. `requeue_after` asks to be called again, in seconds.
    """

    status: Status
    workloads: tuple[Workload, ...] = ()
    remove: tuple[str, ...] = ()
    discard_volumes: bool = False
    drop: str | None = None
    finalizer: bool | None = None
    events: tuple[Event, ...] = ()
    record: Record | None = None
    requeue_after: float | None = None


def owner_of(kind: str, metadata: ObjectMeta) -> Owner:
    """The owner of an object's workloads."""
    return Owner(kind, metadata.namespace, metadata.name, metadata.uid)


def object_id(kind: str, metadata: ObjectMeta, *, generation: int = 1) -> ObjectId:
    """The object as its programs know it. A generation that is not told cannot restart them."""
    return ObjectId(
        kind=kind, namespace=metadata.namespace, name=metadata.name, uid=metadata.uid, generation=generation
    )


def transitions(old: Iterable[Condition], aspects: Mapping[str, Aspect]) -> tuple[Event, ...]:
    """Events for conditions that became True, and for trouble that is new or another one. That a new object is valid is no news."""
    before = {condition.type: condition for condition in old}
    events: dict[Event, None] = {}
    for type_, aspect in aspects.items():
        known = before.get(type_)
        if aspect.trouble:
            if known is None or (known.status, known.reason, known.message) != (
                aspect.status,
                aspect.reason,
                aspect.message,
            ):
                events[warning(aspect.reason, aspect.message)] = None
        elif known is None and aspect.reason == Reason.ACCEPTED:
            continue
        elif aspect.status is ConditionStatus.TRUE and (known is None or known.status is not ConditionStatus.TRUE):
            events[normal(aspect.reason, aspect.message)] = None
    return tuple(events)


def without(observed: Iterable[str], kept: Iterable[str]) -> tuple[str, ...]:
    """The names of workloads that are there and are not wanted."""
    return tuple(sorted(set(observed) - set(kept)))
