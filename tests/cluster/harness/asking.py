"""A pod that keeps asking a service at a steady rate while something is done to it, and tells what it was refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from waiting import wait_until

from harness.kubectl import Kubectl
from harness.pods import restricted_pod
from harness.volumes import toolchain_python

NAME = "asking"
_PROGRAM = """
import asyncio, json, sys
import httpx

questions = json.loads(sys.argv[1])

async def ask(client, path, body):
    try:
        answer = await client.post(path, json=body)
        answer.raise_for_status()
    except Exception as error:
        text = error.response.text if isinstance(error, httpx.HTTPStatusError) else ""
        print(json.dumps({"path": path, "error": repr(error) + text}), flush=True)
    else:
        print(json.dumps({"path": path}), flush=True)

async def keep_asking(client, path, body, per_second):
    async with asyncio.TaskGroup() as tasks:
        while True:
            tasks.create_task(ask(client, path, body))
            await asyncio.sleep(1 / per_second)

async def main():
    async with httpx.AsyncClient(timeout=60) as client, asyncio.TaskGroup() as tasks:
        for path, body, per_second in questions:
            tasks.create_task(keep_asking(client, path, body, per_second))

asyncio.run(main())
"""

Question = tuple[str, Mapping[str, Any], float]
"""Where it is posted, the body, and how often a second."""


@contextmanager
def asking(
    kubectl: Kubectl, namespace: str, fragment: Mapping[str, Any], questions: Sequence[Question]
) -> Iterator[list[dict[str, str]]]:
    """Ask, from before the block begins until it ends. What came of each request is in the list after the block."""
    spec = restricted_pod([toolchain_python(), "-c", _PROGRAM, json.dumps(questions)], fragment)
    spec["containers"][0]["resources"] = {"requests": {"cpu": "100m"}}  # or a full node would leave it no time to ask
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "namespace": namespace}, "spec": spec})
    outcomes: list[dict[str, str]] = []

    def said() -> list[dict[str, str]]:
        return [json.loads(line) for line in kubectl.run("logs", NAME, "-n", namespace).stdout.splitlines()]

    try:
        wait_until(said, "a first answer", seconds=120, pause=1)
        yield outcomes
        outcomes += said()
    finally:
        kubectl("delete", "pod", NAME, "-n", namespace, "--grace-period=0", "--force")
