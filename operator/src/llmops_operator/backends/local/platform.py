"""The MLflow server and the vector store of a laptop, run by the same machinery as the workloads.

Their addresses stand in `platform.json`, and stay over restarts as every replica's port does. Where the environment of `llmops up` names others (`MLFLOW_TRACKING_URI`, `QDRANT_URL`), those are used and none are started.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from urllib.parse import quote

from llmops_api.programs import Env
from llmops_operator.backends.local.durable import write_json
from llmops_operator.backends.local.free_ports import HOST
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.processes import ProcessBackend
from llmops_operator.domain.workload import Lifecycle, Owner, Readiness, Role, Workload, WorkloadStatus

OWNER = Owner("Platform", "_platform", "local", "local")
"""Not an object: no namespace of objects can have this name."""

ROLE = Role.ENGINE
"""Only a cluster's backend looks at roles."""

READY_SECONDS = 180.0
"""MLflow imports for half a minute on a busy small machine, and makes its database at the first start."""

PORT = f"$({Env.PORT})"


class PlatformError(Exception):
    """A part of the platform did not become ready. The message says which, why, and which log to read."""


def mlflow_server(home: Home) -> Workload:
    """MLflow's server with a database file, and the artifacts served by it, so that its clients need no other access."""
    database = f"sqlite:///{quote(str(home.mlflow / 'mlflow.db'))}"
    return Workload(
        name="mlflow",
        role=ROLE,
        lifecycle=Lifecycle.RUNS,
        command=(
            *("python", "-m", "mlflow", "server", "--host", HOST, "--port", PORT, "--workers", "1"),
            *("--backend-store-uri", database, "--artifacts-destination", str(home.mlflow / "artifacts")),
            # The question for readiness is asked each second; nobody wants to read that.
            *("--serve-artifacts", "--uvicorn-opts", "--no-access-log"),
        ),
        # No workers for jobs that nobody starts: they are processes with MLflow's whole import each.
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        port=True,
        readiness=Readiness("/health"),
    )


def vector_store(home: Home) -> Workload:
    """The embedded vector store. Its port stands in its config file, which is written when the port is known: at its start."""
    config = json.dumps({"folder": str(home.qdrant), "host": HOST, "port": "PORT"}).replace('"PORT"', PORT)
    program = "exec python -m llmops_services.vectorstore config/vectorstore.json"
    return Workload(
        name="qdrant",
        role=ROLE,
        lifecycle=Lifecycle.RUNS,
        command=("sh", "-c", f'printf %s "$1" > config/vectorstore.json && {program}', "sh", config),
        port=True,
        readiness=Readiness("/readyz", period_seconds=0.5),
    )


PARTS: Mapping[Env, Callable[[Home], Workload]] = {
    Env.MLFLOW_TRACKING_URI: mlflow_server,
    Env.QDRANT_URL: vector_store,
}


class Platform:
    """What all workloads share. `env` are the variables that tell programs where it is, once `start` has returned."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._backend = ProcessBackend(home, home.platform)
        self._given: dict[str, str] = {name.value: os.environ[name] for name in PARTS if os.environ.get(name)}
        self._wanted = {name.value: part(home) for name, part in PARTS.items() if name not in self._given}
        self.env: dict[str, str] = dict(self._given)

    async def start(self, *, moved: Callable[[Mapping[str, str]], None] = lambda env: None) -> None:
        """Start what is to be started and wait until it answers; `moved` is called with `env` when an address changes later.

        Raises `PlatformError`.
        """
        for folder in (self._home.mlflow, self._home.qdrant):
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        changed = asyncio.Event()
        self._backend.subscribe(lambda _: changed.set())
        await self._backend.start()
        for name in self._backend.observe(OWNER).keys() - {workload.name for workload in self._wanted.values()}:
            await self._backend.remove(OWNER, name)
        for workload in self._wanted.values():
            await self._backend.apply(OWNER, workload)
        try:
            async with asyncio.timeout(READY_SECONDS):
                while (env := self._addresses()) is None:
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            raise PlatformError(self._why_not()) from None
        self._take(env)

        def look(_: Owner) -> None:
            env = self._addresses()
            if env is not None and env != self.env:
                self._take(env)
                moved(env)

        self._backend.subscribe(look)

    async def stop(self) -> None:
        """Stop what was started."""
        await self._backend.stop()

    def _addresses(self) -> dict[str, str] | None:
        """The variables; None while a part is not ready."""
        seen = self._backend.observe(OWNER)
        found = {name: _endpoint(seen.get(workload.name)) for name, workload in self._wanted.items()}
        ready = {name: endpoint for name, endpoint in found.items() if endpoint}
        return self._given | ready if len(ready) == len(found) else None

    def _take(self, env: dict[str, str]) -> None:
        self.env = env
        write_json(self._home.platform_file, env)

    def _why_not(self) -> str:
        seen = self._backend.observe(OWNER)
        late = []
        for workload in self._wanted.values():
            status = seen.get(workload.name)
            if _endpoint(status) is None:
                log = self._home.platform / OWNER.namespace / workload.name / "0" / "log" / "out.log"
                late.append(
                    f"{workload.name} is not ready after {READY_SECONDS:g} s: {status.message if status else ''} (log: {log})"
                )
        return "; ".join(late)


def _endpoint(status: WorkloadStatus | None) -> str | None:
    return status.endpoints[0] if status and status.endpoints else None
