"""The half of a node that is not Kubernetes: containerd with its network, and how every trace of it is removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import psutil

from harness import images
from harness.processes import Processes
from harness.state import unmount_below

CONTAINERD = "containerd"
POD_RANGE = "10.244.0.0/16"
NODE_POD_RANGE = "10.244.0.0/24"
_TABLE = "llmops-test"
# What containerd, the kubelet and the network plugins make outside of folders that can be named to them.
_MADE_ELSEWHERE = (
    "/run/containerd",
    "/opt/containerd",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
)
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


class ContainerRuntime:
    """A containerd of our own: its root, state, socket and configuration lie in `folder`; the machine's own stays as it is."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder = folder
        self.socket = folder / "containerd.sock"
        self._processes = processes

    def start(self) -> None:
        """Start it, with the pause image, which no pod is without."""
        before = {"forwarding": _FORWARDING.read_text(), "absent": [p for p in _MADE_ELSEWHERE if not Path(p).exists()]}
        (self.folder / "before.json").write_text(json.dumps(before))
        _FORWARDING.write_text("1")
        self._write_network()
        config = self.folder / "containerd.toml"
        config.write_text(self._config())
        self._processes.start(CONTAINERD, ["containerd", "--config", config])
        self._await_socket()
        self.load(images.archive(images.PAUSE))

    def load(self, archive: Path) -> None:
        """Make an image of an archive known to the kubelet."""
        done = subprocess.run(
            ["ctr", "--address", self.socket, "--namespace", "k8s.io", "images", "import", archive],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"containerd does not take {archive}: {done.stdout}{done.stderr}")

    def clean(self) -> None:
        """End all containers and remove mounts, rules, control groups and files. The kubelet has to be stopped before."""
        self._processes.stop(CONTAINERD)
        self._end_containers()
        unmount_below(self.folder)
        for family, table in (("ip", _TABLE), ("ip", "kube-proxy"), ("ip6", "kube-proxy")):
            subprocess.run(["nft", "delete", "table", family, table], capture_output=True, check=False)
        for group in Path("/sys/fs/cgroup").glob("**/kubepods"):
            for below, _, _ in os.walk(group, topdown=False):
                _remove_group(Path(below))
        if (self.folder / "before.json").exists():
            before = json.loads((self.folder / "before.json").read_text())
            _FORWARDING.write_text(before["forwarding"])
            for path in before["absent"]:
                shutil.rmtree(path, ignore_errors=True)

    def _config(self) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""version = 2
root = "{self.folder}/containerd/root"
state = "{self.folder}/containerd/state"
[grpc]
  address = "{self.socket}"
[{cri}]
  sandbox_image = "{images.PAUSE}"
  restrict_oom_score_adj = true # the machine may not grant CAP_SYS_RESOURCE
  netns_mounts_under_state_dir = true # so that they are found when a killed run is cleaned away
  [{cri}.cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self.folder}/cni"
  [{cri}.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.folder}/containerd/opt"
"""

    def _write_network(self) -> None:
        """Each pod has a routed link of its own.

        On a bridge, an answer of a Service's pod to its neighbour would go past the rules that translate addresses. One rule
        of ours, in a table of its own, lets pods out.
        """
        plugin = {
            "type": "ptp",
            "mtu": 1500,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.folder / "addresses"),
                "ranges": [[{"subnet": NODE_POD_RANGE}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        (self.folder / "cni").mkdir(exist_ok=True)
        network = {"cniVersion": "0.4.0", "name": "llmops-test", "plugins": [plugin]}
        (self.folder / "cni/10-pods.conflist").write_text(json.dumps(network))
        rule = f"ip saddr {NODE_POD_RANGE} ip daddr != {POD_RANGE} masquerade"
        chain = f"chain out {{\n type nat hook postrouting priority srcnat;\n {rule};\n}}"
        subprocess.run(["nft", "-f", "-"], input=f"table ip {_TABLE} {{\n{chain}\n}}\n", text=True, check=True)

    def _await_socket(self) -> None:
        for _ in range(60):
            self._processes.check(CONTAINERD)
            asked = subprocess.run(
                ["ctr", "--address", self.socket, "--connect-timeout", "1s", "version"],
                capture_output=True,
                check=False,
            )
            if asked.returncode == 0:
                return
        raise RuntimeError(f"containerd does not answer:\n{self._processes.tail(CONTAINERD)}")

    def _end_containers(self) -> None:
        """Kill the shims of our containerd, known by its socket, with all that runs below them."""
        for shim in psutil.process_iter(["cmdline"]):
            if str(self.socket) in (shim.info["cmdline"] or []):
                family = [*shim.children(recursive=True), shim]
                for process in family:
                    try:
                        process.kill()
                    except psutil.NoSuchProcess:
                        continue
                psutil.wait_procs(family, timeout=10)


def _remove_group(group: Path) -> None:
    try:
        group.rmdir()
    except OSError:
        return
