"""The credentials for MLflow and Qdrant, copied from the operator's namespace into those where its workloads run."""

from __future__ import annotations

from llmops_operator.backends.kubernetes.api import Api, Resource
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.rendering.names import CONNECTION, MANAGED_BY, MANAGER

SECRET = Resource("v1", "Secret", "secrets")


async def copy_connection(api: Api, config: OperatorConfig, namespace: str) -> None:
    """Have the Secret in `namespace` as it is in the operator's own. It is written and never read there: the operator may read no
    Secret of others; writing the same again changes nothing.
    """
    if config.connection_secret is None:
        return
    ours = await api.read(SECRET, config.leader_election.namespace, config.connection_secret.name)
    labels = {MANAGED_BY: MANAGER, "app.kubernetes.io/part-of": "llmops"}
    metadata = {"name": CONNECTION, "namespace": namespace, "labels": labels}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": dict(ours.get("data") or {})}
    await api.apply(SECRET, secret)
