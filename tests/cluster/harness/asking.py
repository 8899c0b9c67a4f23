"""A pod that keeps asking a service at a steady rate while something is done to it, and tells what it was refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from waiting import wait_until

from harness.platform import Platform

NAME = "asking"
_PROGRAM = """
import asyncio, json, sys
import aiohttp

questions = json.loads(sys.argv[1])

async def ask(client, places, path, body):
    try:
        async with client.post(path, json=body) as answer:
            said = await answer.text()
            answer.raise_for_status()
            print(json.dumps({"path": path, "collections": json.loads(said).get("collections")}), flush=True)
    except Exception as error:
        text = said if isinstance(error, aiohttp.ClientResponseError) else ""
        print(json.dumps({"path": path, "error": repr(error) + text}), flush=True)
    finally:
        places.release()

async def keep_asking(client, path, body, per_second):
    # By the clock, and without end; but who has so many unanswered asks no more.
    places, clock = asyncio.Semaphore(20), asyncio.get_running_loop().time
    due = clock()
    async with asyncio.TaskGroup() as tasks:
        while True:
            await places.acquire()
            tasks.create_task(ask(client, places, path, body))
            due += 1 / per_second
            await asyncio.sleep(due - clock())

async def main():
    patience = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=patience) as client, asyncio.TaskGroup() as tasks:
        for path, body, per_second in questions:
            tasks.create_task(keep_asking(client, path, body, per_second))

asyncio.run(main())
"""

Question = tuple[str, Mapping[str, Any], float]
"""Where it is posted, the body, and how often a second."""


@contextmanager
def asking(platform: Platform, namespace: str, questions: Sequence[Question]) -> Iterator[list[dict[str, Any]]]:
    """Ask, from before the block begins until it ends. What came of each request is in the list after the block: its
    `path`, and its `error` or, of a search, the `collections` that were searched, by index."""
    kubectl, spec = platform.kubectl, platform.python("-c", _PROGRAM, json.dumps(questions))
    spec["containers"][0]["resources"] = {"requests": {"cpu": "100m"}}  # or a full node would leave it no time to ask
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "namespace": namespace}, "spec": spec})
    outcomes: list[dict[str, Any]] = []

    def said() -> list[dict[str, Any]]:
        return [json.loads(line) for line in kubectl.run("logs", NAME, "-n", namespace).stdout.splitlines()]

    try:
        wait_until(said, "a first answer", seconds=120, pause=1)
        yield outcomes
        outcomes += said()
    finally:
        kubectl("delete", "pod", NAME, "-n", namespace, "--grace-period=0", "--force")
