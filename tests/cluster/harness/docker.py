"""Builds images from Dockerfiles where nothing can be pulled: a Docker daemon of our own, and a base made of Debian packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness import binaries, debian
from harness.binaries import CHECKOUT
from harness.processes import Processes
from harness.state import make_temporary, remove

# Stands in for python:3.11-slim.
BASE = "localhost/llmops-test/python:3.11"
_DAEMON = "dockerd"
_PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
# What pip and others need to know of the machine to reach a package index: it goes into the base image, so that no Dockerfile names it.
_MACHINE_FILES = ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
_MACHINE_VARIABLES = (
    "PIP_CERT",
    "PIP_INDEX_URL",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "UV_INDEX_URL",
    "UV_DEFAULT_INDEX",
)
_MODULES = "import pkgutil; print(*(one.name for one in pkgutil.iter_modules()))"
# The images of services and engine have httpx, and neither curl nor wget.
_ASK = """
import httpx, sys
url, *body = sys.argv[1:]
answer = httpx.post(url, content=body[0], headers={"content-type": "application/json"}, timeout=60) if body else httpx.get(url)
print(answer.text) if answer.is_success else sys.exit(f"{answer.status_code} {answer.text}")
"""


class Docker:
    """A Docker daemon that builds; `host` is its address."""

    def __init__(self, host: str) -> None:
        self._environment = {**os.environ, "DOCKER_HOST": host, "DOCKER_BUILDKIT": "0"}

    def run(self, *arguments: str | Path) -> str:
        """Run `docker …`; RuntimeError with the end of what it said when it fails."""
        done = self._docker(*arguments)
        if done.returncode:
            raise RuntimeError(f"docker {arguments[0]} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        return done.stdout

    def _docker(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", *arguments], env=self._environment, capture_output=True, text=True, cwd=CHECKOUT, check=False
        )

    def build(
        self,
        dockerfile: str,
        tag: str,
        *,
        target: str | None = None,
        arguments: Mapping[str, str] | None = None,
        context: str = ".",
    ) -> None:
        """Build a Dockerfile, with the checkout as its context, over the machine's network."""
        options = [f"--build-arg={name}={value}" for name, value in (arguments or {}).items()]
        if target:
            options.append(f"--target={target}")
        self.run("build", "--network=host", "-f", dockerfile, "-t", tag, *options, context)

    def size(self, tag: str) -> int:
        """The bytes of an image."""
        return int(json.loads(self.run("image", "inspect", tag))[0]["Size"])

    def modules(self, tag: str) -> set[str]:
        """The names of all top-level modules that an image's Python finds."""
        return set(self.run("run", "--rm", "--network=none", "--entrypoint=python", tag, "-c", _MODULES).split())

    def save(self, tag: str, archive: Path) -> None:
        """Write an archive that `load_image` takes."""
        self.run("save", "-o", archive, tag)

    @contextmanager
    def running(self, pod: Mapping[str, Any], files: Path, *options: str) -> Iterator[str]:
        """The container of a pod, for as long as the block lasts; yields its name."""
        with self.removed(self.run_pod(pod, files, "--detach", *options)) as name:
            yield name

    @contextmanager
    def removed(self, started: str) -> Iterator[str]:
        """Ends the container that `docker run --detach` named when the block does; yields its name."""
        name = started.strip()
        try:
            yield name
        finally:
            self.run("rm", "--force", name)

    def run_pod(self, pod: Mapping[str, Any], files: Path, *options: str) -> str:
        """Run the only container of a pod by its manifest: user, read-only root, folders, variables, command.

        What config maps would bring is in `files`, all other volumes are empty, and each value of a Secret is "secret".
        """
        (container,) = pod["containers"]
        security = {**pod["securityContext"], **container["securityContext"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        return self.run(
            "run",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            f"--user={security['runAsUser']}:{security['runAsGroup']}",
            *(["--read-only"] if security["readOnlyRootFilesystem"] else []),
            *([f"--workdir={container['workingDir']}"] if "workingDir" in container else []),
            *(_mount(one, volumes.get(one["name"], {}), files) for one in container["volumeMounts"]),
            *(f"--env={one['name']}={one.get('value', 'secret')}" for one in container["env"]),
            f"--entrypoint={container['command'][0]}",
            *options,
            container["image"],
            *container["command"][1:],
        )

    def ask(self, container: str, url: str, *, seconds: float = 120, **body: Any) -> str:
        """What a server says to a POST of `body`, or to a GET, from within its container; asked until it answers with success.
        RuntimeError, with what the container has said, when it does not.
        """
        deadline = time.monotonic() + seconds
        asking = ("exec", container, "python", "-c", _ASK, url, *([json.dumps(body)] if body else []))
        while (asked := self._docker(*asking)).returncode:
            running = self.run("inspect", "--format={{.State.Running}}", container).strip() == "true"
            if not running or time.monotonic() > deadline:
                log = self._docker("logs", "--tail=50", container)
                raise RuntimeError(f"{url} does not answer: {asked.stderr[-500:]}\n{log.stdout}{log.stderr}")
            time.sleep(0.5)
        return asked.stdout

    def make_base(self) -> str:
        """Make BASE known to the daemon, and return its name."""
        if not self.run("images", "-q", BASE).strip():
            changes = [f"ENV {name}={os.environ[name]}" for name in _MACHINE_VARIABLES if name in os.environ]
            changes.append('CMD ["python3"]')
            self.run("import", *(f"--change={change}" for change in changes), _base_archive(), BASE)
        return BASE


def _mount(mount: Mapping[str, Any], volume: Mapping[str, Any], files: Path) -> str:
    if volume.keys() & {"configMap", "projected"}:
        return f"--volume={files}:{mount['mountPath']}:ro"
    return f"--tmpfs={mount['mountPath']}:exec"


@contextmanager
def docker_daemon() -> Iterator[Docker]:
    """A daemon whose images, state and socket lie in a temporary folder, and which touches no network of the machine."""
    debian.require(debian.IMAGES)
    folder = make_temporary("docker")
    processes = Processes(folder)
    host = f"unix://{folder}/docker.sock"
    try:
        processes.start(
            _DAEMON,
            [
                "dockerd",
                f"--host={host}",
                f"--data-root={folder}/data",
                f"--exec-root={folder}/exec",
                f"--pidfile={folder}/docker.pid",
                "--bridge=none",
                "--iptables=false",
                "--ip-masq=false",
                "--ip-forward=false",
            ],
        )
        docker = Docker(host)
        _await(docker, processes)
        yield docker
    finally:
        remove(folder)


def _await(docker: Docker, processes: Processes) -> None:
    deadline = time.monotonic() + 60
    while True:
        processes.check(_DAEMON)
        try:
            docker.run("version")
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
        else:
            return


def _base_archive() -> Path:
    """A small Debian with Python and pip, as a tar archive; made once per cache."""
    archive = binaries.cache() / "images" / "python-base.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(archive.with_suffix(".lock")):
        if not archive.exists():
            with tempfile.TemporaryDirectory() as temporary:
                root = Path(temporary) / "root"
                _bootstrap(root)
                aside = archive.with_suffix(".new")
                subprocess.run(["tar", "-C", root, "--one-file-system", "-cf", aside, "."], check=True)
                aside.rename(archive)
    return archive


def _bootstrap(root: Path) -> None:
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", root],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"debootstrap failed:\n{done.stdout[-3000:]}")
    for name in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / name)
        (root / name).mkdir()
    # As in python:3.11-slim, pip installs into the one Python that there is.
    (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
    for link, name in (("python", "python3"), ("python3", "python3"), ("pip", "pip3")):
        (root / "usr/local/bin" / link).symlink_to(f"/usr/bin/{name}")
    for file in _MACHINE_FILES:
        if Path(file).exists():
            shutil.copy(file, root / file.lstrip("/"))
