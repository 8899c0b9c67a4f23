"""Quantities as numbers."""

from __future__ import annotations

from decimal import Decimal

import pytest

from llmops_operator.domain.quantity import quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", "0.5"), ("4", "4"), ("1.5", "1.5"), ("2k", "2000"), ("3M", "3000000"), ("1.5Gi", "1610612736"),
     ("1Ki", "1024"), ("2Mi", "2097152"), ("1G", "1000000000"), ("1T", "1000000000000"), ("1Ti", "1099511627776")],
)  # fmt: skip
def test_a_quantity_is_a_number_of_bytes_or_cores(text: str, number: str) -> None:
    assert quantity(text) == Decimal(number)
