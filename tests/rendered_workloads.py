"""A training and a gateway, and the configuration of the operator that renders them."""

from __future__ import annotations

from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.domain.files import CACHE, STATE
from llmops_operator.domain.workload import Lifecycle, Readiness, Role, Workload

CONFIG = OperatorConfig.model_validate(
    {
        "images": {"services": "llmops-services:1", "engine": "llmops-engine:1"},
        "mlflow": {"trackingUri": "http://mlflow:5000"},
        "qdrant": {"url": "http://qdrant:6333"},
        "state": {"size": "1Gi"},
        "leaderElection": {"namespace": "default"},
    }
)
TRAINER = Workload(
    name="handbook-train-1",
    role=Role.TRAINER,
    lifecycle=Lifecycle.COMPLETES,
    command=("python", "-m", "llmops_services.training", "config/training.json"),
    files={"training.json": "{}"},
    volumes=(STATE, CACHE),
)
GATEWAY = Workload(
    name="chat-gateway",
    role=Role.GATEWAY,
    lifecycle=Lifecycle.RUNS,
    command=("python", "-m", "llmops_services.gateway", "config/gateway.json"),
    live_files={"gateway.json": "{}"},
    port=True,
    replicas=2,
    cpu="1000m",
    memory="1024Mi",
    readiness=Readiness("/readyz"),
)
