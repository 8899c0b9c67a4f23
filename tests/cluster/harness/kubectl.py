"""kubectl, as one callable object for one cluster."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Manifest = Mapping[str, Any]


class Kubectl:
    """kubectl for the context of a kubeconfig."""

    def __init__(self, program: str | Path, kubeconfig: Path, context: str | None = None) -> None:
        self._command = [str(program), "--kubeconfig", str(kubeconfig), *(["--context", context] if context else [])]

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """What kubectl prints; RuntimeError with what it complains of when it fails."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run kubectl, whatever comes of it."""
        return subprocess.run(
            [*self._command, *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )

    def apply(self, *manifests: Manifest) -> None:
        """Apply them on the server's side, as one who overrules other field managers."""
        self.apply_text(as_list(manifests))

    def apply_text(self, text: str) -> None:
        """Apply YAML or JSON on the server's side."""
        self("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)

    def await_crds(self, *names: str) -> None:
        """Wait until the API server serves these kinds, or all that there are."""
        # `kubectl wait` fails where the conditions are not written yet.
        deadline = time.monotonic() + 60
        while waiting := [one["metadata"]["name"] for one in self._crds(*names) if not _established(one)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"not served after a minute: {', '.join(waiting)}")
            time.sleep(0.1)

    def _crds(self, *names: str) -> list[dict[str, Any]]:
        found = self.get("crd", *names)
        return found["items"] if found["kind"] == "List" else [found]

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`, decoded."""
        return json.loads(self("get", *arguments, "-o", "json"))


def _established(crd: Mapping[str, Any]) -> bool:
    conditions = crd.get("status", {}).get("conditions") or ()
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def as_list(manifests: Iterable[Manifest]) -> str:
    """Several objects as one JSON text that kubectl reads."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
