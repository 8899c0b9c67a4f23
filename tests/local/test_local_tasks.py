"""Programs that run to completion: what they are given, what they leave, and why they failed."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import replace

import pytest
from local_programs import OWNER, alive, ended, running, starts, task, until
from waiting import eventually

from llmops_api.programs import Env
from llmops_operator.backends.local.rotated_log import follow, last_lines, log_files
from llmops_operator.domain.workload import Scope, Secret, State, Volume


async def test_a_program_that_ends_well_leaves_its_result_and_progress(home):
    code = (
        "import json, os, pathlib\n"
        "pathlib.Path(os.environ['LLMOPS_PROGRESS_FILE']).write_text(json.dumps({'doing': 'work', 'percent': 50}))\n"
        "pathlib.Path(os.environ['LLMOPS_RESULT_FILE']).write_text(json.dumps({'steps': 3}))\n"
    )
    async with running(home) as backend:
        await backend.apply(OWNER, task(code))
        status = await until(backend, ended)
        assert (status.state, status.exit_code, status.result) == (State.SUCCEEDED, 0, {"steps": 3})
        assert status.progress.percent == 50
        assert status.started_at <= status.ended_at
        assert backend.owners() == {OWNER}


@pytest.mark.parametrize(
    ("code", "exit_code", "reason", "said"),
    [
        ("import sys; print('line 17 is odd'); sys.exit(64)", 64, "Error", "ended with exit code 64: line 17 is odd"),
        ("raise ValueError('broken')", 1, "Error", "ValueError: broken"),
        ("import os; os.kill(os.getpid(), 9)", 137, "Killed", "ended by signal 9"),
        ("import os; os.kill(os.getpid(), 15)", 143, "Killed", "ended by signal 15"),
        ("import sys; sys.exit(137)", 137, "OutOfMemory", "memory"),
        (
            "import json, os, sys\n"
            "open(os.environ['LLMOPS_RESULT_FILE'], 'w').write(json.dumps({'reason': 'DataInvalid', 'message': 'line 17'}))\n"
            "sys.exit(64)",
            64,
            "DataInvalid",
            "line 17",
        ),
    ],
)
async def test_a_program_that_ends_badly_says_why(home, code, exit_code, reason, said):
    async with running(home) as backend:
        await backend.apply(OWNER, task(code))
        status = await until(backend, ended)
        assert (status.state, status.exit_code, status.reason) == (State.FAILED, exit_code, reason)
        assert said in status.message


async def test_a_command_that_is_not_there_fails_with_its_name(home):
    async with running(home) as backend:
        await backend.apply(OWNER, replace(task(""), command=("no-such-program",)))
        status = await until(backend, ended)
        assert status.exit_code == 127
        assert "cannot start no-such-program" in status.message


async def test_a_deadline_ends_a_program_that_runs_too_long(home):
    async with running(home) as backend:
        await backend.apply(OWNER, task("import time; time.sleep(60)", deadline_seconds=1))
        status = await until(backend, ended)
        assert (status.state, status.reason) == (State.FAILED, "DeadlineExceeded")


async def test_a_program_that_takes_more_memory_than_it_may_is_ended_like_a_container(home):
    """Its children count: here the child takes what is too much."""
    greedy = "x = bytearray(200 << 20); import time; time.sleep(60)"
    code = f"import subprocess, sys; print('working', flush=True); subprocess.run([sys.executable, '-c', {greedy!r}])"
    async with running(home) as backend:
        await backend.apply(OWNER, task(code, memory="100Mi"))
        status = await until(backend, ended)
    assert (status.state, status.exit_code, status.reason) == (State.FAILED, 137, "OutOfMemory")
    used = re.match(r"it had (\d+)Mi resident and compute.resources.memory allows 100Mi: raise it", status.message)
    assert used, status.message
    assert 200 <= int(used[1]) < 300
    assert not alive(home)


async def test_memory_that_processes_share_counts_once(home):
    code = (
        "import os, time; shared = bytearray(60 << 20)\n"
        "for _ in range(3): os.fork() or (time.sleep(2.5), os._exit(0))\n"
        "time.sleep(3)"
    )
    async with running(home) as backend:
        await backend.apply(OWNER, task(code, memory="120Mi"))
        status = await until(backend, ended)
    assert (status.state, status.reason) == (State.SUCCEEDED, ""), status.message


async def test_the_cores_that_a_program_asks_for_are_its_threads(home):
    code = "import os; assert os.environ['OMP_NUM_THREADS'] == '3', os.environ['OMP_NUM_THREADS']"
    async with running(home) as backend:
        await backend.apply(OWNER, task(code, cpu="3500m"))
        assert (await until(backend, ended)).state is State.SUCCEEDED


async def test_a_program_that_has_ended_is_not_started_again(home):
    code = "import os, sys; open(os.environ['STARTS'], 'a').write('x\\n'); sys.exit(1)"
    workload = task(code, env={"STARTS": str(home.root / "starts")})
    async with running(home) as backend:
        await backend.apply(OWNER, workload)
        await until(backend, ended)
        await backend.apply(OWNER, workload)
        await backend.apply(OWNER, replace(workload, files={"a.json": "{}"}))
    async with running(home) as backend:
        status = await until(backend, ended)
        assert (status.state, status.exit_code) == (State.FAILED, 1)
        await backend.apply(OWNER, workload)
        await asyncio.sleep(0.3)
    assert len(starts(home)) == 1


async def test_a_program_finds_its_files_environment_and_volumes(home):
    code = (
        "import json, os, pathlib\n"
        "found = {k: os.environ.get(k) for k in ('OWN', 'LLMOPS_STATE_DIR', 'LLMOPS_CACHE_DIR', 'TOKEN', 'MLFLOW_TRACKING_URI', 'STRANGE')}\n"
        "found['config'] = pathlib.Path('config/sub/a.json').read_text()\n"
        "found['state'] = os.path.isdir(found['LLMOPS_STATE_DIR'])\n"
        "pathlib.Path(os.environ['LLMOPS_RESULT_FILE']).write_text(json.dumps(found))\n"
    )
    home.secret("provider", "apiKey").parent.mkdir(parents=True)
    home.secret("provider", "apiKey").write_text("s3cret\n")
    os.environ["STRANGE"] = "1"
    try:
        async with running(home, env={Env.MLFLOW_TRACKING_URI: "http://mlflow"}) as backend:
            volumes = (Volume("state", Env.STATE_DIR, Scope.OBJECT), Volume("cache", Env.CACHE_DIR, Scope.SHARED))
            secrets = (Secret("TOKEN", "provider", "apiKey"),)
            await backend.apply(
                OWNER,
                task(code, files={"sub/a.json": "text"}, env={"OWN": "1"}, volumes=volumes, secrets=secrets),
            )
            status = await until(backend, ended)
            state = home.volumes(OWNER) / "state"
            assert status.result == {
                "OWN": "1",
                "LLMOPS_STATE_DIR": str(state),
                "LLMOPS_CACHE_DIR": str(home.cache),
                "TOKEN": "s3cret",
                "MLFLOW_TRACKING_URI": "http://mlflow",
                "STRANGE": None,
                "config": "text",
                "state": True,
            }
            await backend.remove(OWNER, "work")
            assert state.exists()
            await backend.discard_volumes(OWNER)
            assert not state.exists()
    finally:
        del os.environ["STRANGE"]


async def test_a_missing_secret_is_named_and_waited_for(home):
    async with running(home) as backend:
        await backend.apply(OWNER, task("pass", secrets=(Secret("TOKEN", "provider", "apiKey"),)))
        status = await until(backend, lambda status: status.reason == "SecretMissing")
        assert status.state is State.PENDING
        assert str(home.secret("provider", "apiKey")) in status.message
        home.secret("provider", "apiKey").parent.mkdir(parents=True)
        home.secret("provider", "apiKey").write_text("s3cret")
        await until(backend, lambda status: status.state is State.SUCCEEDED)


async def test_output_is_kept_in_files_of_bounded_size(home):
    code = "for n in range(20000): print(f'line {n:05d}')"
    async with running(home, log_bytes=30_000, log_files=3) as backend:
        await backend.apply(OWNER, task(code))
        await until(backend, ended)
        folder = home.workloads / "default" / "work" / "0" / "log"
        files = log_files(folder)
        assert len(files) == 3
        assert all(path.stat().st_size <= 65536 for path in files)
        lines = "".join(path.read_text() for path in files).splitlines()
        assert lines[-1] == "line 19999"
        assert lines[1:] == [f"line {n:05d}" for n in range(20000 - len(lines) + 1, 20000)]
        assert last_lines(folder)[-1] == "line 19999"


async def test_a_log_is_followed_over_its_rotations(home):
    code = "import time\nfor n in range(200):\n    print(f'line {n:03d}', flush=True)\n    time.sleep(0.005)"
    async with running(home, log_bytes=500, log_files=3) as backend:
        await backend.apply(OWNER, task(code))
        await until(backend, lambda status: status.state is State.RUNNING)
        text = ""
        async with asyncio.timeout(20):
            async for part in follow(home.workloads / "default" / "work" / "0" / "log", period_seconds=0.02):
                text += part
                if "line 199\n" in text:
                    break
        assert text.splitlines() == [f"line {n:03d}" for n in range(200)]


async def test_a_file_that_changes_while_a_program_works_starts_it_anew(home):
    code = "import os, pathlib, time\nopen(os.environ['STARTS'], 'a').write('x\\n')\nwhile pathlib.Path('config/a').read_text() == 'wait': time.sleep(0.1)\ntime.sleep(0.5)"
    workload = task(code, env={"STARTS": str(home.root / "starts")}, files={"a": "wait"})
    async with running(home) as backend:
        await backend.apply(OWNER, workload)
        await eventually(lambda: starts(home))
        await backend.apply(OWNER, replace(workload, files={"a": "go"}))
        status = await until(backend, ended)
        assert status.state is State.SUCCEEDED
        assert len(starts(home)) == 2
