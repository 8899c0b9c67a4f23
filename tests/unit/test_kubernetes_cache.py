"""What is kept of objects comes back as it was, however unlike each other they are."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmops_operator.backends.kubernetes.cache import Cache

CONTENTS = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=200), max_size=8), max_size=8)


def made(number: int, data: dict[str, str], version: int) -> dict[str, Any]:
    metadata = {"namespace": "n", "name": f"o-{number}", "resourceVersion": str(version)}
    return {"kind": "ConfigMap", "metadata": metadata, "data": data}


@given(CONTENTS, CONTENTS)
def test_objects_come_back_as_they_were(first: list[dict[str, str]], then: list[dict[str, str]]) -> None:
    cache, wanted = Cache(), {}
    for version, contents in enumerate((first, then), 1):
        for number, data in enumerate(contents):
            wanted[number] = made(number, data, version)
            assert cache.put(wanted[number])
            assert not cache.put(made(number, {}, version))
    for number, one in wanted.items():
        assert ("ConfigMap", "n", f"o-{number}") in cache
        assert cache.get(("ConfigMap", "n", f"o-{number}")) == one
    assert ("ConfigMap", "n", "other") not in cache
