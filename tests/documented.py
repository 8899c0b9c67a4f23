"""The manifests that stand in the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")])


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each stands, and what it is."""
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for manifest in yaml.safe_load_all(block):
                yield f"{page.name}:{manifest['kind']}/{manifest['metadata']['name']}", manifest
