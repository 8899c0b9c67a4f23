"""What goes wrong around a program: its supervisor is killed or cannot begin, and the disk is full."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime

import psutil
import pytest
from local_programs import OWNER, ended, ready, running, server, starts, task, until
from waiting import eventually

from llmops_operator.backends.local.log_writing import NAME
from llmops_operator.backends.local.process_table import carrying
from llmops_operator.backends.local.replica_folder import MARK
from llmops_operator.backends.local.rotated_log import last_lines
from llmops_operator.backends.local.supervision import Supervision
from llmops_operator.domain.workload import State


async def test_a_killed_supervisor_is_noticed_and_its_program_does_not_go_on(home):
    async with running(home) as backend:
        await backend.apply(OWNER, task("import time; print('works', flush=True); time.sleep(600)"))
        folder = home.workloads / "default" / "work" / "0"
        record = folder / "run" / "process.json"
        await eventually(lambda: last_lines(folder / "log") == ["works"])
        yesterday = time.time() - 86_400
        os.utime(folder / "log" / NAME, (yesterday, yesterday))
        await eventually(lambda: record.exists() and "child" in json.loads(record.read_text()))
        process = json.loads(record.read_text())
        os.kill(process["supervisor"], 9)
        status = await until(backend, ended)
        assert (status.state, status.reason) == (State.FAILED, "Lost")
        assert datetime.fromisoformat(status.ended_at).timestamp() == pytest.approx(yesterday, abs=0.002)
        assert (
            not psutil.pid_exists(process["child"]) or psutil.Process(process["child"]).status() == psutil.STATUS_ZOMBIE
        )
        assert carrying(f"{MARK}={folder}") == []


async def test_a_server_whose_supervisor_was_killed_comes_back(home):
    async with running(home) as backend:
        await backend.apply(OWNER, server(home))
        await until(backend, ready)
        folder = home.workloads / "default" / "serve" / "0"
        os.kill(json.loads((folder / "run/process.json").read_text())["supervisor"], 9)
        await until(backend, lambda status: status.reason == "Lost")
        status = await until(backend, ready)
        assert status.restarts == 1
        assert len(starts(home)) == 2


async def test_a_supervisor_that_cannot_begin_is_tried_again_slowly(home, monkeypatch):
    supervisors = 0
    start = Supervision.start.__func__

    def broken(cls, folder, launch, env):
        nonlocal supervisors
        supervisors += 1
        return start(cls, folder, launch, env | ({"PYTHONHOME": "/nowhere"} if supervisors < 3 else {}))

    monkeypatch.setattr(Supervision, "start", classmethod(broken))
    async with running(home) as backend:
        began = time.monotonic()
        await backend.apply(OWNER, task("pass"))
        status = await until(backend, lambda status: status.reason == "CannotStart")
        assert "its supervisor ended at once" in status.message
        await until(backend, lambda status: status.state is State.SUCCEEDED)
        assert time.monotonic() - began > 3
        assert supervisors == 3


async def test_an_end_that_cannot_be_written_is_written_later(home):
    code = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.02)"
    async with running(home) as backend:
        await backend.apply(OWNER, task(code))
        folder = home.workloads / "default" / "work" / "0"
        await eventually((folder / "run" / "process.json").exists)
        (folder / "run" / "exit.json").mkdir()
        (folder / "go").touch()
        await eventually(lambda: "cannot write how the program ended" in (folder / "run/supervisor.log").read_text())
        assert backend.observe(OWNER)["work"].state is State.RUNNING
        (folder / "run" / "exit.json").rmdir()
        await until(backend, lambda status: status.state is State.SUCCEEDED)


async def test_a_full_disk_is_told_and_waited_out(home, monkeypatch):
    from llmops_operator.backends.local import replica_folder

    full = True
    write = replica_folder.write_text

    def write_text(path, text):
        if full:
            raise OSError(28, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(replica_folder, "write_text", write_text)
    async with running(home) as backend:
        await backend.apply(OWNER, task("pass", files={"a.json": "{}"}))
        status = await until(backend, lambda status: status.reason == "DiskFull")
        assert status.state is State.PENDING
        assert "a.json" in status.message
        full = False
        await until(backend, lambda status: status.state is State.SUCCEEDED)
