"""Objects that refer to each other come in every order and go in every order, on a real API server and its garbage collector.

A service, the index that it searches and the job that trains its adapter, and a second service that shares the index; each order has a
namespace of its own, and one operator looks after all of them at once.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import operators
import pytest
from operators import CHILDREN, OURS, all_settled, chain, children, configuration, not_settled, objects
from stand_in import standing_in
from waiting import wait_until

from harness.api_server import ApiServer, running_api_server

ORDERS = list(permutations(range(3)))


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with running_api_server() as server:
        operators.install_crds(server)
        server.start_controllers("--controllers=garbage-collector-controller")  # the others would run what is made
        yield server


def wishes(namespace: str) -> list[list[dict[str, Any]]]:
    """Three lots to be applied, or deleted, one after the other."""
    service, index, job = chain(namespace, "a")
    index["spec"]["deletionPolicy"] = "Retain"  # there is no vector store
    second = chain(namespace, "b")[0]
    second["spec"] = {**service["spec"], "model": {"base": {"uri": "pkg://llm/base.gguf"}}}
    return [[service, second], [index], [job]]


@pytest.mark.timeout(400)
async def test_objects_come_and_go_in_every_order(server: ApiServer, tmp_path: Path) -> None:
    places = {f"order-{uuid.uuid4().hex[:8]}": order for order in ORDERS}
    for namespace in places:
        server.kubectl("create", "namespace", namespace)
    with operators.starting(tmp_path) as start:
        operator = start(server.kubeconfig, {**configuration("default"), "watchNamespaces": []})
        operator.says(" leads")
        async with standing_in(server):
            for turn in range(3):
                lot = [one for namespace, order in places.items() for one in wishes(namespace)[order[turn]]]
                await asyncio.to_thread(server.kubectl.apply, *lot)
                await asyncio.sleep(3)  # so that the operator has seen these without the next
            for namespace in places:
                await asyncio.to_thread(
                    wait_until,
                    partial(all_settled, server, namespace, 4),
                    partial(not_settled, server, namespace),
                    seconds=90,
                    pause=1,
                )
            made = {namespace: set(children(server, namespace)) for namespace in places}
            assert len(set(map(frozenset, made.values()))) == 1, made
            ended = [[end_of(one) for one in objects(server, namespace)] for namespace in places]
            assert all(one == ended[0] for one in ended), ended
            for turn in range(3):
                for namespace, order in places.items():
                    names = [f"{one['kind']}/{one['metadata']['name']}" for one in wishes(namespace)[order[turn]]]
                    await asyncio.to_thread(server.kubectl, "delete", *names, "-n", namespace, "--timeout=60s")
            for namespace in places:
                await asyncio.to_thread(
                    wait_until,
                    lambda namespace=namespace: not left(server, namespace),  # type: ignore[misc]
                    lambda namespace=namespace: f"the end of {left(server, namespace)}",  # type: ignore[misc]
                    seconds=60,
                )
                assert objects(server, namespace) == []
        assert operator.end() == 0
        said = operator.log.read_text()
        assert "Traceback" not in said, said


def left(server: ApiServer, namespace: str) -> list[str]:
    """Children that nobody has deleted. (A claim goes when a controller that is not here takes its finalizer away.)"""
    found = server.kubectl.get(CHILDREN, "-n", namespace, "-l", OURS)["items"]
    return [one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"]]


def end_of(one: dict[str, Any]) -> tuple[str, str, str, list[tuple[str, str]]]:
    """What must not depend on the order."""
    conditions = sorted((c["type"], c["status"]) for c in one["status"]["conditions"])
    return one["kind"], one["metadata"]["name"], one["status"]["phase"], conditions
