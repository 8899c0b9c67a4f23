"""Digests that are equal exactly when two JSON values are, and the names of workloads made from them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

MAX_NAME = 63
"""The longest name that a Kubernetes object which becomes a label or a host name may have."""

MAX_RAYJOB_NAME = 47
"""The longest name that KubeRay takes for a RayJob: it names a RayCluster and Services after it."""


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hex digits) of `value` as canonical JSON: keys sorted, no blanks, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def workload_name(owner: str, suffix: str, *, workers: int = 1, service: bool = False) -> str:
    """`owner-suffix`; one that would be too long keeps its beginning and its suffix around a digest of the owner's name. Of several
    `workers` a RayJob is made, and a `service` has a host name: these begin with a letter too.
    """
    name = f"{owner}-{suffix}"
    longest = MAX_RAYJOB_NAME if workers > 1 else MAX_NAME
    begin = f"x{owner}" if (workers > 1 or service) and owner[0].isdigit() else owner
    if len(name) <= longest and begin == owner:
        return name
    digest = hashlib.sha256(owner.encode()).hexdigest()[:8]
    return f"{begin[: longest - len(suffix) - len(digest) - 2].rstrip('-')}-{digest}-{suffix}"
