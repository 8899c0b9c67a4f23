import asyncio
import json
import os
import re
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import psutil
import pytest

from llmops_api.programs import Env
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.process_table import carrying
from llmops_operator.backends.local.processes import ProcessBackend
from llmops_operator.backends.local.replica_folder import MARK
from llmops_operator.backends.local.rotated_log import follow, last_lines, log_files
from llmops_operator.backends.local.supervision import Supervision
from llmops_operator.domain.workload import (
    Lifecycle,
    Owner,
    Readiness,
    Role,
    Scope,
    Secret,
    State,
    Volume,
    Workload,
)

OWNER = Owner("TrainingJob", "default", "assistant", "0123456789abcdef")

SERVER = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

with open(os.environ["STARTS"], "a") as starts:
    print(os.getpid(), os.environ["LLMOPS_PORT"], file=starts)

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        live = Path("config/live.json")
        said = {"live": live.read_text() if live.exists() else "", "message": "warming up"}
        body = json.dumps(said).encode()
        self.send_response(503 if Path("unready").exists() else 200)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

HTTPServer((os.environ["LLMOPS_HOST"], int(os.environ["LLMOPS_PORT"])), Handler).serve_forever()
"""


def python(code, *arguments):
    return ("python", "-c", code, *arguments)


def task(code, *arguments, **fields):
    return Workload("work", Role.TRAINER, Lifecycle.COMPLETES, python(code, *arguments), **fields)


def server(home, code=SERVER, **fields):
    fields = {
        "env": {"STARTS": str(home.root / "starts")},
        "port": True,
        "readiness": Readiness("/readyz", period_seconds=0.05),
        "grace_seconds": 2.0,
    } | fields
    return Workload("serve", Role.GATEWAY, Lifecycle.RUNS, python(code), **fields)


@pytest.fixture
def home(tmp_path):
    home = Home.at(tmp_path / "home")
    home.create()
    return home


@asynccontextmanager
async def running(home, **options):
    backend = ProcessBackend(home, home.workloads, **options)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


async def until(backend, holds, *, owner=OWNER, name=None, seconds=20.0):
    """The status of the owner's only workload (or the named one) once `holds`."""
    changed = asyncio.Event()
    backend.subscribe(lambda _: changed.set())
    status = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                changed.clear()
                seen = backend.observe(owner)
                status = seen.get(name) if name else next(iter(seen.values()), None)
                if status is not None and holds(status):
                    return status
                await changed.wait()
    except TimeoutError:
        raise AssertionError(f"not so within {seconds} s: {status}") from None


async def eventually(holds, seconds=20.0):
    """Wait for what nobody tells of: files and processes."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def ended(status):
    return status.state in (State.SUCCEEDED, State.FAILED)


def ready(status):
    return status.ready_replicas > 0


def starts(home):
    path = home.root / "starts"
    return path.read_text().splitlines() if path.exists() else []


def alive(home):
    """Processes that carry the mark of a replica below this home."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK, "")
        except psutil.Error:
            continue
        if mark.startswith(str(home.root)):
            found.append(process)
    return found


# Those that complete


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


# Those that run


async def test_a_server_is_ready_when_it_answers_and_reports(home):
    async with running(home) as backend:
        await backend.apply(OWNER, server(home, live_files={"live.json": "1"}))
        status = await until(backend, ready)
        assert status.state is State.RUNNING
        assert status.endpoints[0].startswith("http://127.0.0.1:")
        assert status.report["live"] == "1"
        (home.workloads / "default" / "serve" / "0" / "unready").touch()
        status = await until(backend, lambda status: not ready(status))
        assert (status.state, status.reason, status.message) == (State.RUNNING, "", "warming up")
        assert status.endpoints == ()


async def test_a_live_file_is_replaced_under_the_running_program(home):
    async with running(home) as backend:
        await backend.apply(OWNER, server(home, live_files={"live.json": "1"}))
        await until(backend, ready)
        await backend.apply(OWNER, server(home, live_files={"live.json": "2"}))
        await until(backend, lambda status: (status.report or {}).get("live") == "2")
        assert len(starts(home)) == 1


async def test_a_changed_file_starts_the_program_anew_on_the_same_port(home):
    async with running(home) as backend:
        await backend.apply(OWNER, server(home, files={"a.json": "1"}))
        before = await until(backend, ready)
        await backend.apply(OWNER, server(home, files={"a.json": "1"}))
        await backend.apply(OWNER, server(home, files={"b.json": "2"}))
        await until(backend, lambda status: ready(status) and len(starts(home)) == 2)
        after = await until(backend, ready)
        assert after.endpoints == before.endpoints
        assert after.restarts == 0
        config = home.workloads / "default" / "serve" / "0" / "config"
        assert [path.name for path in config.iterdir()] == ["b.json"]


async def test_replicas_come_and_go(home):
    async with running(home) as backend:
        await backend.apply(OWNER, server(home, replicas=2))
        status = await until(backend, lambda status: status.ready_replicas == 2)
        assert len(set(status.endpoints)) == 2
        await backend.apply(OWNER, server(home, replicas=1))
        status = await until(backend, lambda status: status.ready_replicas == 1)
        assert len(starts(home)) == 2
        assert not (home.workloads / "default" / "serve" / "1").exists()


async def test_a_program_that_dies_is_started_anew_more_and_more_slowly(home):
    code = "import os, time; open(os.environ['STARTS'], 'a').write(f'{time.time()}\\n'); print('no luck'); raise SystemExit(3)"
    async with running(home) as backend:
        await backend.apply(OWNER, server(home, code))
        status = await until(backend, lambda status: status.restarts == 2 and status.exit_code == 3, seconds=30)
        assert (status.state, status.reason) == (State.PENDING, "CrashLoopBackOff")
        assert "no luck" in status.message
        times = [float(line) for line in starts(home)]
        assert len(times) == 3
        assert times[1] - times[0] >= 1.0
        assert times[2] - times[1] >= 2.0
        # What may help is tried at once, and is no restart.
        await backend.apply(OWNER, server(home))
        status = await until(backend, ready)
        assert status.restarts == 2


async def test_a_port_that_another_program_has_taken_is_left_to_it(home):
    async with running(home) as backend:
        await backend.apply(OWNER, server(home))
        before = await until(backend, ready)
        port = int(before.endpoints[0].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        async with running(home) as backend:
            after = await until(backend, ready)
            assert after.endpoints != before.endpoints


# The end


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
    async with running(home) as backend:
        status = await until(backend, ended)
        assert status.state is State.SUCCEEDED
    assert len(starts(home)) == 2


async def test_a_killed_supervisor_is_noticed_and_its_program_does_not_go_on(home):
    async with running(home) as backend:
        await backend.apply(OWNER, task("import time; time.sleep(600)"))
        folder = home.workloads / "default" / "work" / "0"
        record = folder / "run" / "process.json"
        await eventually(lambda: record.exists() and "child" in json.loads(record.read_text()))
        process = json.loads(record.read_text())
        os.kill(process["supervisor"], 9)
        status = await until(backend, ended)
        assert (status.state, status.reason) == (State.FAILED, "Lost")
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
