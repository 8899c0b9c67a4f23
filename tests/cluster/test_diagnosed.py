"""What keeps real pods from going on is told by `kubectl describe` of the object alone: what is missing, by its name, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from operators import manifest
from waiting import wait_until

from harness.helm import CHART
from harness.platform import NAMESPACE, RELEASE, Platform
from llmops_api.reasons import FailureReason, Reason

pytestmark = pytest.mark.timeout(1800)

NOWHERE = "registry.invalid/llmops-engine"
LAST_LINE = "no licence for this machine"
CRASH = f"import os, sys\nprint('starting\\n{LAST_LINE}', file=sys.stderr, flush=True)\nos._exit(3)\n"
ALONE: dict[str, dict[str, Any]] = {
    "TrainingJob": {"backoffLimit": 0},
    "RagService": {"indexes": []},
    "EmbeddingIndex": {},
}
"""So that an object is tried once, and waits for no other."""


def meets(kind: str, name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """An object that meets the trouble in `spec`."""
    one = manifest(kind, namespace, name)
    one["spec"] |= ALONE[kind] | spec
    return one


@pytest.fixture(scope="module")
def applied(platform: Platform, team: str) -> None:
    """Objects that each meet one trouble."""
    crash = {
        "volumes": [{"name": "crash", "configMap": {"name": "crash"}}],
        "volumeMounts": [{"name": "crash", "mountPath": "/mnt/crash"}],
        "env": [{"name": "PYTHONPATH", "value": "/mnt/crash"}],
    }
    program = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "crash", "namespace": team}}
    token = {"uri": "hf://org/model", "secretRef": {"name": "hub-token", "key": "token"}}
    platform.kubectl.apply(
        meets("TrainingJob", "greedy", team, compute={"resources": {"cpu": "1000"}}),
        meets("TrainingJob", "starved", team, compute={"resources": {"memory": "24Mi"}}),
        meets("EmbeddingIndex", "without-secret", team, embedding={"model": token}),
        program | {"data": {"sitecustomize.py": CRASH}},  # Python runs it first
        meets("RagService", "crashing", team, podTemplate=crash),
    )


@pytest.fixture(scope="module")
def misconfigured(platform: Platform, team: str) -> Iterator[None]:
    """The release with an image and a storage class that are nowhere, and objects that need them."""
    values = {
        "images": {"engine": {"repository": NOWHERE, "tag": "1"}},
        "workloads": {"state": {"storageClassName": "nowhere"}},
    }
    release = (RELEASE, "--namespace", NAMESPACE, "--wait")
    try:
        platform.helm("upgrade", *release, "--reuse-values", CHART, values=values)
        platform.kubectl.apply(
            meets("RagService", "without-image", team), meets("EmbeddingIndex", "without-volume", team)
        )
        yield
    finally:
        platform.helm("rollback", *release)


def is_told(platform: Platform, team: str, what: str, condition: str, reason: str, *words: str) -> None:
    """Wait until a condition, the summary of all, and an event have the reason and the words, as `kubectl describe` shows them."""

    def described() -> str:
        return platform.kubectl("describe", what, "-n", team)

    def told() -> bool:
        status, _, events = described().partition("\nEvents:")
        conditions = [
            one
            for one in status.split("Last Transition Time:")
            if re.search(rf"\n +Type: +({condition}|Succeeded|Ready)\n", one)
        ]
        return len(conditions) == 2 and all(part in text for text in (*conditions, events) for part in (reason, *words))

    wait_until(told, lambda: f"{(condition, reason, *words)} in {described()}", seconds=150, pause=1)


TROUBLES = {
    "more CPUs than a node has": (
        "tj/greedy", "Trained", Reason.UNSCHEDULABLE, "no node has enough cpu (each pod asks for 1k): lower spec.compute"),
    "too little memory": (
        "tj/starved", "Trained", FailureReason.OUT_OF_MEMORY, "lower hyperparameters.batchSize", "used more than its memory of 24Mi"),
    "a missing secret": (
        "ei/without-secret", "Synced", Reason.CREATE_CONTAINER_CONFIG_ERROR, "there is no secret hub-token: create it in this namespace"),
    "a program that crashes": (
        "rag/crashing", "EngineReady", Reason.CRASH_LOOP_BACK_OFF, "it ends with exit code 3 (restarts: ", LAST_LINE),
}  # fmt: skip
MISCONFIGURED = {
    "an image that is nowhere": ("rag/without-image", "EngineReady", Reason.IMAGE_PULL_BACK_OFF, f"the image {NOWHERE}:1 cannot be had", "imagePullSecrets"),
    "a storage class that is nowhere": ("ei/without-volume", "Synced", Reason.VOLUME_NOT_BOUND, 'storageclass.storage.k8s.io "nowhere" not found'),
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_what_an_object_meets_is_told(platform: Platform, team: str, applied: None, trouble: tuple[str, ...]) -> None:
    is_told(platform, team, *trouble)


@pytest.mark.parametrize("trouble", MISCONFIGURED.values(), ids=MISCONFIGURED)
def test_what_the_installation_lacks_is_told(
    platform: Platform, team: str, misconfigured: None, trouble: tuple[str, ...]
) -> None:
    is_told(platform, team, *trouble)
