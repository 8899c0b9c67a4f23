"""A numbered source as it is printed."""

from __future__ import annotations

from typing import Any

import pytest

from llmops_operator.cli.chat import source_line

CITATION = {"n": 2, "title": "Leave", "section": "Leave > Carry-over", "path": "hr/leave.md", "lines": [3, 9]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "[2] Leave > Carry-over, lines 3-9 (hr/leave.md)"),
        ({"section": "Carry-over"}, "[2] Leave > Carry-over, lines 3-9 (hr/leave.md)"),
        ({"section": "", "lines": [4, 4]}, "[2] Leave, line 4 (hr/leave.md)"),
        ({"title": "", "path": "", "uri": "file:///x", "lines": None}, "[2] Leave > Carry-over (file:///x)"),
    ],
)
def test_a_source_is_document_section_and_lines(change: dict[str, Any], expected: str) -> None:
    assert source_line({**CITATION, **change}) == expected
