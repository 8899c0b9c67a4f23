"""Where MLflow is: the one that the environment names, else the one that the home's daemon has started."""

from __future__ import annotations

import os
from pathlib import Path

from llmops_operator.backends.local.durable import read_json
from llmops_operator.cli.faults import CommandError


def mlflow_url(home: Path) -> str:
    """The address of MLflow. Raises `CommandError` when none is known."""
    name = "MLFLOW_TRACKING_URI"
    url = os.environ.get(name) or (read_json(home / "platform.json") or {}).get(name)
    if not url:
        raise CommandError(f"no MLflow is known: start `llmops up`, or name one by {name}")
    return str(url)
