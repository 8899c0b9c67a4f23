"""The narrow waist between the planes: what should run (`Workload`), and how it is doing (`WorkloadStatus`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from llmops_api.v1alpha1.meta import Progress


class Role(StrEnum):
    """What a workload does for its object."""

    TRAINER = "trainer"
    INDEXER = "indexer"
    ENGINE = "engine"
    GATEWAY = "gateway"


class Lifecycle(StrEnum):
    """Whether a workload ends by itself. One that completes is started once; one that runs is started again when it dies."""

    COMPLETES = "Completes"
    RUNS = "Runs"


class Scope(StrEnum):
    """Who shares a volume: the tries of one object's workloads, or everything."""

    OBJECT = "Object"
    SHARED = "Shared"


@dataclass(frozen=True)
class Volume:
    """A folder that outlives a try; the program finds its path in the environment variable `env`."""

    name: str
    env: str
    scope: Scope


@dataclass(frozen=True)
class Secret:
    """An entry of a secret as the environment variable `env`. Its value is never part of a workload."""

    env: str
    name: str
    key: str


@dataclass(frozen=True)
class Readiness:
    """The workload is ready when GET `path` on its port answers 200. The answer's JSON object is `WorkloadStatus.report`."""

    path: str
    period_seconds: float = 1.0
    timeout_seconds: float = 5.0


@dataclass(frozen=True, order=True, slots=True)
class Owner:
    """The object that workloads belong to."""

    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class Workload:
    """One program and how it is to be run.

    `name` is unique within the namespace; another try at the same work is another workload with another name. `files` and
    `live_files` map names under `config/` in the working folder to contents: when a file of `files` changes the program is started
    anew, a file of `live_files` is replaced under the running program, which takes it over by itself. `port` says whether it
    listens (a backend picks the number and tells it by `Env.HOST` and `Env.PORT`).
    """

    name: str
    role: Role
    lifecycle: Lifecycle
    command: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    live_files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[Secret, ...] = ()
    port: bool = False
    replicas: int = 1
    workers: int = 1
    """Ray workers that share a training or an embedding."""
    cpu: str | None = None
    """CPU, memory and GPUs are what each worker or replica gets."""
    memory: str | None = None
    gpus: int = 0
    gpu_product: str | None = None
    """The kind of GPU, as the label nvidia.com/gpu.product names it."""
    claims: tuple[str, ...] = ()
    """Persistent volume claims that the program reads, each as the folder `/mnt/pvc/<claim>`."""
    pod_template: Mapping[str, Any] = field(default_factory=dict)
    """`podTemplate` of the spec as it stands there; only where there are pods."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the object that whoever queues its work goes by."""
    volumes: tuple[Volume, ...] = ()
    readiness: Readiness | None = None
    grace_seconds: float = 15.0
    """From the polite signal to the kill."""
    deadline_seconds: int | None = None
    """A completing workload that runs longer is ended with reason DeadlineExceeded."""


class State(StrEnum):
    """Where a workload stands. `SUCCEEDED` and `FAILED` are final and only for those that complete."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class WorkloadStatus:
    """How a workload is doing.

    `reason` and `message` say why it is not (yet) well: a `Failure` of the program when it left one, else the exit and the last
    lines it wrote. `started_at` is when its program was started last, None while it waits to be. `result` is the JSON object of its
    result file. `endpoints` are the base URLs of its ready replicas.
    `restarts` counts how often a long-running one was started again.
    """

    state: State
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    started_at: str | None = None
    ended_at: str | None = None
    ready_replicas: int = 0
    endpoints: tuple[str, ...] = ()
    restarts: int = 0
    progress: Progress | None = None
    result: Mapping[str, Any] | None = None
    report: Mapping[str, Any] | None = None
    selector: str | None = None
    """What an autoscaler finds its replicas by, where there are such."""
    unasked: bool = False
    """Whether nobody has asked it for its report yet, as when the control plane has just started."""
