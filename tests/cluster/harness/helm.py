"""helm, as one callable object, for one cluster or for none."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from harness import binaries

CHART = binaries.CHECKOUT / "helm/llmops"


class Helm:
    """helm for a context of a kubeconfig, its current one where none is named; without one it can only render. Needs a folder for what helm remembers."""

    def __init__(self, home: Path, kubeconfig: Path | None = None, context: str | None = None) -> None:
        binaries.build(binaries.HELM)
        names = {"HELM_CACHE_HOME": "cache", "HELM_CONFIG_HOME": "config", "HELM_DATA_HOME": "data"}
        self._environment = {"HOME": str(home), **{name: str(home / folder) for name, folder in names.items()}}
        if kubeconfig:
            self._environment["KUBECONFIG"] = str(kubeconfig)
        if context:
            self._environment["HELM_KUBECONTEXT"] = context

    def __call__(self, *arguments: str | Path, values: Mapping[str, Any] | None = None) -> str:
        """What helm prints; RuntimeError with what it complains of when it fails."""
        done = self.run(*arguments, values=values)
        if done.returncode:
            raise RuntimeError(f"helm {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def run(self, *arguments: str | Path, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """Run helm, whatever comes of it. `values` go over those of files."""
        given = ["--values", "-"] if values is not None else []
        return subprocess.run(
            [binaries.binary("helm"), *arguments, *given],
            input=json.dumps(values) if given else None,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def template(self, values: Mapping[str, Any], *, namespace: str = "llmops-system") -> list[dict[str, Any]]:
        """The objects of a release named llmops."""
        text = self("template", "llmops", CHART, "--namespace", namespace, values=values)
        return [one for one in yaml.safe_load_all(text) if one]
