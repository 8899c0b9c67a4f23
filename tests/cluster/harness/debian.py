"""What the clusters need of Debian: installed where it is missing and may be installed, else named in one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

# A package, and a file that tells that it is there. What is on the PATH may as well come from elsewhere.
API_SERVER = {"etcd-server": "etcd"}
NODE = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "busybox-static": "busybox",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "nftables": "nft",
}
IMAGES = {"docker.io": "dockerd", "debootstrap": "debootstrap"}


def require(packages: dict[str, str]) -> None:
    """Install those packages whose file is missing, as root; else raise a sentence that names them."""
    missing = _missing(packages)
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {', '.join(missing)}", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        # The services that the packages bring are not wanted: invoke-rc.d starts nothing in runlevel 1.
        command = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing]
        for attempt in (["apt-get", "update", "--quiet"], command):
            done = subprocess.run(attempt, env=environment, capture_output=True, text=True, check=False)
            if done.returncode and attempt is command:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        missing = _missing(packages)
    if missing:
        raise RuntimeError(
            f"The cluster needs {', '.join(missing)}: install them (apt-get install {' '.join(missing)})."
        )


def _missing(packages: dict[str, str]) -> list[str]:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [name for name, file in packages.items() if not (Path(file).exists() or shutil.which(file, path=path))]
