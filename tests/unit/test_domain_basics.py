"""What all decisions share: conditions, digests, names, times, and sentences about manifests that are none."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmops_api.v1alpha1.meta import Condition, ConditionStatus
from llmops_operator.domain import conditions
from llmops_operator.domain.admission import Invalid, admit, parse
from llmops_operator.domain.conditions import Aspect, fails, holds, unknown, waits
from llmops_operator.domain.decision import Event, transitions
from llmops_operator.domain.fingerprint import fingerprint, workload_name
from llmops_operator.domain.timing import Timing, parse_timestamp, seconds_since, timestamp


class On(StrEnum):
    DONE = "Done"
    WELL = "Well"
    READY = "Ready"


aspects = st.builds(
    Aspect, st.sampled_from(ConditionStatus), st.sampled_from(["A", "B"]), st.sampled_from(["", "why"]), st.booleans()
)
steps = st.lists(st.dictionaries(st.sampled_from(On), aspects), max_size=8)


@given(steps)
def test_the_transition_time_moves_exactly_when_the_status_does(history: list[dict[str, Aspect]]) -> None:
    known: tuple[Condition, ...] = ()
    for second, change in enumerate(history):
        new = conditions.updated(known, change, On, generation=second, now=str(second))
        assert [one.type for one in new] == list(On)
        for one in new:
            before = conditions.find(known, one.type)
            moved = before is None or before.status is not one.status
            assert one.last_transition_time == (str(second) if moved else before and before.last_transition_time)
            if one.type in change:
                assert (one.status, one.reason) == (change[On(one.type)].status, change[On(one.type)].reason)
                assert one.observed_generation == second
            elif before:
                assert one == before
        assert conditions.updated(new, change, On, generation=second, now="later") == new
        known = new


def test_a_type_that_nobody_has_looked_at_is_unknown() -> None:
    [first, *_] = conditions.updated((), {}, On, generation=1, now="now")
    assert (first.status, first.reason, first.message) == ("Unknown", "Pending", "not looked at yet")


def test_a_carried_condition_says_what_it_said() -> None:
    known = conditions.updated((), {On.DONE: fails("Broken", "it broke")}, On, generation=3, now="now")
    again = conditions.updated(known, {On.DONE: conditions.carried(known, On.DONE)}, On, generation=4, now="later")
    assert again[0] == known[0]
    assert conditions.carried((), On.DONE) == conditions.NOT_LOOKED_AT


SUMMARIES: dict[str, tuple[list[Aspect], Aspect]] = {
    "all hold": ([holds("A"), holds("B")], holds("Ready", "fine")),
    "nothing to sum up": ([], holds("Ready", "fine")),
    "the first that waits is said": ([holds("A"), waits("B", "b"), waits("C", "c")], waits("B", "b")),
    "trouble comes before waiting": ([waits("B", "b"), fails("C", "c")], fails("C", "c")),
    "what is unknown is not so": ([unknown("B", "b")], waits("B", "b")),
}


@pytest.mark.parametrize(("parts", "expected"), SUMMARIES.values(), ids=SUMMARIES)
def test_the_summary(parts: list[Aspect], expected: Aspect) -> None:
    assert conditions.summarised(parts, holds("Ready", "fine")) == expected


def test_a_very_long_message_is_cut_to_what_kubernetes_takes() -> None:
    [done, *_] = conditions.updated((), {On.DONE: fails("Long", "x" * 40_000)}, On, generation=1, now="now")
    assert len(done.message) == 32_768


WAITING = conditions.updated((), {On.DONE: waits("Running", "it runs")}, On, generation=1, now="now")
BROKEN = conditions.updated((), {On.DONE: fails("Broken", "it broke")}, On, generation=1, now="now")
TRANSITIONS: dict[str, tuple[Any, Aspect, list[Event]]] = {
    "becoming true is told": (WAITING, holds("Done", "it is done"), [Event("Normal", "Done", "it is done")]),
    "being true is not told again": (
        conditions.updated((), {On.DONE: holds("Done")}, On, generation=1, now="now"),
        holds("Done", "with other words"),
        [],
    ),
    "waiting is not told": ((), waits("Running", "it runs"), []),
    "trouble is told": (WAITING, fails("Broken", "it broke"), [Event("Warning", "Broken", "it broke")]),
    "trouble at first sight is told": ((), fails("Broken", "it broke"), [Event("Warning", "Broken", "it broke")]),
    "the same trouble is not told again": (BROKEN, fails("Broken", "it broke"), []),
    "other trouble is told": (BROKEN, fails("Broken", "elsewhere"), [Event("Warning", "Broken", "elsewhere")]),
}


@pytest.mark.parametrize(("old", "aspect", "expected"), TRANSITIONS.values(), ids=TRANSITIONS)
def test_events_of_transitions(old: Any, aspect: Aspect, expected: list[Event]) -> None:
    assert list(transitions(old, {On.DONE: aspect})) == expected


def test_what_two_conditions_say_alike_is_told_once() -> None:
    assert len(transitions((), {On.DONE: fails("Broken", "x"), On.READY: fails("Broken", "x")})) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))


def test_different_values_have_different_fingerprints() -> None:
    values: list[Any] = [{}, {"a": 1}, {"a": "1"}, {"a": [1]}, {"a": None}, [], "", None]
    assert len({fingerprint(value) for value in values}) == len(values)


names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


@given(names, names)
def test_names_of_workloads_fit_and_differ_as_their_owners_do(one: str, other: str) -> None:
    made = workload_name(one, "train-12")
    assert len(made) <= 63
    assert made.endswith("-train-12")
    assert (made == workload_name(other, "train-12")) == (one == other)


@given(names)
def test_names_of_rayjobs_and_services_are_what_kuberay_and_kubernetes_take_of_them(owner: str) -> None:
    rayjob, service = workload_name(owner, "train-12", workers=2), workload_name(owner, "gateway", service=True)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", rayjob)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", service)
    # A name that these take stays: its workload may be running under it.
    if owner[0].isalpha():
        assert service == workload_name(owner, "gateway")
        assert len(owner) > 38 or rayjob == workload_name(owner, "train-12")


@given(names, names)
def test_shortened_names_differ_as_their_owners_do(one: str, other: str) -> None:
    made = {workload_name(owner, "train-12", workers=2) for owner in (one, other, f"x{one}")}
    assert len(made) == len({one, other, f"x{one}"})


def test_two_long_names_that_begin_alike_stay_apart() -> None:
    assert workload_name("a" * 62 + "b", "engine") != workload_name("a" * 62 + "c", "engine")


def test_times_are_written_in_utc_with_milliseconds_and_read_back() -> None:
    moment = datetime(2026, 11, 23, 7, 17, 36, 123000, tzinfo=timezone(timedelta(hours=1)))
    assert timestamp(moment) == "2026-11-23T06:17:36.123Z"
    assert parse_timestamp(timestamp(moment)) == moment
    assert seconds_since("2026-11-23T06:17:30Z", moment) == pytest.approx(6.123)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-23T06:17:36"])
def test_a_time_without_a_zone_or_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time zone|Invalid isoformat"):
        parse_timestamp(text)


def test_pauses_double_up_to_the_cap() -> None:
    timing = Timing(retry_first=10, retry_cap=300)
    assert [timing.retry_delay(failures) for failures in (1, 2, 3, 5, 6, 1000)] == [10, 20, 40, 160, 300, 300]


def manifest(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "llmops.dev/v1alpha1", "kind": "RagService", "metadata": {"name": "x"}, "spec": spec}


BASE = {"base": {"uri": "pkg://a/b"}}
SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "a missing field": (manifest(), "spec.model: is missing: write a mapping with base, adapter, endpoint"),
    "an unknown field": (
        manifest(model=BASE, replica=2),
        "spec.replica: unknown field: did you mean replicas?",
    ),
    "an unknown word": (
        manifest(model=BASE, retrieval={"mode": "Fuzzy"}),
        'spec.retrieval.mode: "Fuzzy" is unknown: write one of Dense, Sparse, Hybrid',
    ),
    "a rule": (manifest(model={}), "spec.model: model takes exactly one of base and endpoint: keep one of them"),
    "an entry of a list": (
        manifest(model=BASE, indexes=[{}]),
        "spec.indexes[0].indexRef: is missing: write a mapping with name",
    ),
    "a wrong type": (
        manifest(model=BASE, replicas="4"),
        'spec.replicas: expected a whole number, found the string "4": write it without quotes',
    ),
}


@pytest.mark.parametrize(("wrong", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_what_is_wrong_with_a_manifest_is_said_with_its_place(wrong: dict[str, Any], sentence: str) -> None:
    found = parse(wrong)
    assert isinstance(found, Invalid)
    assert sentence in found.message
    admitted = admit(wrong)
    assert isinstance(admitted, list), "what the control plane refuses is not stored either"
    assert "; ".join(map(str, admitted)) == found.message


def test_a_manifest_with_a_hundred_faults_names_the_first_few() -> None:
    found = parse(manifest(model=BASE, indexes=[{}] * 16))
    assert isinstance(found, Invalid)
    assert found.message.count("is missing") == 5


def test_what_another_version_wrote_into_a_status_is_no_reason_to_refuse_the_object() -> None:
    status = {"phase": "Ready", "indexes": [{"name": "a", "collection": "b", "shards": 3}], "weather": {"sky": "blue"}}
    found = parse(manifest(model=BASE) | {"status": status})
    assert not isinstance(found, Invalid)
    assert found.status.phase == "Ready"
    assert found.status.dump()["indexes"] == [{"name": "a", "collection": "b"}]


def test_a_status_of_the_wrong_shape_is_refused() -> None:
    found = parse(manifest(model=BASE) | {"status": {"weather": 1, "phase": 7}})
    assert found == Invalid('status.phase: expected a string, found 7: write it in quotes, "7"')


def test_now_is_a_time_that_can_be_read() -> None:
    now = datetime.now(UTC)
    assert abs(seconds_since(timestamp(now), now)) < 0.001
