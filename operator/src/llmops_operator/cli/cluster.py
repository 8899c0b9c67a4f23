"""A cluster: objects, events and logs from its API server, Services through its proxy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from llmops_operator.backends.kubernetes.access import API, Cluster, ClusterError
from llmops_operator.backends.recorded import Event
from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.kinds import BY_KIND, GROUP
from llmops_operator.cli.places import Key, Object, Program

POLL_SECONDS = 1.0
"""How often a command that watches looks again."""
REACHED = httpx.Timeout(60.0)
"""The API server gives a Service 30 s to take a connection, and says so when it does not."""
MLFLOW = "app.kubernetes.io/part-of=llmops,app.kubernetes.io/component=mlflow"
INSTALL = "install it (helm install llmops helm/llmops -n llmops-system --create-namespace), or write --home DIR for this machine"


class InCluster:
    """Implements `places.Place` for a context of a kubeconfig."""

    repair = "see whether the operator runs (kubectl get pods -A -l app.kubernetes.io/part-of=llmops)"

    def __init__(self, kubeconfig: Path | None, context: str | None) -> None:
        with _said():
            self._cluster = Cluster(kubeconfig, context)
        self.namespace = self._cluster.namespace
        self.context = self._cluster.context

    def close(self) -> None:
        """Close the connections."""
        self._cluster.close()

    @contextmanager
    def reading(self) -> Iterator[ApiReader]:
        """The API server is asked at each call."""
        with _said():
            yield ApiReader(self._cluster)

    def note(self) -> str | None:
        """The operator says in conditions how things stand."""
        return None

    def programs(self, key: Key) -> list[Program]:
        """The pods of an object, the one that was made last at the end."""
        kind, namespace, name = key
        wanted = f"{GROUP}/kind={kind},{GROUP}/name={name}"
        with _said():
            found = self._cluster.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=wanted)["items"]
        found.sort(key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))
        return [Pod.of(self._cluster, pod) for pod in found]

    @contextmanager
    def reached(self, url: str) -> Iterator[str]:
        """A Service of the cluster by way of the API server; another address is where it says."""
        parts = urlsplit(url)
        names = (parts.hostname or "").split(".")
        if len(names) < 3 or names[2] != "svc":
            yield url
            return
        with _said(), self._cluster.forwarded(names[1], names[0], str(parts.port or 80)) as near:
            yield near + parts.path

    @contextmanager
    def mlflow(self) -> Iterator[str]:
        """The MLflow that the environment names, else the one that was installed with the operator."""
        if url := os.environ.get("MLFLOW_TRACKING_URI"):
            yield url
            return
        with _said():
            try:
                services = self._cluster.get("/api/v1/services", labelSelector=MLFLOW)["items"]
            except ClusterError as error:
                if error.status != 403:
                    raise
                raise CommandError(
                    f"{error}: that right is needed to find MLflow; without it, name MLflow by MLFLOW_TRACKING_URI"
                ) from error
        if not services:
            raise CommandError(
                f'there is no Service labelled {MLFLOW} in the cluster of context "{self.context}": '
                "name your MLflow by MLFLOW_TRACKING_URI"
            )
        service = services[0]
        metadata, port = service["metadata"], service["spec"]["ports"][0]["port"]
        with _said(), self._cluster.forwarded(metadata["namespace"], metadata["name"], str(port)) as near:
            self._reach(near, metadata["namespace"])
            yield near

    def _reach(self, mlflow: str, namespace: str) -> None:
        """Raise `CommandError` when the API server answers in MLflow's place: clients take that for words of MLflow."""
        repair = (
            f"see whether it runs (kubectl get pods -n {namespace} -l {MLFLOW}); where NetworkPolicies are obeyed, let the API "
            "server in by the chart's networkPolicy.mlflowFrom; or name another MLflow by MLFLOW_TRACKING_URI"
        )
        try:
            answer = httpx.get(f"{mlflow}/health", timeout=REACHED, trust_env=False)
        except httpx.HTTPError as error:
            raise CommandError(
                f"MLflow in namespace {namespace} does not answer ({type(error).__name__}): {repair}"
            ) from error
        if answer.status_code == 403:
            repair = (
                f"have the rights get, create and update on services/proxy in namespace {namespace} granted, "
                "or name MLflow by MLFLOW_TRACKING_URI"
            )
        if not answer.is_success:
            raise CommandError(f"MLflow cannot be reached: {self._cluster.refusal(answer)}: {repair}")


