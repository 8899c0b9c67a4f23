"""What is seen of an operator from outside: its own metrics, the API server's, its memory, and its objects."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping

import psutil
from prometheus_client.parser import text_string_to_metric_families

from harness.api_server import ApiServer
from llmops_api.v1alpha1.meta import API_VERSION
from llmops_operator.backends.kubernetes.api import Api, Resource
from llmops_operator.backends.kubernetes.cache import Cache
from llmops_operator.backends.kubernetes.client import Client
from llmops_operator.backends.kubernetes.informer import Informer
from llmops_operator.backends.kubernetes.store import PLURALS

SUMMARIES = {"TrainingJob": "Succeeded", "EmbeddingIndex": "Ready", "RagService": "Ready"}
LOOKS = "llmops_reconcile_duration_seconds"
WRITING = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE"})
Labels = Mapping[str, str]


class Objects:
    """All objects of our kinds, as another client sees them change."""

    def __init__(self, client: Client) -> None:
        self._cache, api = Cache(), Api(client)
        self._informers = [
            Informer(
                api,
                Resource(API_VERSION, kind, plural),
                self._cache,
                selector="",
                namespace=None,
                changed=lambda one: None,
                gone=lambda key: None,
            )
            for kind, plural in PLURALS.items()
        ]

    async def watch(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for informer in self._informers:
                tasks.create_task(informer.run())

    def settled(self) -> int:
        """How many are Ready or Succeeded."""
        return sum(self._cache.conditions[kind, condition, "True"] for kind, condition in SUMMARIES.items())

    def accepted(self) -> int:
        """How many have a status."""
        return sum(self._cache.conditions[kind, "Accepted", "True"] for kind in SUMMARIES)


class ApiWrites:
    """Writes that the API server has made, whoever asked for them, but for leases."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def count(self) -> int:
        """Since it started."""
        found = _samples(self._server.url + "/metrics", self._server)
        return int(
            sum(
                value
                for name, labels, value in found
                if name == "apiserver_request_total"
                and labels["verb"] in WRITING
                and labels["resource"] != "leases"
                and labels["group"] != "apiextensions.k8s.io"
                and labels["code"].startswith("2")
            )
        )


class OperatorMetrics:
    """What it says of itself at a moment."""

    def __init__(self, port: int) -> None:
        found = _samples(f"http://127.0.0.1:{port}/metrics")
        self.writes: Counter[str] = Counter()
        self._buckets: Counter[float] = Counter()
        self.looks = 0
        self.waiting = 0
        for name, labels, value in found:
            if name == "llmops_api_writes_total":
                self.writes[labels["resource"]] += int(value)
            elif name == f"{LOOKS}_bucket":
                self._buckets[float(labels["le"])] += int(value)
            elif name == f"{LOOKS}_count":
                self.looks += int(value)
            elif name == "llmops_queue_depth":
                self.waiting = int(value)

    def quantile(self, share: float) -> float:
        """Seconds within which this share of all looks was done, between the bounds of its bucket."""
        bounds = sorted(self._buckets)
        wanted, below, before = share * self._buckets[bounds[-1]], 0.0, 0
        for bound in bounds:
            count = self._buckets[bound]
            if count >= wanted:
                return (
                    below
                    if bound == float("inf")
                    else below + (bound - below) * (wanted - before) / max(1, count - before)
                )
            below, before = bound, count
        return below


def metrics_when_there(port: int, process: psutil.Popen) -> OperatorMetrics:
    """Its metrics, once it answers."""
    while process.poll() is None:
        try:
            return OperatorMetrics(port)
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError("the operator has ended")


def memory(process: psutil.Process) -> tuple[float, float]:
    """MB that are resident now, and that were at most."""
    with open(f"/proc/{process.pid}/status", encoding="utf-8") as lines:
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return process.memory_info().rss / 1e6, peak * 1024 / 1e6


def _samples(url: str, server: ApiServer | None = None) -> list[tuple[str, Labels, float]]:
    with urllib.request.urlopen(url, timeout=60, context=server.tls() if server else None) as answer:
        text = answer.read().decode()
    wanted = [line for line in text.splitlines() if line.startswith(("llmops_", "apiserver_request_total"))]
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families("\n".join(wanted))
        for sample in family.samples
    ]
