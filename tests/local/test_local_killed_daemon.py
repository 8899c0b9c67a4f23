"""A daemon is killed again and again, at moments that nobody chose; what it runs goes on, once."""

import asyncio
import json
import random
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from local_programs import OWNER
from waiting import eventually

from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.processes import ProcessBackend
from llmops_operator.backends.local.rotated_log import last_lines
from llmops_operator.domain.workload import Lifecycle, Role, State, Workload

# Each start is one line; a second one of the same name at the same time finds the file locked.
PROGRAM = """
import fcntl, os, sys, time
name, seconds = sys.argv[1], float(sys.argv[2])
with open(f"{os.environ['PLACE']}/{name}", "a") as record:
    try:
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("twice", file=record, flush=True)
    print("start", file=record, flush=True)
    time.sleep(seconds)
    print("end", file=record, flush=True)
"""

DAEMON = """
import asyncio, json, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import test_local_killed_daemon as t

async def main():
    home = t.Home.at(sys.argv[1])
    backend = t.ProcessBackend(home, home.workloads)
    print("begins", flush=True)
    await backend.start()
    for workload in t.workloads(home, json.loads(sys.argv[2])):
        await backend.apply(t.OWNER, workload)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def workloads(home, files):
    place = home.root / "starts"
    place.mkdir(exist_ok=True)
    env = {"PLACE": str(place)}

    def workload(name, lifecycle, seconds, **fields):
        command = ("python", "-c", PROGRAM, name, str(seconds))
        return Workload(name, Role.TRAINER, lifecycle, command, env=env, grace_seconds=1, **fields)

    return [
        *(workload(f"short-{n}", Lifecycle.COMPLETES, 0.2 * n) for n in range(6)),
        workload("long", Lifecycle.COMPLETES, 600),
        workload("server", Lifecycle.RUNS, 600, port=True),
        workload("changing", Lifecycle.RUNS, 600, files=files),
    ]


def lines(home, name):
    path = home.root / "starts" / name
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_started_twice_and_nothing_is_lost(tmp_path, seed):
    home = Home.at(tmp_path / "home")
    home.create()
    moments = random.Random(seed)
    backend = ProcessBackend(home, home.workloads)
    try:
        for number in range(4):
            files = json.dumps({"a": str(number // 2)})
            daemon = await asyncio.create_subprocess_exec(
                sys.executable, "-c", DAEMON, str(home.root), files, *map(str, Path(__file__).parents[:2]), stdout=PIPE
            )
            await asyncio.wait_for(daemon.stdout.readline(), 30)
            await asyncio.sleep(moments.uniform(0, 0.4))
            daemon.kill()
            await daemon.wait()
        await backend.start()
        for workload in workloads(home, {"a": "last"}):
            await backend.apply(OWNER, workload)
        give_up = time.monotonic() + 60
        while not _settled(home, backend) and time.monotonic() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        seen = backend.observe(OWNER)
        for n in range(6):
            assert seen[f"short-{n}"].state is State.SUCCEEDED, seen[f"short-{n}"]
            assert lines(home, f"short-{n}") == ["start", "end"]
        for name in ("long", "server"):
            assert seen[name].state is State.RUNNING
            assert lines(home, name) == ["start"]
        assert seen["changing"].state is State.RUNNING
        assert "twice" not in lines(home, "changing")
    finally:
        await backend.stop()


def _settled(home, backend):
    seen = backend.observe(OWNER)
    return all(seen[f"short-{n}"].state is State.SUCCEEDED for n in range(6)) and seen["changing"].ready_replicas == 1


async def test_what_a_killed_daemon_was_removing_is_removed(tmp_path):
    home = Home.at(tmp_path / "home")
    home.create()
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    workload = Workload("work", Role.TRAINER, Lifecycle.COMPLETES, ("python", "-c", stubborn), grace_seconds=2)
    first = ProcessBackend(home, home.workloads)
    await first.start()
    await first.apply(OWNER, workload)
    folder = home.workloads / "default" / "work"
    await eventually(lambda: last_lines(folder / "0/log"))
    removing = asyncio.create_task(first.remove(OWNER, "work"))
    await eventually((folder / "removed.json").exists)
    removing.cancel()  # the daemon is gone; its grace of 2 s is not over
    second = ProcessBackend(home, home.workloads)
    await second.start()
    assert second.owners() == frozenset()
    assert not folder.exists()
    await second.stop()
    await first.stop()
