"""Kubernetes' quantities (500m, 4, 8Gi) as numbers."""

from __future__ import annotations

from decimal import Decimal

_UNITS = {
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T"), start=1)},
    **{unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), start=1)},
}


def quantity(text: str) -> Decimal:
    """The number that a quantity of the API stands for: bytes of memory, cores of CPU."""
    number = text.rstrip("mkKMGTi")
    return Decimal(number) * _UNITS.get(text[len(number) :], Decimal(1))
