"""Programs that go on: readiness, files that change under them, replicas, restarts and ports."""

from __future__ import annotations

import socket

from local_programs import OWNER, ready, running, server, starts, until

from llmops_operator.domain.workload import State


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


async def test_replicas_are_started_anew_one_after_the_other(home):
    async with running(home) as backend:
        await backend.apply(OWNER, server(home, replicas=3))
        await until(backend, lambda status: status.ready_replicas == 3)
        serving = []
        backend.subscribe(lambda owner: serving.append(backend.observe(owner)["serve"].ready_replicas))
        await backend.apply(OWNER, server(home, replicas=3, files={"a.json": "1"}))
        await until(backend, lambda status: status.ready_replicas == 3 and len(starts(home)) == 6)
        assert min(serving) == 2
        # What does not come to serve keeps the others as they were.
        await backend.apply(OWNER, server(home, "raise SystemExit(3)", replicas=3))
        status = await until(backend, lambda status: status.restarts == 2)
        assert status.ready_replicas == 2
        assert min(serving) == 2


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
