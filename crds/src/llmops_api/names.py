"""Names that both planes have to agree on."""

from __future__ import annotations


def index_alias(namespace: str, name: str) -> str:
    """The Qdrant alias that an EmbeddingIndex is served under."""
    return f"{namespace}.{name}"


def adapter_name(model: str, version: str) -> str:
    """The name that an engine serves a version of a registered model under; other weights always have another name."""
    return f"{model}-v{version}"


def experiment_name(namespace: str) -> str:
    """The MLflow experiment of a namespace."""
    return f"llmops/{namespace}"
