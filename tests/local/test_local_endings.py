"""The end of a program: nothing that it has started is left, and the next start goes on."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import psutil
import pytest
from local_programs import OWNER, alive, ended, running, starts, task, until
from waiting import eventually

from llmops_api.programs import Env
from llmops_operator.backends.local.rotated_log import last_lines
from llmops_operator.domain.timing import timestamp
from llmops_operator.domain.workload import Scope, State, Volume

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
inner = "import os, signal, time; os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN); print('inner', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", "import os; os.environ.clear(); import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])", inner])
time.sleep(600)
"""


async def test_one_that_ignores_the_signal_is_killed_with_all_it_has_started(home):
    async with running(home) as backend:
        await backend.apply(OWNER, replace(task(STUBBORN), grace_seconds=0.5))
        folder = home.workloads / "default" / "work" / "0"
        await eventually(lambda: last_lines(folder / "log"))
        supervisor = psutil.Process(json.loads((folder / "run" / "process.json").read_text())["supervisor"])
        below = supervisor.children(recursive=True)
        assert len(below) >= 2
        began = time.monotonic()
        await backend.remove(OWNER, "work")
        assert 0.5 <= time.monotonic() - began < 30
        assert not [process for process in below if process.is_running()]
        assert backend.observe(OWNER) == {}
        assert backend.owners() == frozenset()
        assert not folder.exists()


async def test_removing_what_never_was_does_nothing(home):
    async with running(home) as backend:
        await backend.remove(OWNER, "work")
        await backend.discard_volumes(OWNER)


async def test_an_object_made_anew_does_not_inherit_the_work_of_its_namesake(home):
    other = replace(OWNER, uid="another")
    async with running(home) as backend:
        await backend.apply(OWNER, task("print('first')"))
        await until(backend, ended)
        with pytest.raises(ValueError, match="already"):
            await backend.apply(other, task("import sys; sys.exit(5)"))
        await backend.remove(other, "work")
        assert backend.owners() == {OWNER}
        await backend.remove(OWNER, "work")
        await backend.apply(other, task("import sys; sys.exit(5)"))
        status = await until(backend, ended, owner=other)
        assert status.exit_code == 5
        assert backend.observe(OWNER) == {}


async def test_an_object_with_folders_and_nothing_else_is_remembered(home):
    volumes = (Volume("state", Env.STATE_DIR, Scope.OBJECT),)
    async with running(home) as backend:
        await backend.apply(OWNER, task("pass", volumes=volumes))
        await until(backend, ended)
        await backend.remove(OWNER, "work")
    async with running(home) as backend:
        assert backend.owners() == {OWNER}
        await backend.discard_volumes(OWNER)
        assert backend.owners() == frozenset()


async def test_stopping_ends_everything_and_the_next_start_goes_on(home):
    code = (
        "import os, sys, time, pathlib\n"
        "open(os.environ['STARTS'], 'a').write('x\\n')\n"
        "state = pathlib.Path(os.environ['LLMOPS_STATE_DIR']) / 'half'\n"
        "if state.exists(): sys.exit(0)\n"
        "state.touch()\n"
        "time.sleep(600)\n"
    )
    workload = task(
        code,
        env={"STARTS": str(home.root / "starts")},
        volumes=(Volume("state", Env.STATE_DIR, Scope.OBJECT),),
    )
    async with running(home) as backend:
        await backend.apply(OWNER, workload)
        await eventually((home.volumes(OWNER) / "state" / "half").exists)
    assert alive(home) == []
    stopped = timestamp(datetime.now(UTC))
    async with running(home) as backend:
        status = await until(backend, ended)
        assert status.state is State.SUCCEEDED
        assert status.started_at >= stopped
    assert len(starts(home)) == 2
