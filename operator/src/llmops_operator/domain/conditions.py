"""Conditions in Kubernetes' shape: set, carried over, and summed up. All known types are written at first sight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from llmops_api.reasons import Reason
from llmops_api.v1alpha1.meta import Condition, ConditionStatus

MAX_MESSAGE = 32768


@dataclass(frozen=True)
class Aspect:
    """What a condition is to say. `trouble` marks what a person should look at, against what passes by waiting."""

    status: ConditionStatus
    reason: str
    message: str = ""
    trouble: bool = False
    observed_generation: int | None = None
    """The generation that this was seen at, when that is not the object's present one."""


def holds(reason: Reason, message: str = "") -> Aspect:
    """The condition is True."""
    return Aspect(ConditionStatus.TRUE, reason, message)


def waits(reason: Reason, message: str = "") -> Aspect:
    """The condition is False for now and becomes True by itself."""
    return Aspect(ConditionStatus.FALSE, reason, message)


def fails(reason: Reason, message: str) -> Aspect:
    """The condition is False and a person should know."""
    return reported(reason, message)


def reported(reason: str, message: str) -> Aspect:
    """The same, with the reason of a program or a backend."""
    return Aspect(ConditionStatus.FALSE, reason, message, trouble=True)


def unknown(reason: Reason, message: str = "") -> Aspect:
    """Nobody can say yet."""
    return Aspect(ConditionStatus.UNKNOWN, reason, message)


def open_yet(aspect: Aspect) -> Aspect:
    """The same about what nobody can say before that."""
    return Aspect(ConditionStatus.UNKNOWN, aspect.reason, aspect.message)


NOT_LOOKED_AT = unknown(Reason.PENDING, "not looked at yet")


def find(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """The condition of a type."""
    return next((condition for condition in conditions if condition.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Whether the condition of a type is there and True."""
    found = find(conditions, type_)
    return found is not None and found.status is ConditionStatus.TRUE


def carried(conditions: Iterable[Condition], type_: str) -> Aspect:
    """What the condition of a type says already, to be said again."""
    found = find(conditions, type_)
    if found is None:
        return NOT_LOOKED_AT
    return Aspect(found.status, found.reason, found.message, observed_generation=found.observed_generation)


def updated(
    old: Iterable[Condition], aspects: Mapping[str, Aspect], types: type[StrEnum], *, generation: int, now: str
) -> tuple[Condition, ...]:
    """The conditions of all `types`, in their order, with `aspects` set and the others as they were.

    `lastTransitionTime` moves only where the status changes.
    """
    before = {condition.type: condition for condition in old}
    result = []
    for type_ in types:
        aspect = aspects.get(type_)
        known = before.get(type_)
        if aspect is None and known is not None:
            result.append(known)
            continue
        aspect = aspect or NOT_LOOKED_AT
        same = known is not None and known.status is aspect.status
        result.append(
            Condition(
                type=type_,
                status=aspect.status,
                reason=aspect.reason,
                message=aspect.message[:MAX_MESSAGE],
                last_transition_time=known.last_transition_time if same and known else now,
                observed_generation=generation if aspect.observed_generation is None else aspect.observed_generation,
            )
        )
    return tuple(result)


def summarised(aspects: Iterable[Aspect], otherwise: Aspect) -> Aspect:
    """`otherwise` when all `aspects` hold; else what is first in trouble, else what is first not True, said as False."""
    missing = [aspect for aspect in aspects if aspect.status is not ConditionStatus.TRUE]
    if not missing:
        return otherwise
    worst = next((aspect for aspect in missing if aspect.trouble), missing[0])
    return Aspect(ConditionStatus.FALSE, worst.reason, worst.message, worst.trouble)
