"""Digests that are equal exactly when two JSON values are, and the names of workloads made from them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

MAX_NAME = 63
"""The longest name that a Kubernetes object which becomes a label or a host name may have."""


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hex digits) of `value` as canonical JSON: keys sorted, no blanks, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def workload_name(owner: str, suffix: str) -> str:
    """`owner-suffix`; one that would be too long keeps its beginning and its suffix around a digest of the owner's name."""
    name = f"{owner}-{suffix}"
    if len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(owner.encode()).hexdigest()[:8]
    return f"{owner[: MAX_NAME - len(suffix) - len(digest) - 2].rstrip('-')}-{digest}-{suffix}"
