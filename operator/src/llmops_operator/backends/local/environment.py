"""The environment variables of a program: little of the daemon's own, what the workload asks for, and what `Env` promises."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from llmops_api.programs import Env
from llmops_operator.backends.local import volumes
from llmops_operator.backends.local.free_ports import HOST
from llmops_operator.backends.local.home import Home
from llmops_operator.backends.local.replica_folder import MARK, ReplicaFolder
from llmops_operator.backends.surroundings import QUIET
from llmops_operator.domain.quantity import quantity
from llmops_operator.domain.workload import Owner, Workload

INHERITED = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "TMPDIR",
        "LANG",
        "LANGUAGE",
        "TZ",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "all_proxy",
        "QDRANT_API_KEY",
    ]
)
INHERITED_PREFIXES = (
    *("LC_", "XDG_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH_", "PYTORCH_"),
    *("HF_", "TRANSFORMERS_", "TOKENIZERS_", "VLLM_", "RAY_", "MLFLOW_", "AWS_"),
)
"""What the operating system, the machine's accelerators and the libraries of the programs are set up with."""


SHARING = {
    # Training, indexing and serving share the cores of one machine. Threads that spin while they wait for each other take them
    # from the other programs: measured on 2 cores, a forward pass beside other work took three times as long and as much CPU.
    "OMP_WAIT_POLICY": "PASSIVE",
}


class SecretMissing(Exception):
    """A file with a secret's value is not there."""


def compose(
    workload: Workload,
    *,
    owner: Owner,
    home: Home,
    folder: ReplicaFolder,
    port: int | None,
    surroundings: Mapping[str, str],
) -> dict[str, str]:
    """All variables of a replica's program. Raises `SecretMissing`."""
    inherited = {
        name: value for name, value in os.environ.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    env = QUIET | SHARING | inherited
    # Console scripts of the environment that this daemon runs in are found first.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env["PYTHONUNBUFFERED"] = "1"
    env |= surroundings
    env[Env.CACHE_DIR] = str(home.cache)
    if workload.cpu:
        # Of a whole program; Ray gives each of its workers a count of its own.
        env["OMP_NUM_THREADS"] = str(max(1, int(quantity(workload.cpu))))
    env |= workload.env
    env |= {volume.env: str(volumes.path(home, owner, volume)) for volume in workload.volumes}
    env |= {secret.env: read_secret(home, secret.name, secret.key) for secret in workload.secrets}
    env |= {Env.RESULT_FILE: str(folder.result), Env.PROGRESS_FILE: str(folder.progress), MARK: str(folder.root)}
    if port is not None:
        env |= {Env.HOST: HOST, Env.PORT: str(port)}
    return env


def read_secret(home: Home, name: str, key: str) -> str:
    """The value of an entry of a secret, without the newline that editors put at its end. Raises `SecretMissing`."""
    path = home.secret(name, key)
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SecretMissing(
            f"secret {name} has no entry {key}: write its value into the file {path}, it is taken over by itself"
        ) from error


def expand(command: tuple[str, ...], env: Mapping[str, str]) -> tuple[str, ...]:
    """The command with `$(NAME)` replaced as Kubernetes does it, and with this very Python where it says `python`."""
    words = [re.sub(r"\$\((\w+)\)", lambda match: env.get(match[1], match[0]), word) for word in command]
    return (sys.executable if words[0] == "python" else words[0], *words[1:])
