"""Workloads as children of their objects. What is known of them is in the API server, and what they say themselves in `Listening`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.children import Children
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.listening import Listening
from llmops_operator.backends.kubernetes.rendering import render
from llmops_operator.backends.kubernetes.rendering.children import main_kind
from llmops_operator.backends.kubernetes.rendering.names import LIVE, WORKLOAD
from llmops_operator.backends.kubernetes.rendering.rayjob import KIND as RAYJOB
from llmops_operator.backends.kubernetes.status import is_main, pods_of, status_of
from llmops_operator.domain.fingerprint import fingerprint
from llmops_operator.domain.workload import Owner, State, Workload, WorkloadStatus

KUBERAY_MISSING = (
    "this needs several workers, and so KubeRay, whose RayJob this cluster does not have: install the KubeRay operator, it starts by "
    "itself then; or set spec.compute.workers to 1"
)
LOOK_FOR_KUBERAY_SECONDS = 10.0


class KubernetesBackend:
    """Implements `controllers.ports.Backend`. `start` returns when everything that is there is known."""

    def __init__(self, api: Api, config: OperatorConfig) -> None:
        self._config = config
        self._children = Children(api, config.watch_namespaces, self._changed)
        self._listening = Listening(api, self._children, self._tell)
        self._listeners: list[Callable[[Owner], None]] = []
        self._waiting: dict[tuple[Owner, str], Workload] = {}
        """What needs KubeRay where there is none."""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to watch."""
        await self._children.start()
        self._tasks = [asyncio.create_task(self._listening.run()), asyncio.create_task(self._look_for_kuberay())]

    async def stop(self) -> None:
        """Watch no longer. What runs goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._children.stop()

    def observe(self, owner: Owner) -> Mapping[str, WorkloadStatus]:
        """The workloads of an object."""
        children = self._children.of(owner)
        found = {
            name: status_of(main, pods_of(children, main), self._listening.heard(owner, name))
            for main in children
            if is_main(main) and (name := main["metadata"]["labels"].get(WORKLOAD))
        }
        for waiting_owner, name in self._waiting:
            if waiting_owner == owner and name not in found:
                found[name] = WorkloadStatus(State.PENDING, reason="KubeRayMissing", message=KUBERAY_MISSING)
        return found

    def owners(self) -> frozenset[Owner]:
        """All objects that have children."""
        return self._children.owners()

    async def apply(self, owner: Owner, workload: Workload) -> None:
        """Write what is missing or has drifted. A Job or RayJob that is there is left as it is, running or ended."""
        kind = main_kind(workload)
        main = self._children.get(kind, owner.namespace, workload.name)
        if main is not None and kind != "Deployment" and not main["metadata"].get("deletionTimestamp"):
            return
        key = (owner, workload.name)
        if kind == RAYJOB and self._children.absent(RAYJOB):
            if key not in self._waiting:
                self._waiting[key] = workload
                self._tell(owner)
            return
        self._waiting.pop(key, None)
        for manifest in render(owner, workload, self._config):
            await self._children.apply(manifest)
        if workload.live_files:
            await self._refresh(owner, workload)

    async def remove(self, owner: Owner, name: str) -> None:
        """Delete its children. Raises `NotYet` while pods are still ending."""
        self._waiting.pop((owner, name), None)
        await self._children.remove(owner, name)
        self._listening.forget(owner, name)

    async def discard_volumes(self, owner: Owner) -> None:
        """Delete the claim with the object's folder."""
        await self._children.remove_claims(owner)

    def subscribe(self, listener: Callable[[Owner], None]) -> None:
        """Tell of each change."""
        self._listeners.append(listener)

    def _changed(self, owner: Owner) -> None:
        self._listening.look_at(owner)
        self._tell(owner)

    def _tell(self, owner: Owner) -> None:
        for listener in self._listeners:
            listener(owner)

    async def _refresh(self, owner: Owner, workload: Workload) -> None:
        """Have the kubelets look at the live files now: they do at a change of the pod, else within a minute or two."""
        digest = fingerprint(dict(workload.live_files))[:16]
        for pod in self._children.of(owner):
            metadata = pod["metadata"]
            if pod["kind"] != "Pod" or metadata["labels"].get(WORKLOAD) != workload.name:
                continue
            if (metadata.get("annotations") or {}).get(LIVE) != digest:
                await self._children.annotate(pod, {LIVE: digest})

    async def _look_for_kuberay(self) -> None:
        while True:
            await asyncio.sleep(LOOK_FOR_KUBERAY_SECONDS)
            if self._waiting and not self._children.absent(RAYJOB):
                for owner, _ in list(self._waiting):
                    self._tell(owner)
