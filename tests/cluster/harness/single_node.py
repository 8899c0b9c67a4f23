"""A whole Kubernetes on this machine, as root: control plane, containerd, kubelet, kube-proxy, DNS, volumes and KubeRay.

There is one per machine, because it has the machine's network: its state lies at one place, where a run that was killed is
found by the next one. Ends without a trace.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
from pathlib import Path

from filelock import FileLock

from harness import addons, binaries, debian, images, volumes
from harness.api_server import API_SERVER, SERVICE_RANGE, ApiServer
from harness.kubectl import Kubectl
from harness.node import CONTAINERD, NODE_POD_RANGE, POD_RANGE, ContainerRuntime
from harness.processes import Processes
from harness.state import free_ports, own, owner_lives

FOLDER = Path("/var/lib/llmops-test-cluster")
NODE = "llmops-test"
CONTEXT = "llmops-test"
KUBELET = "kubelet"
_OWNER = "owner.json"


class SingleNode:
    """The cluster in FOLDER, whoever started it."""

    def __init__(self) -> None:
        self.kubeconfig = FOLDER / "admin.kubeconfig"
        self.context = CONTEXT
        self.processes = Processes(FOLDER)
        self.kubectl = Kubectl(binaries.binary("kubectl"), self.kubeconfig)
        self._runtime = ContainerRuntime(FOLDER, self.processes)

    def load_image(self, archive: Path) -> None:
        """Make an image known that pods name with imagePullPolicy IfNotPresent or Never."""
        self._runtime.load(archive)

    def mount_toolchain(self, namespace: str) -> dict[str, object]:
        """See `volumes.mount_toolchain`."""
        return volumes.mount_toolchain(self.kubectl, namespace)

    def recycle(self, namespace: str) -> None:
        """Take back what a namespace that is gone had of the machine."""
        volumes.recycle(self.kubectl, namespace)

    def kill(self, namespace: str, pod: str) -> None:
        """SIGKILL to every process of a pod."""
        uid = self.kubectl.get("pod", pod, "-n", namespace)["metadata"]["uid"]
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                if f"pod{uid}" in (folder / "cgroup").read_text():
                    os.kill(int(folder.name), signal.SIGKILL)

    def is_kept(self) -> bool:
        """Whether it was started by hand, and answers."""
        if not self.kubeconfig.exists() or (FOLDER / _OWNER).exists():
            return False
        alive = all(self.processes.running(name) for name in (API_SERVER, CONTAINERD, KUBELET))
        return alive and self.kubectl.run("get", "--raw", "/readyz").returncode == 0

    def up(self, *, kept: bool) -> None:
        """Start it. When it is not `kept`, it belongs to this process, and is cleaned away by the next run if this one is killed."""
        if os.geteuid() != 0:
            raise RuntimeError(
                "A cluster on this machine needs root. Name another one by --kube-context, or install kind and Docker."
            )
        debian.require(debian.API_SERVER | debian.NODE)
        binaries.build(*binaries.ALL)
        with _lock():
            if (FOLDER / _OWNER).exists() and owner_lives(FOLDER):
                owner = json.loads((FOLDER / _OWNER).read_text())["pid"]
                raise RuntimeError(
                    f"A cluster of process {owner} runs on this machine; there is room for one. Wait for its end."
                )
            self._clean()
            FOLDER.mkdir(parents=True)
            if not kept:
                own(FOLDER)
            try:
                self._start()
            except BaseException:
                shutil.copytree(FOLDER / "log", binaries.cache() / "log", dirs_exist_ok=True)
                self._clean()
                raise

    def down(self) -> None:
        """End it and remove every trace."""
        with _lock():
            self._clean()

    def _start(self) -> None:
        address = _address_of_this_machine()
        server = ApiServer(FOLDER, address=address, context=CONTEXT)
        server.start()
        server.start_controllers(
            f"--cluster-cidr={POD_RANGE}",
            "--allocate-node-cidrs",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--flex-volume-plugin-dir={FOLDER}/volume-plugins",
        )
        scheduler = server.kubeconfig_of("scheduler", "system:kube-scheduler")
        self.processes.start(
            "kube-scheduler",
            [binaries.binary("kube-scheduler"), f"--kubeconfig={scheduler}", "--leader-elect=false", "--secure-port=0"],
        )
        self._runtime.start()
        for image in (images.COREDNS, images.KUBERAY, images.TOOLCHAIN):
            self.load_image(images.archive(image))
        self._start_node(server, address)
        addons.install_dns(self.kubectl)
        addons.install_kuberay(self.kubectl)
        volumes.make_pool(self.kubectl, FOLDER / "volumes")
        self.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=120s", timeout=150)
        addons.wait(self.kubectl, "coredns", "kube-system")
        addons.wait(self.kubectl, "kuberay-operator", "kuberay")

    def _start_node(self, server: ApiServer, address: str) -> None:
        kubelet_port, health_port, metrics_port = free_ports(3)
        config = FOLDER / "kubelet.json"
        config.write_text(json.dumps(self._kubelet_config(kubelet_port)))
        node = server.kubeconfig_of("node", f"system:node:{NODE}", ["system:nodes"])
        self.processes.start(
            KUBELET,
            [
                binaries.binary("kubelet"),
                f"--config={config}",
                f"--kubeconfig={node}",
                f"--hostname-override={NODE}",
                f"--root-dir={FOLDER}/kubelet",
                f"--node-ip={address}",
            ],
        )
        proxy = server.kubeconfig_of("proxy", "system:kube-proxy")
        self.processes.start(
            "kube-proxy",
            [
                binaries.binary("kube-proxy"),
                f"--kubeconfig={proxy}",
                f"--hostname-override={NODE}",
                f"--cluster-cidr={NODE_POD_RANGE}",
                "--proxy-mode=nftables",
                f"--healthz-bind-address=127.0.0.1:{health_port}",
                f"--metrics-bind-address=127.0.0.1:{metrics_port}",
                # The limits of the machine are not ours to set.
                "--conntrack-max-per-core=0",
                "--conntrack-tcp-timeout-established=0",
                "--conntrack-tcp-timeout-close-wait=0",
            ],
        )

    def _kubelet_config(self, port: int) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "port": port,
            "healthzPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": f"{FOLDER}/pki/ca.crt"},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "makeIPTablesUtilChains": False,
            "containerRuntimeEndpoint": f"unix://{FOLDER}/containerd.sock",
            "clusterDNS": [addons.DNS_ADDRESS],
            "clusterDomain": "cluster.local",
            "podLogsDir": f"{FOLDER}/pod-logs",
            "volumePluginDir": f"{FOLDER}/volume-plugins",
            # An image that is removed to make room cannot be pulled again, and a test machine's disk is often rather full.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        }

    def _clean(self) -> None:
        if not FOLDER.exists():
            return
        self.processes.stop("kube-proxy")
        self.processes.stop(KUBELET)
        self._runtime.clean()
        self.processes.stop_all()
        shutil.rmtree(FOLDER)


def _lock() -> FileLock:
    return FileLock(FOLDER.with_suffix(".lock"))


def _address_of_this_machine() -> str:
    """The address by which this machine goes out; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
