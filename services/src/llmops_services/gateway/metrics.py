"""What `/metrics` counts. Every request costs the same, however many there were."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "llmops_gateway_requests_total", "Requests by route and status", ["route", "code"], registry=self.registry
        )
        self._children: dict[tuple[str, int], Counter] = {}
        self.in_flight = 0
        self.idle = asyncio.Event()
        """Set while nothing is under way."""
        self.idle.set()
        Gauge("llmops_gateway_in_flight", "Chats and searches under way", registry=self.registry).set_function(
            lambda: self.in_flight
        )
        self.first_token = self._histogram("llmops_gateway_ttft_seconds", "Arrival to the first piece of a stream")
        self.duration = self._histogram("llmops_gateway_duration_seconds", "Arrival to the end of an answer")
        self.retrieval = self._histogram("llmops_gateway_retrieval_seconds", "One search, the embedding included")
        self.cancelled = Counter(
            "llmops_gateway_cancelled_total", "Clients that went away before their answer ended", registry=self.registry
        )

    def enter(self) -> None:
        """A chat or a search has come."""
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        """It has been answered."""
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()

    def requested(self, route: str, code: int) -> None:
        """Count a request that has been answered."""
        child = self._children.get((route, code))
        if child is None:  # routes and codes are few
            child = self._children[route, code] = self._requests.labels(route, code)
        child.inc()

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"llmops_gateway_{name}", description, registry=self.registry).set_function(value)

    def page(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, description: str) -> Histogram:
        return Histogram(name, description, buckets=_SECONDS, registry=self.registry)
