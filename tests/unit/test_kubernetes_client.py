"""What the API server's refusals mean, and whose turn it is to be listened to."""

from __future__ import annotations

import json

import pytest

from llmops_operator.backends.kubernetes.client import failure
from llmops_operator.backends.kubernetes.listening import Turns
from llmops_operator.controllers.ports import Refused
from llmops_operator.domain.workload import Owner

TERMINATING = "unable to create new content in namespace a because it is being terminated"


@pytest.mark.parametrize(
    ("said", "right_is_missing"),
    [
        ('jobs.batch is forbidden: User "x" cannot patch resource "jobs"', True),
        ('pods "x" is forbidden: exceeded quota: small', False),
        ('admission webhook "w" denied the request', False),
        (f'jobs.batch "x" is forbidden: {TERMINATING}', False),
    ],
)
def test_a_grant_is_asked_for_only_where_one_would_help(said: str, right_is_missing: bool) -> None:
    found = failure(403, json.dumps({"message": said}).encode(), "PATCH", "/x")
    assert isinstance(found, Refused)
    assert said in str(found)
    advice = "grant it (the chart's ClusterRole, or its Roles, do: run helm upgrade with the chart of this operator's version)"
    assert (advice in str(found)) is right_is_missing


def owner(name: str) -> Owner:
    return Owner("RagService", "default", name, name)


def test_everybody_has_a_turn_and_who_has_changed_is_next() -> None:
    turns = Turns(2)
    for name in "abc":
        turns.put(owner(name), True)
    seen = [one.name for _ in range(3) for one in turns.next()]
    assert seen == ["c", "b", "a", "c", "b", "a"]
    turns.put(owner("b"), True)
    assert owner("b") in turns.next()
    turns.put(owner("a"), False)
    assert {one.name for _ in range(3) for one in turns.next()} == {"b", "c"}
