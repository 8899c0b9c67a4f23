"""What Prometheus and the kubelet ask: /metrics, /healthz (the event loop answers, the watch lives), /readyz (the caches are full)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from llmops_operator.backends.kubernetes.cache import Cache
from llmops_operator.controllers.meter import Result

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)


class Queue(Protocol):
    """What is told about the work queue."""

    def __len__(self) -> int:
        """How many keys wait."""

    @property
    def oldest_seconds(self) -> float:
        """How long the first of them has waited."""


class Metrics:
    """Implements `controllers.meter.Meter` and `client.WriteMeter`; each instance has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._looks = Histogram(
            "llmops_reconcile_duration_seconds",
            "Time of a look at an object",
            ["kind", "result"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._writes = Counter(
            "llmops_api_writes",
            "Requests to the API server that may change something, by HTTP method; code 0: not answered",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self.leader = Gauge("llmops_leader", "1 where this replica acts", registry=self.registry)

    def looked(self, kind: str, result: Result, seconds: float) -> None:
        """Count a look at an object."""
        self._looks.labels(kind, result.value).observe(seconds)

    def wrote(self, verb: str, resource: str, code: int) -> None:
        """Count a write."""
        self._writes.labels(verb, resource, str(code)).inc()

    def watch(self, queue: Queue, cache: Cache, mlflow_errors: Callable[[], int]) -> None:
        """Tell about these too, as they are whenever somebody asks."""
        self.registry.register(_Standing(queue, cache, mlflow_errors))


class _Standing(Collector):
    def __init__(self, queue: Queue, cache: Cache, mlflow_errors: Callable[[], int]) -> None:
        self._queue, self._cache, self._mlflow_errors = queue, cache, mlflow_errors

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("llmops_queue_depth", "Objects that wait to be looked at", len(self._queue))
        yield GaugeMetricFamily(
            "llmops_queue_oldest_seconds", "How long the first of them has waited", self._queue.oldest_seconds
        )
        errors = Metric("llmops_mlflow_errors", "Calls of MLflow that failed", "counter")
        errors.add_sample("llmops_mlflow_errors_total", {}, self._mlflow_errors())
        yield errors
        yield from self._objects()

    def _objects(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "llmops_objects", "Objects by a condition and its status", labels=["kind", "condition", "status"]
        )
        for labels, count in sorted(self._cache.conditions.items()):
            if count:
                family.add_metric(labels, count)
        yield family


async def serve(
    port: int, metrics: Metrics, *, healthy: Callable[[], str], ready: Callable[[], str]
) -> tuple[web.AppRunner, int]:
    """Answer on `port`, or on a free one for 0. `healthy` and `ready` say what is missing, nothing when all is well. Returns the
    runner, to be cleaned up, and the port.
    """

    async def measured(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def probe(missing: Callable[[], str]) -> Callable[[web.Request], object]:
        async def answer(request: web.Request) -> web.Response:
            said = missing()
            return web.Response(text=said or "ok", status=503 if said else 200)

        return answer

    app = web.Application()
    app.router.add_get("/metrics", measured)
    app.router.add_get("/healthz", probe(healthy))  # type: ignore[arg-type]
    app.router.add_get("/readyz", probe(ready))  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port, host="0.0.0.0").start()  # noqa: S104
    return runner, runner.addresses[0][1]
