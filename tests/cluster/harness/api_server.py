"""etcd and kube-apiserver: enough of Kubernetes for all that is about objects, and none of what runs pods."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness import binaries, debian
from harness.certificates import Authority
from harness.kubectl import Kubectl
from harness.processes import Processes
from harness.state import free_ports, make_temporary, remove

# The names of the processes.
ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLERS = "kube-controller-manager"

SERVICE_RANGE = "10.96.0.0/16"
_ALONE = ("--bind-address=127.0.0.1", "--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount")
_ADMINISTRATOR = ("admin", "admin", ["system:masters"])
_KUBELET_CLIENT = ("kubelet-client", "kube-apiserver", ["system:masters"])


class ApiServer:
    """A control plane whose files lie in `folder`; `kubeconfig` names its administrator.

    At 127.0.0.1 it serves this machine alone, and no controller fills its objects in: so it asks for no service accounts.
    Another `address` is one that nodes and pods reach it at.
    """

    def __init__(self, folder: Path, *, address: str = "127.0.0.1", context: str = "llmops-test") -> None:
        debian.require(debian.API_SERVER)
        binaries.build(binaries.KUBERNETES)
        self.folder = folder
        self.address = address
        self.context = context
        self.processes = Processes(folder)
        self._authority = Authority(folder / "pki")
        self._tokens = self._authority.signing_key("tokens")
        etcd_port, peer_port, self.port = free_ports(3)
        self.url = f"https://127.0.0.1:{self.port}"
        self._etcd_url, self._peer_url = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
        self.kubeconfig = self.kubeconfig_of(*_ADMINISTRATOR)
        self.kubectl = Kubectl(binaries.binary("kubectl"), self.kubeconfig)

    def kubeconfig_of(self, name: str, user: str, groups: Sequence[str] = ()) -> Path:
        """The file NAME.kubeconfig for a user in these groups, who may do what RBAC grants."""
        pair = self._authority.issue(name, user, groups)
        path = self.folder / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        server = {"server": self.url, "certificate-authority": str(self._authority.certificate)}
        client = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": self.context, "cluster": server}],
            "users": [{"name": user, "user": client}],
            "contexts": [{"name": self.context, "context": {"cluster": self.context, "user": user}}],
            "current-context": self.context,
        }
        path.write_text(json.dumps(config, indent=1))  # JSON is YAML, and no YAML library reads it as fast
        return path

    def tls(self) -> ssl.SSLContext:
        """What a client needs to be its administrator."""
        context = ssl.create_default_context(cafile=str(self._authority.certificate))
        context.load_cert_chain(self.folder / "pki/admin.crt", self.folder / "pki/admin.key")
        return context

    def start(self) -> None:
        """Start etcd and the API server, and wait until it answers."""
        self.processes.start(
            ETCD,
            [
                "etcd",
                f"--data-dir={self.folder / 'etcd'}",
                "--unsafe-no-fsync",
                "--log-level=warn",
                f"--listen-client-urls={self._etcd_url}",
                f"--advertise-client-urls={self._etcd_url}",
                f"--listen-peer-urls={self._peer_url}",
                f"--initial-advertise-peer-urls={self._peer_url}",
                f"--initial-cluster=default={self._peer_url}",
            ],
        )
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        addresses = ["127.0.0.1", self.address, "10.96.0.1", "localhost", *names]
        serving = self._authority.issue("serving", "kube-apiserver", addresses=list(dict.fromkeys(addresses)))
        kubelets = self._authority.issue(*_KUBELET_CLIENT)
        self.processes.start(
            API_SERVER,
            [
                binaries.binary("kube-apiserver"),
                f"--etcd-servers={self._etcd_url}",
                f"--secure-port={self.port}",
                f"--tls-cert-file={serving.certificate}",
                f"--tls-private-key-file={serving.key}",
                f"--client-ca-file={self._authority.certificate}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={self._tokens.certificate}",
                f"--service-account-signing-key-file={self._tokens.key}",
                f"--service-cluster-ip-range={SERVICE_RANGE}",
                "--authorization-mode=Node,RBAC",
                f"--kubelet-client-certificate={kubelets.certificate}",
                f"--kubelet-client-key={kubelets.key}",
                "--kubelet-preferred-address-types=InternalIP",
                "--allow-privileged",
                # Tests end it often: it need not wait for connections to drain.
                "--shutdown-delay-duration=0",
                f"--advertise-address={self.address}",
                *(_ALONE if self.address == "127.0.0.1" else ()),
            ],
        )
        self.wait()

    def start_controllers(self, *flags: str) -> None:
        """Start the controllers too: objects of a deleted owner go, namespaces end, Jobs make pods (which nothing runs)."""
        self.processes.start(
            CONTROLLERS,
            [
                binaries.binary("kube-controller-manager"),
                f"--kubeconfig={self.kubeconfig_of('controllers', 'system:kube-controller-manager')}",
                f"--service-account-private-key-file={self._tokens.key}",
                f"--root-ca-file={self._authority.certificate}",
                "--use-service-account-credentials",
                "--leader-elect=false",
                "--secure-port=0",
                *flags,
            ],
        )

    def wait(self, seconds: float = 120) -> None:
        """Wait until it is ready; RuntimeError with the log's end when it ends or does not come up."""
        context = self.tls()
        deadline = time.monotonic() + seconds
        while True:
            for name in (ETCD, API_SERVER):
                self.processes.check(name)
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", context=context, timeout=5):
                    return
            except (urllib.error.URLError, OSError) as error:
                if time.monotonic() > deadline:
                    log = self.processes.tail(API_SERVER)
                    raise RuntimeError(
                        f"The API server is not ready after {seconds:.0f} s ({error}):\n{log}"
                    ) from error
            time.sleep(0.2)

    def restart(self) -> None:
        """End the API server, start it again, and wait until it answers. etcd keeps the objects."""
        self.processes.restart(API_SERVER)
        self.wait()

    def stop(self) -> None:
        """End all that was started, and remove the folder."""
        remove(self.folder)


@contextmanager
def running_api_server(*, controllers: bool = False) -> Iterator[ApiServer]:
    """An API server in a temporary folder, with kube-controller-manager if asked for, ended with the block."""
    server = ApiServer(make_temporary("api-server"))
    try:
        server.start()
        if controllers:
            server.start_controllers()
        yield server
    finally:
        server.stop()
