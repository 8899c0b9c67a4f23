"""The credentials for MLflow and Qdrant, copied from the operator's namespace into those where its workloads run."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping

from llmops_operator.backends.kubernetes.api import Api, Resource
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.rendering.names import CONNECTION, MANAGED_BY, MANAGER
from llmops_operator.controllers.ports import NotFound, Unavailable
from llmops_operator.domain.fingerprint import fingerprint

SECRET = Resource("v1", "Secret", "secrets")
READ_AGAIN_SECONDS = 30.0


class Connection:
    """The Secret with the credentials, read now and then: the operator may read this one, and watch none."""

    def __init__(self, api: Api, config: OperatorConfig) -> None:
        self._api, self._secret, self._namespace = api, config.connection_secret, config.leader_election.namespace
        self._data: Mapping[str, str] = {}
        self._read_at = float("-inf")

    async def digest(self) -> str:
        """Another one when the credentials are others; empty when there is no such Secret configured. Raises `NotFound`."""
        if self._secret is None:
            return ""
        await self._read(self._secret.name)
        return fingerprint(self._data)[:16]

    async def value(self, name: str) -> str | None:
        """One of the credentials, if there is such. Raises `Unavailable`."""
        if self._secret is None:
            return None
        try:
            await self._read(self._secret.name)
        except NotFound:
            where = f"{self._namespace}/{self._secret.name}"
            raise Unavailable(f"the Secret {where} with {name} is not there: make it again") from None
        return base64.b64decode(self._data[name]).decode(errors="replace") if name in self._data else None

    async def _read(self, secret: str) -> None:
        if time.monotonic() - self._read_at > READ_AGAIN_SECONDS:
            self._data = dict((await self._api.read(SECRET, self._namespace, secret)).get("data") or {})
            self._read_at = time.monotonic()

    async def copy(self, namespace: str) -> None:
        """Have the Secret in `namespace` as it is in the operator's own. It is written and never read there: the operator may read
        no Secret of others; writing the same again changes nothing.
        """
        if not await self.digest():
            return
        labels = {MANAGED_BY: MANAGER, "app.kubernetes.io/part-of": "llmops"}
        metadata = {"name": CONNECTION, "namespace": namespace, "labels": labels}
        await self._api.apply(SECRET, {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": self._data})