class ApiReader:
    """Implements `places.Reader` on the API server."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def get(self, key: Key) -> Object | None:
        """The object, or None."""
        kind, namespace, name = key
        return next((one for one in self.all_of(kind, namespace, name) if one["metadata"]["name"] == name), None)

    def all_of(self, kind: str, namespace: str | None = None, name: str | None = None) -> list[Object]:
        """All objects of a kind, by namespace and name; of one namespace, of one name, unless that is None."""
        below = f"/namespaces/{namespace}" if namespace else ""
        parameters = {"fieldSelector": f"metadata.name={name}"} if name else {}
        try:
            found = self._cluster.get(f"{API}{below}/{BY_KIND[kind].plural}", **parameters)["items"]
        except ClusterError as error:
            if error.status == 404:
                raise CommandError(f"llmops is not installed in this cluster: {INSTALL}") from error
            raise
        for item in found:
            item["metadata"].pop("managedFields", None)
        return sorted(found, key=lambda item: (item["metadata"]["namespace"], item["metadata"]["name"]))

    def events(self, key: Key | None = None, namespace: str | None = None) -> list[Event]:
        """The events of one object, or of all in a namespace; the latest last."""
        fields = {"involvedObject.apiVersion": API.removeprefix("/apis/")}
        if key:
            fields |= {"involvedObject.kind": key[0], "involvedObject.name": key[2]}
            namespace = key[1]
        below = f"/namespaces/{namespace}" if namespace else ""
        selector = ",".join(f"{name}={value}" for name, value in fields.items())
        found = self._cluster.get(f"/api/v1{below}/events", fieldSelector=selector)["items"]
        known = [_event(item) for item in found if item["involvedObject"]["kind"] in BY_KIND]
        return sorted(known, key=lambda event: event.last_time)

    def changes(self, until: float | None = None, alive: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Now, and again each second."""
        yield
        while alive() and (until is None or time.monotonic() < until):
            time.sleep(POLL_SECONDS)
            yield


def _event(item: Object) -> Event:
    """An event of either API: events.k8s.io counts in `series`, the older one in `count`."""
    about, series = item["involvedObject"], item.get("series") or {}
    first = item.get("firstTimestamp") or item.get("eventTime") or item["metadata"]["creationTimestamp"]
    return Event(
        id=item["metadata"]["uid"],
        key=(about["kind"], about.get("namespace", "default"), about["name"]),
        type=item.get("type") or "Normal",
        reason=item.get("reason") or "",
        message=item.get("message") or "",
        count=int(series.get("count") or item.get("count") or 1),
        first_time=first,
        last_time=series.get("lastObservedTime") or item.get("lastTimestamp") or first,
    )


@dataclass(frozen=True)
class Pod:
    """Implements `places.Program` for a pod; its first container is the program."""

    cluster: Cluster
    role: str
    workload: str
    namespace: str
    name: str
    container: str

    @classmethod
    def of(cls, cluster: Cluster, pod: Any) -> Pod:
        """The program in a pod as the API server describes it."""
        metadata, labels = pod["metadata"], pod["metadata"]["labels"]
        return cls(
            cluster,
            role=labels.get("app.kubernetes.io/component", "program"),
            workload=labels.get(f"{GROUP}/workload", metadata["name"]),
            namespace=metadata["namespace"],
            name=metadata["name"],
            container=pod["spec"]["containers"][0]["name"],
        )

    @property
    def number(self) -> str:
        """The last part of the pod's name, which is different for each replica."""
        return self.name.rsplit("-", 1)[-1]

    @property
    def where(self) -> str:
        """The pod, as kubectl calls it."""
        return f"pod/{self.name}"

    def last(self, tail: int) -> list[str]:
        """The last lines of its log; all for -1. A pod that has not begun has none."""
        return list(self._lines(tail))

    def follow(self, tail: int, say: Callable[[str], None]) -> None:
        """Until the pod has ended."""
        for line in self._lines(tail, follow="true"):
            say(line)

    def _lines(self, tail: int, **parameters: str) -> Iterator[str]:
        if tail >= 0:
            parameters["tailLines"] = str(tail)
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}/log"
        with _said():
            yield from self.cluster.lines(path, container=self.container, **parameters)


@contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        raise CommandError(str(error)) from error
