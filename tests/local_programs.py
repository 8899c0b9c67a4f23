"""Small programs, and the backend of processes that runs them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import psutil

from llmops_operator.backends.local.processes import ProcessBackend
from llmops_operator.backends.local.replica_folder import MARK
from llmops_operator.domain.workload import Lifecycle, Owner, Readiness, Role, State, Workload

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
