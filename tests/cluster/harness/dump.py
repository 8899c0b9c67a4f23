"""What a person wants to see of a cluster when a test in it has failed."""

from __future__ import annotations

from collections.abc import Iterator

from harness.kubectl import Kubectl

_LOG_LINES = 60


def dump(kubectl: Kubectl, namespaces: list[str]) -> Iterator[tuple[str, str]]:
    """Headlines and texts: nodes, pods, events, and of these namespaces the pods' descriptions and the ends of their logs."""
    yield "nodes", _said(kubectl, "get", "nodes", "-o", "wide")
    yield "pods", _said(kubectl, "get", "pods", "-A", "-o", "wide")
    yield "events", _said(kubectl, "get", "events", "-A", "--sort-by=.metadata.creationTimestamp")[-12000:]
    for namespace in namespaces:
        yield f"llmops in {namespace}", _said(kubectl, "get", "llmops", "-n", namespace, "-o", "yaml")[-8000:]
        yield f"pods of {namespace}", _said(kubectl, "describe", "pods", "-n", namespace)[-16000:]
        for pod in _said(kubectl, "get", "pods", "-n", namespace, "-o", "name").split():
            log = _said(kubectl, "logs", pod, "-n", namespace, "--all-containers", "--prefix", f"--tail={_LOG_LINES}")
            yield f"log of {namespace}/{pod}", log


def _said(kubectl: Kubectl, *arguments: str) -> str:
    done = kubectl.run(*arguments)
    return done.stdout if done.returncode == 0 else done.stderr
