"""Names that both planes have to agree on."""

from __future__ import annotations

import re

COLLECTION_METADATA = "llmops"
"""The key, in the metadata of a Qdrant collection, under which one of ours says what it is; `uid` in there is its EmbeddingIndex's."""


def index_alias(namespace: str, name: str) -> str:
    """The Qdrant alias that an EmbeddingIndex is served under."""
    return f"{namespace}.{name}"


def is_version_of(alias: str, collection: str) -> bool:
    """Whether a collection is called as the versions of the index behind `alias` are."""
    return re.fullmatch(re.escape(alias) + r"\.[0-9a-f]{10}", collection) is not None


def adapter_name(model: str, version: str) -> str:
    """The name that an engine serves a version of a registered model under; other weights always have another name."""
    return f"{model}-v{version}"


def experiment_name(namespace: str) -> str:
    """The MLflow experiment of a namespace."""
    return f"llmops/{namespace}"
