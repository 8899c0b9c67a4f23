"""Workloads as children of their objects. What is known of them is in the API server, and what they say themselves in `Listening`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kubernetes.aio.client.exceptions import ApiException

from llmops_api.reasons import Reason
from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.children import Children, Taken
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.connection import Connection
from llmops_operator.backends.kubernetes.diagnosis import diagnose
from llmops_operator.backends.kubernetes.listening import Listening
from llmops_operator.backends.kubernetes.rendering import render
from llmops_operator.backends.kubernetes.rendering.children import main_kind
from llmops_operator.backends.kubernetes.rendering.names import APPLIED, CONNECTION, LIVE, UID, WORKLOAD
from llmops_operator.backends.kubernetes.rendering.rayjob import KIND as RAYJOB
from llmops_operator.backends.kubernetes.status import MAINS, ended_at, is_main, pods_of, status_of
from llmops_operator.controllers.ports import NotFound, NotYet, Refused
from llmops_operator.domain.fingerprint import fingerprint
from llmops_operator.domain.workload import Owner, State, Workload, WorkloadStatus

KUBERAY_MISSING = (
    "this needs several workers, and so KubeRay, whose RayJob this cluster does not have: install the KubeRay operator, it starts by "
    "itself then; or set spec.compute.workers to 1"
)
LOOK_FOR_KUBERAY_SECONDS = 10.0


class KubernetesBackend:
    """Implements `controllers.ports.Backend`. `start` returns when everything that is there is known. `acting` says whether this
    process is the one that acts: another one only watches.
    """

    def __init__(self, api: Api, config: OperatorConfig, *, acting: Callable[[], bool] = lambda: True) -> None:
        self._api, self._config = api, config
        self._connection = Connection(api, config)
        self._children = Children(api, config.watch_namespaces, self._changed)
        self._listening = Listening(api, self._children, self._tell, acting)
        self._listeners: list[Callable[[Owner], None]] = []
        self._troubles: dict[tuple[Owner, str], tuple[str, str]] = {}
        """Why a workload could not be applied: (reason, message)."""
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
        children = self._children.of(owner, *MAINS, "Pod")
        found = {
            name: status_of(main, pods_of(children, main), self._listening.heard(owner, name))
            for main in children
            if is_main(main) and (name := main["metadata"]["labels"].get(WORKLOAD))
        }
        for (troubled, name), (reason, message) in self._troubles.items():
            if troubled == owner:
                known = found.get(name, WorkloadStatus(State.PENDING))
                found[name] = known if known.reason else replace(known, reason=reason, message=message)
        return found

    def owners(self) -> frozenset[Owner]:
        """All objects that have children."""
        return self._children.owners() | {owner for owner, _ in self._troubles}

    async def apply(self, owner: Owner, workload: Workload) -> None:
        """Write what is missing or has drifted. A Job or RayJob that is there is left as it is, running or ended."""
        kind = main_kind(workload)
        key = (owner, workload.name)
        if kind == RAYJOB and self._children.absent(RAYJOB):
            self._trouble(key, (Reason.KUBE_RAY_MISSING, KUBERAY_MISSING))
            return
        try:
            await self._apply(owner, workload, kind)
        except (Refused, Taken, NotFound) as error:
            self._trouble(key, (Reason.NAME_TAKEN if isinstance(error, Taken) else Reason.REFUSED, str(error)))
            raise NotYet(str(error)) from error
        except ApiException as error:
            self._trouble(key, (Reason.REFUSED, f"the API server refuses it: {error.reason}"))
            raise NotYet(str(error.reason)) from error
        self._trouble(key, None)

    async def _apply(self, owner: Owner, workload: Workload, kind: str) -> None:
        main = self._children.get(kind, owner.namespace, workload.name)
        credentials = await self._connection.digest() if kind == "Deployment" else ""
        manifests = render(owner, workload, self._config, credentials=credentials)
        if main is not None and kind != "Deployment" and not main["metadata"].get("deletionTimestamp"):
            if main["metadata"]["labels"].get(UID) == owner.uid and ended_at(main):
                return
            # It stays as it was begun; but a file that somebody deleted is there again before its pod needs it.
            manifests = tuple(one for one in manifests if self._is_missing(one) or one["kind"] == kind)
        changes = main is None or (kind == "Deployment" and _differ(main, manifests[-1]))
        if changes or self._waits_for_connection(owner, workload.name):
            await self._connection.copy(owner.namespace)
        for manifest in manifests:
            await self._children.apply(manifest)
        if kind == "Deployment":
            await self._children.prune(owner, workload.name, manifests)
        if workload.live_files:
            await self._refresh(owner, workload)

    def _waits_for_connection(self, owner: Owner, name: str) -> bool:
        """Whether somebody deleted the copy of the credentials: no Secret is watched, but a pod that needs it says so."""
        pods = (one for one in self._children.of(owner, "Pod") if one["metadata"]["labels"].get(WORKLOAD) == name)
        reason, message = diagnose(pods)
        return reason == Reason.CREATE_CONTAINER_CONFIG_ERROR and CONNECTION in message

    def _is_missing(self, manifest: Mapping[str, Any]) -> bool:
        metadata = manifest["metadata"]
        return not self._children.has(manifest["kind"], metadata["namespace"], metadata["name"])

    def _trouble(self, key: tuple[Owner, str], cause: tuple[str, str] | None) -> None:
        """Remember why a workload could not be applied, and tell when that is new."""
        if self._troubles.get(key) == cause:
            return
        if cause is None:
            del self._troubles[key]
        else:
            self._troubles[key] = cause
        self._tell(key[0])

    async def remove(self, owner: Owner, name: str) -> None:
        """Delete its children. Raises `NotYet` while pods are still ending."""
        self._trouble((owner, name), None)
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
        for pod in self._children.of(owner, "Pod"):
            metadata = pod["metadata"]
            known = (metadata.get("annotations") or {}).get(LIVE)
            if metadata["labels"].get(WORKLOAD) == workload.name and known != digest:
                await self._children.annotate(pod, {LIVE: digest})

    async def _look_for_kuberay(self) -> None:
        while True:
            await asyncio.sleep(LOOK_FOR_KUBERAY_SECONDS)
            if not self._children.absent(RAYJOB):
                for (owner, _), (reason, _) in list(self._troubles.items()):
                    if reason == Reason.KUBE_RAY_MISSING:
                        self._tell(owner)


def _differ(main: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether something else is wanted than what was applied last."""
    applied, wished = ((one["metadata"].get("annotations") or {}).get(APPLIED) for one in (main, wanted))
    return bool(applied != wished)
