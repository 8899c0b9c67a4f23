"""How a replica's program is started: its command, environment, port and files put together, and its supervisor set off."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import httpx

from llmops_operator.backends.local import volumes
from llmops_operator.backends.local.environment import compose, expand
from llmops_operator.backends.local.free_ports import FreePorts
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.log_writing import FILES, LIMIT
from llmops_operator.backends.local.replica_folder import Launch, ReplicaFolder
from llmops_operator.backends.local.supervision import Supervision
from llmops_operator.domain.quantity import quantity
from llmops_operator.domain.workload import Owner, Workload


@dataclass
class Surroundings:
    """What all workloads of a backend share. `env` may be replaced: long-running programs are then started anew."""

    home: Home
    http: httpx.AsyncClient
    env: Mapping[str, str] = field(default_factory=dict)
    ports: FreePorts = field(default_factory=FreePorts)
    log_bytes: int = LIMIT
    log_files: int = FILES
    with_volumes: set[Owner] = field(default_factory=set)
    """The objects that have folders of their own."""


@dataclass(frozen=True)
class Launching:
    """Starts the programs of one object's workload."""

    owner: Owner
    surroundings: Surroundings

    @property
    def ports(self) -> FreePorts:
        """Where ports are taken from."""
        return self.surroundings.ports

    @property
    def http(self) -> httpx.AsyncClient:
        """The client that asks for readiness."""
        return self.surroundings.http

    def digest(self, workload: Workload) -> str:
        """Of everything that asks for another start when it changes. Values of secrets are not part of it, as in a cluster."""
        parts = {
            "command": workload.command,
            "files": dict(workload.files),
            "env": dict(workload.env),
            "secrets": [(secret.env, secret.name, secret.key) for secret in workload.secrets],
            "volumes": [(volume.name, volume.env, volume.scope) for volume in workload.volumes],
            "port": workload.port,
            "workers": workload.workers,
            "cpu": workload.cpu,
            "memory": workload.memory,
            "surroundings": dict(self.surroundings.env),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def launch(self, workload: Workload, *, run: int, after: Launch | None = None) -> Launch:
        """A launch to be; the port of the one before is wanted again."""
        return Launch(
            run=run,
            digest=self.digest(workload),
            command=workload.command,
            grace_seconds=workload.grace_seconds,
            deadline_seconds=workload.deadline_seconds,
            log_bytes=self.surroundings.log_bytes,
            log_files=self.surroundings.log_files,
            memory_bytes=int(quantity(workload.memory) * workload.workers) if workload.memory else None,
            port=after.port if after else None,
            restarts=after.restarts if after else 0,
        )

    def start(self, folder: ReplicaFolder, workload: Workload, launch: Launch) -> Supervision:
        """Start a launch. Raises `SecretMissing`, `NoFreePort` and `OSError`, and then nothing has begun."""
        port = self.ports.take(launch.port) if workload.port else None
        try:
            if volumes.make(self.surroundings.home, self.owner, workload):
                self.surroundings.with_volumes.add(self.owner)
            env = compose(
                workload,
                owner=self.owner,
                home=self.surroundings.home,
                folder=folder,
                port=port,
                surroundings=self.surroundings.env,
            )
            launch = replace(launch, port=port, command=expand(workload.command, env))
            folder.prepare({**workload.files, **workload.live_files})
            folder.write_launch(launch)
            return Supervision.start(folder, launch, env)
        except BaseException:
            if port is not None:
                self.ports.give_back(port)
            raise
