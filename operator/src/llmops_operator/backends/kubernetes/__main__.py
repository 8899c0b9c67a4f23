"""`python -m llmops_operator.backends.kubernetes --config FILE`: be the operator."""

from __future__ import annotations

import sys

from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.backend import KubernetesBackend
from llmops_operator.backends.kubernetes.client import Client, Guard
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.leadership import LeadershipLost
from llmops_operator.backends.kubernetes.process import main


def make_backend(client: Client, config: OperatorConfig, guard: Guard) -> KubernetesBackend:
    """The backend whose writes go through the guarded client."""

    def acting() -> bool:
        try:
            return guard() > 0
        except LeadershipLost:
            return False

    return KubernetesBackend(Api(client), config, acting=acting)


if __name__ == "__main__":
    sys.exit(main(make_backend))
