"""The baseline: the same decisions, children, statuses and events, driven the way that kopf's documentation shows.

`on.create`, `on.update` and `on.resume` handle an object, write its status and tell events; `on.delete` would drop an index's collections;
indices know what the children have come to. Deciding and rendering are the operator's own code, so that the difference is in how they are
driven. It does less than the operator does: nothing has it look again at an object whose children, or whose references, have changed.

    python bench/operator/stock_kopf.py --config FILE
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import kopf
from prometheus_client import start_http_server

from llmops_api.v1alpha1 import EmbeddingIndex, TrainingJob
from llmops_api.v1alpha1.meta import GROUP, VERSION
from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.children import KINDS as CHILDREN
from llmops_operator.backends.kubernetes.client import Client, configuration
from llmops_operator.backends.kubernetes.config import load
from llmops_operator.backends.kubernetes.metrics import Metrics
from llmops_operator.backends.kubernetes.rendering import render
from llmops_operator.backends.kubernetes.rendering.names import MANAGED_BY, MANAGER, owner_of
from llmops_operator.backends.kubernetes.status import Heard, status_of
from llmops_operator.backends.kubernetes.store import PLURALS
from llmops_operator.controllers import rag_services
from llmops_operator.controllers.gathering import Look, Sources
from llmops_operator.controllers.lineage.port import NoLineage
from llmops_operator.controllers.meter import Result
from llmops_operator.controllers.ports import Key
from llmops_operator.controllers.references import References
from llmops_operator.domain import decision, embedding_index, training_job
from llmops_operator.domain.admission import Invalid, parse
from llmops_operator.domain.embedding_index import IndexInput
from llmops_operator.domain.timing import Timing
from llmops_operator.domain.training_job import TrainingInput
from llmops_operator.domain.workload import Owner, WorkloadStatus


class Indexed:
    """What a look gathers from, out of kopf's indices."""

    def __init__(self, objects: kopf.Index[Any, Any], workloads: kopf.Index[Any, Any]) -> None:
        self._objects, self._workloads = objects, workloads

    def get(self, key: Key) -> Mapping[str, Any] | None:
        """An object."""
        return next(iter(self._objects.get(key, ())), None)

    def observe(self, owner: Owner) -> Mapping[str, WorkloadStatus]:
        """What its children have come to."""
        return {name: status_of(main, (), Heard()) for name, main in self._workloads.get(owner, ())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    config = load(parser.parse_args().config)
    kopf.configure()  # as `kopf run` does: it logs, and tells events, at level INFO
    metrics = Metrics()
    start_http_server(config.port, registry=metrics.registry)
    registry = kopf.OperatorRegistry()
    marked = {MANAGED_BY: MANAGER}
    clients: list[Client] = []

    kopf.on.login(id="login", registry=registry)(kopf.login_with_kubeconfig)

    @kopf.on.startup(registry=registry)
    async def begin(**_: Any) -> None:
        clients.append(Client(await configuration(), meter=metrics))

    @kopf.index("batch", "v1", "jobs", labels=marked, id="workloads", registry=registry)
    @kopf.index("apps", "v1", "deployments", labels=marked, id="workloads", registry=registry)
    async def workloads(body: kopf.Body, **_: Any) -> Any:
        return {owner_of(body): (body["metadata"]["name"], {"kind": body["kind"], **_projection(body)})}

    async def known(body: kopf.Body, **_: Any) -> Any:
        metadata = body["metadata"]
        return {(body["kind"], metadata["namespace"], metadata["name"]): dict(body)}

    async def handle(
        body: kopf.Body, patch: kopf.Patch, objects: kopf.Index[Any, Any], workloads: kopf.Index[Any, Any], **_: Any
    ) -> None:
        began, manifest = time.perf_counter(), dict(body)
        found = parse(manifest)
        assert not isinstance(found, Invalid), found
        indexed = Indexed(objects, workloads)
        sources = Sources(indexed, indexed, NoLineage(), References(), Timing())  # type: ignore[arg-type]
        at = Look(sources, manifest, datetime.now(UTC))
        wanted: decision.Decision[Any]
        match found:
            case TrainingJob():
                wanted = training_job.decide(TrainingInput(job=found, **at.about(found)))
            case EmbeddingIndex():
                wanted = embedding_index.decide(IndexInput(index=found, **at.about(found)))
            case _:
                wanted = rag_services.look(found, at)
        owner = decision.owner_of(manifest["kind"], found.metadata)
        api = Api(clients[0])
        for workload in wanted.workloads:
            for child in render(owner, workload, config):
                await api.apply(CHILDREN[child["kind"]], child)
        patch.status.update(wanted.status.dump())
        for event in wanted.events:
            kopf.event(body, type=event.type_, reason=event.reason, message=event.message)
        metrics.looked(manifest["kind"], Result.DONE, time.perf_counter() - began)

    @kopf.on.delete(GROUP, VERSION, PLURALS["EmbeddingIndex"], registry=registry)
    async def drop(**_: Any) -> None:
        """Nothing is deleted here; that this is there has kopf set its finalizer."""

    for plural in PLURALS.values():
        kopf.index(GROUP, VERSION, plural, id="objects", registry=registry)(known)
        for on in (kopf.on.create, kopf.on.update, kopf.on.resume):
            on(GROUP, VERSION, plural, id="handle", registry=registry)(handle)
    asyncio.run(kopf.operator(registry=registry, standalone=True, clusterwide=True))


def _projection(body: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {name: body["metadata"].get(name) for name in ("name", "namespace", "labels", "creationTimestamp")}
    spec = {name: body["spec"].get(name) for name in ("selector", "suspend")}
    return {"metadata": metadata, "spec": spec, "status": dict(body.get("status") or {})}


if __name__ == "__main__":
    main()
