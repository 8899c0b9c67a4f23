"""Tests delete what they find: they do not run on a cluster that was not meant."""

from __future__ import annotations

import pytest

from harness.clusters import cluster_for_tests


def test_a_context_that_is_not_kinds_needs_a_word_more() -> None:
    with pytest.raises(RuntimeError, match="say --allow-context"), cluster_for_tests("prod", allow_any_context=False):
        pass


@pytest.mark.parametrize(("context", "allowed"), [("kind-llmops", False), ("prod", True)])
def test_a_context_that_was_meant_is_taken(context: str, allowed: bool) -> None:
    with cluster_for_tests(context, allow_any_context=allowed) as cluster:
        assert cluster.context == context
