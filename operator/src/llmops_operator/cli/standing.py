"""Whether an object has got where its manifest wants it, is on its way, or will not get there by itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from llmops_api.reasons import Reason
from llmops_operator.cli.kinds import BY_KIND
from llmops_operator.cli.tables import dig

NOT_BY_ITSELF = frozenset(
    (
        *(
            Reason.TRAINING_JOB_NOT_FOUND,
            Reason.TRAINING_JOB_DELETED,
            Reason.TRAINING_JOB_FAILED,
            Reason.GATE_NOT_PASSED,
        ),
        *(Reason.INDEX_NOT_FOUND, Reason.INDEX_DELETED),
    )
)
"""Reasons of references that stay as they are until somebody changes a manifest."""

PASSING = frozenset(
    (
        *(
            "",
            Reason.PENDING,
            Reason.STARTING,
            Reason.NOT_READY,
            Reason.TAKING_OVER,
            Reason.WAITS_FOR_MODEL,
            Reason.WAITS_FOR_REFERENCES,
            Reason.RESOLVING,
        ),
        *(Reason.TRAINING_JOB_NOT_FINISHED, Reason.INDEX_NOT_SERVING),
    )
)
"""Reasons of a service that is on its way."""

SETTLE_SECONDS = 5.0
"""What is said about references may be from before the manifests were applied; it is believed when it stays."""

RECOVER_SECONDS = 120.0
"""An engine or a gateway that fails is started again; so long it may take until one start goes well."""


class State(StrEnum):
    """Where an object stands."""

    DONE = "done"
    UNDERWAY = "underway"
    FAILED = "failed"


@dataclass(frozen=True)
class Standing:
    """Where an object stands, and the sentence that says why. A failure counts when it has lasted for `after_seconds`."""

    state: State
    sentence: str = ""
    after_seconds: float = 0.0


UNDERWAY = Standing(State.UNDERWAY)


def standing(item: Mapping[str, Any], since: datetime | None = None) -> Standing:
    """Where an object stands. An index has to have been synced after `since`."""
    conditions = {c["type"]: c for c in dig(item, "status", "conditions") or ()}
    done = conditions.get(BY_KIND[item["kind"]].done, {})
    accepted = conditions.get("Accepted", {})
    if accepted.get("status") == "False" and _current(accepted, item):
        return Standing(State.FAILED, accepted.get("message", ""))
    if dig(item, "spec", "suspend"):
        return Standing(State.DONE, "suspended: spec.suspend is set")
    if item["kind"] == "TrainingJob":
        return _of_job(item, done)
    if item["kind"] == "EmbeddingIndex":
        return _of_index(item, conditions, done, since)
    return _of_service(item, conditions, done)


def _current(condition: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    generation: int = dig(item, "metadata", "generation") or 1
    return bool(condition.get("observedGeneration", 0) >= generation)


def _of_job(item: Mapping[str, Any], done: Mapping[str, Any]) -> Standing:
    if done.get("status") == "True":
        return Standing(State.DONE, done.get("message", ""))
    if done.get("status") == "False" and dig(item, "status", "completionTime"):
        name = item["metadata"]["name"]
        again = f"to train anew: llmops delete tj/{name}, then run this again"
        return Standing(State.FAILED, f"{done.get('message', '')} ({again})")
    return UNDERWAY


def _of_index(
    item: Mapping[str, Any], conditions: Mapping[str, Any], done: Mapping[str, Any], since: datetime | None
) -> Standing:
    attempts = dig(item, "status", "attempts") or [{}]
    last = attempts[-1]
    began = last.get("startTime")
    if not began or not last.get("endTime") or not _current(conditions.get("Synced", {}), item):
        return UNDERWAY
    if since is not None and datetime.fromisoformat(began) < since:
        return UNDERWAY
    if done.get("status") == "True":
        return Standing(State.DONE, _held(item["status"]))
    gate = conditions.get("GatePassed", {})
    if (
        last.get("exitCode") == 64
        or last.get("reason") == Reason.DEADLINE_EXCEEDED
        or gate.get("reason") == Reason.GATE_NOT_PASSED
    ):
        return Standing(State.FAILED, done.get("message", ""))
    return UNDERWAY


def _held(status: Mapping[str, Any]) -> str:
    recall = dig(status, "version", "evaluation", "recallAt5")
    found = f", recall@5 {recall}" if recall else ""
    return f"{status.get('documents', 0)} documents, {status.get('chunks', 0)} chunks{found}"


def _of_service(item: Mapping[str, Any], conditions: Mapping[str, Any], done: Mapping[str, Any]) -> Standing:
    if not done or not _current(done, item):
        return UNDERWAY
    if done.get("status") == "True":
        return Standing(State.DONE, done.get("message", ""))
    for type_ in ("ModelResolved", "IndexesResolved"):
        condition = conditions.get(type_, {})
        if condition.get("status") == "False" and condition.get("reason") in NOT_BY_ITSELF:
            return Standing(State.FAILED, condition.get("message", ""), SETTLE_SECONDS)
    if done.get("reason", "") not in PASSING:
        return Standing(State.FAILED, done.get("message", ""), RECOVER_SECONDS)
    return UNDERWAY


def reused(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """What did not have to be done again, as a sentence; None when everything was new."""
    name = now["metadata"]["name"]
    if before is None or dig(before, "metadata", "uid") != dig(now, "metadata", "uid"):
        return None
    if now["kind"] == "TrainingJob":
        model = dig(before, "status", "model")
        return f"{name}: unchanged, not trained again (version {model['version']})" if model else None
    if now["kind"] == "EmbeddingIndex":
        counts = dig(now, "status", "lastSync") or {}
        if not counts.get("unchanged"):
            return None
        changed = [f"{counts[what]} {what}" for what in ("added", "updated", "deleted") if counts.get(what)]
        documents = ", ".join([f"{counts['unchanged']} documents unchanged", *changed])
        return f"{name}: {documents}, {counts.get('embedded', 0)} chunks embedded"
    return None
