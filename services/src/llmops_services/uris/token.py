"""The token that a source's `secretRef` names: the control plane passes it in a variable that is called after the URI."""

from __future__ import annotations

import os

from llmops_api.programs import token_variable


def token_of(uri: str) -> str | None:
    """The token for a URI, if there is one."""
    return (os.environ.get(token_variable(uri)) or "").strip() or None
