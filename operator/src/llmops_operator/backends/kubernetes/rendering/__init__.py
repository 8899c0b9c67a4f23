"""From an owner, a workload and the operator's configuration to the manifests of its children. Pure: no I/O, no clock."""

from llmops_operator.backends.kubernetes.rendering.children import render

__all__ = ["render"]
