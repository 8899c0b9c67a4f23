"""A pod with what a `podTemplate` asks for. What the pod has already wins: what llmops sets, and what was merged before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OF_POD = ("affinity", "serviceAccountName", "priorityClassName", "runtimeClassName")
"""Fields of the pod's spec that are taken over as they are."""


def merged(pod: Mapping[str, Any], wish: Mapping[str, Any]) -> dict[str, Any]:
    """The pod template (`metadata` and `spec` with `containers`) with a wish of the form of `podTemplate`."""
    metadata, spec = dict(pod["metadata"]), dict(pod["spec"])
    for field in ("labels", "annotations"):
        both = {**wish.get("metadata", {}).get(field, {}), **metadata.get(field, {})}
        if both:
            metadata[field] = both
    if node_selector := {**wish.get("nodeSelector", {}), **spec.get("nodeSelector", {})}:
        spec["nodeSelector"] = node_selector
    if tolerations := [*spec.get("tolerations", ()), *wish.get("tolerations", ())]:
        spec["tolerations"] = tolerations
    if secrets := _by("name", spec.get("imagePullSecrets", ()), wish.get("imagePullSecrets", ())):
        spec["imagePullSecrets"] = secrets
    spec = {field: wish[field] for field in OF_POD if wish.get(field)} | spec
    spec["volumes"] = _by("name", spec["volumes"], wish.get("volumes", ()))
    spec["containers"] = [
        {
            **container,
            "env": _by("name", container["env"], wish.get("env", ())),
            "volumeMounts": _by("mountPath", container["volumeMounts"], wish.get("volumeMounts", ())),
        }
        for container in spec["containers"]
    ]
    return {**pod, "metadata": metadata, "spec": spec}


def _by(key: str, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Both lists, theirs first where `key` tells entries apart, ours where both have it.

    Theirs come first because a variable may be used in the ones after it.
    """
    taken = {one[key] for one in ours}
    return [*(one for one in theirs if one[key] not in taken), *ours]
