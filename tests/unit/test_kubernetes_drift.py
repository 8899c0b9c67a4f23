"""When a live object has drifted from what was rendered."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmops_operator.backends.kubernetes.drift import holds


@pytest.mark.parametrize(
    ("rendered", "live", "same"),
    [
        ({"a": 1}, {"a": 1, "defaulted": True}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {}, False),
        ({"emptyDir": {}}, {"emptyDir": {}}, True),
        ({"emptyDir": {}}, {"hostPath": {}}, False),
        ({"cpu": "1000m"}, {"cpu": "1"}, True),
        ({"memory": "1024Mi"}, {"memory": "1Gi"}, True),
        ({"memory": "1G"}, {"memory": "1Gi"}, False),
        ({"image": "a:1"}, {"image": "a:2"}, False),
        ([{"name": "a", "value": "1"}], [{"name": "injected"}, {"name": "a", "value": "1", "more": 1}], True),
        ([{"name": "a"}, {"name": "b"}], [{"name": "a"}], False),
        (["x", "y"], ["x", "y"], True),
        (["x", "y"], ["y", "x"], False),
        (["x"], ["x", "y"], False),
        ([], ["x"], False),
        ({"on": True}, {"on": "true"}, False),
        ({"on": True}, None, False),
    ],
)
def test_drift_is_a_rendered_field_that_has_another_value(rendered: Any, live: Any, same: bool) -> None:
    assert holds(rendered, live) is same


JSON = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_whatever_was_rendered_holds_in_itself(value: Any) -> None:
    assert holds(value, value)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4), st.dictionaries(st.text(min_size=5), JSON, max_size=3))
def test_fields_of_others_never_count(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert holds(ours, {**theirs, **ours})
