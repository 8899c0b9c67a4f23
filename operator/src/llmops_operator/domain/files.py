"""What the programs of the data plane are started with: config files, and the folders that outlive a try."""

from __future__ import annotations

import json

from llmops_api.programs import Env
from llmops_api.v1alpha1.meta import Model
from llmops_operator.domain.workload import Scope, Volume

STATE = Volume("state", Env.STATE_DIR, Scope.OBJECT)
CACHE = Volume("cache", Env.CACHE_DIR, Scope.SHARED)


def config_file(config: Model) -> str:
    """A config as the text of its file: the same config is always the same text."""
    return json.dumps(config.dump(), sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def program(name: str) -> tuple[str, ...]:
    """The command of a program of the data plane; its config lies in `config/NAME.json`."""
    return ("python", "-m", f"llmops_services.{name}", f"config/{name}.json")
