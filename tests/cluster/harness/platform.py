"""llmops in a cluster, as a person installs it: the chart by helm, objects by `llmops push | kubectl apply`.

The operator's image is built from its Dockerfile. The heavy programs (gateway, indexer, trainer, vLLM, MLflow, the vector store) run from this machine's
checkout in pods of the toolchain image: their images would take ten gigabytes and a quarter of an hour.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import binaries, clusters, images
from harness.docker import docker_daemon
from harness.helm import CHART, Helm
from llmops_operator.backends.kubernetes.access import Cluster

OPERATOR_IMAGE = "localhost/llmops-test/operator:1"
RELEASE = "llmops"
NAMESPACE = "llmops-system"
LLMOPS = str(Path(sys.executable).with_name("llmops"))


class Platform:
    """A release of the chart, and what a person does with it."""

    def __init__(self, cluster: clusters.Cluster, helm: Helm) -> None:
        self.cluster, self.helm, self.kubectl = cluster, helm, cluster.kubectl

    def llmops(self, *words: str, timeout: float = 180) -> str:
        """What the command prints; an AssertionError with what it complains of when it fails."""
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        options = ["--kubeconfig", str(self.cluster.kubeconfig), "--context", self.cluster.context]
        done = subprocess.run(
            [LLMOPS, *options, *words], capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )
        assert done.returncode == 0, f"llmops {' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout

    def push(self, folder: Path) -> str:
        """The manifests of a folder, its files stored."""
        return self.llmops("push", str(folder))

    def apply(self, text: str, namespace: str) -> None:
        """`kubectl apply` of manifests without a namespace."""
        self.kubectl("apply", "-n", namespace, "-f", "-", stdin=text)

    def status(self, what: str, namespace: str) -> dict[str, Any]:
        """The status of an object such as `rag/handbook-chat`; empty before the operator has seen it."""
        kind, name = what.split("/")
        status: dict[str, Any] = self.kubectl.get(kind, name, "-n", namespace).get("status", {})
        return status

    def condition(self, what: str, type_: str, namespace: str) -> dict[str, Any]:
        """One condition of an object; empty before there is one."""
        conditions = self.status(what, namespace).get("conditions", ())
        return next((one for one in conditions if one["type"] == type_), {})

    def wait(self, what: str, type_: str, namespace: str, *, seconds: float) -> None:
        """Until a condition is True; an AssertionError with all conditions when it is not within `seconds`."""
        until(
            lambda: self.condition(what, type_, namespace).get("status") == "True",
            seconds=seconds,
            said=lambda: (
                f"{what} is not {type_}: {json.dumps(self.status(what, namespace).get('conditions'), indent=1)}"
            ),
        )

    def kill_operator(self) -> None:
        """kill -9, and a new pod instead of one that waits for its back-off. Raises `NotHere`."""
        selector = ("-l", "app.kubernetes.io/part-of=llmops,app.kubernetes.io/component=operator")
        for pod in self.kubectl.get("pods", "-n", NAMESPACE, *selector)["items"]:
            name = pod["metadata"]["name"]
            self.cluster.kill(NAMESPACE, name)
            self.kubectl("delete", "pod", name, "-n", NAMESPACE, "--force", "--grace-period=0", "--wait=false")

    @contextmanager
    def forwarded(self, service: str, namespace: str = NAMESPACE) -> Iterator[str]:
        """The address of a Service on this machine."""
        [port] = self.kubectl.get("service", service, "-n", namespace)["spec"]["ports"]
        with (
            contextlib.closing(Cluster(self.cluster.kubeconfig, self.cluster.context)) as place,
            place.forwarded(namespace, service, str(port["port"])) as url,
        ):
            yield url

    def qdrant_key(self) -> str:
        """The API key of the release's vector store."""
        secret = self.kubectl.get("secret", f"{RELEASE}-operator-connection", "-n", NAMESPACE)
        return b64decode(secret["data"]["QDRANT_API_KEY"]).decode()


def until(holds: Callable[[], bool], *, seconds: float, said: Callable[[], str] | str) -> None:
    """Wait for what is to become so; an AssertionError with what is said when it does not."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {said if isinstance(said, str) else said()}"
        time.sleep(0.5)


def operator_image() -> Path:
    """The archive of the operator's image, built anew from its Dockerfile for this checkout's code."""
    archive = binaries.cache() / "images" / "operator.tar"
    with docker_daemon() as docker:
        docker.build("operator/Dockerfile", OPERATOR_IMAGE, arguments={"BASE": docker.make_base()})
        docker.save(OPERATOR_IMAGE, archive)
    return archive


@contextmanager
def installed(cluster: clusters.Cluster, home: Path, fragment: Mapping[str, Sequence[Any]]) -> Iterator[Platform]:
    """A release in its namespace, which has the claims of `fragment`; gone after the block, CRDs and objects too.

    `fragment` is a `podTemplate` fragment of `Cluster.mount_toolchain`.
    """
    helm = Helm(home, cluster.kubeconfig)
    repository, tag = images.TOOLCHAIN.rsplit(":", 1)
    operator, operator_tag = OPERATOR_IMAGE.rsplit(":", 1)
    # The chart's own pods have a HOME already, and a list of variables with one twice is refused.
    own = {**fragment, "env": [one for one in fragment["env"] if one["name"] != "HOME"]}
    extra = {f"extra{name[0].upper()}{name[1:]}": list(parts) for name, parts in own.items()}
    values = {
        "images": {
            "operator": {"repository": operator, "tag": operator_tag},
            "services": {"repository": repository, "tag": tag},
            "engine": {"repository": repository, "tag": tag},
        },
        "workloads": {"podTemplate": dict(fragment), "cache": {"kind": "PersistentVolumeClaim"}},
        "mlflow": extra,
        "qdrant": extra,
    }
    try:
        helm("install", RELEASE, CHART, "--namespace", NAMESPACE, values=values)
        for kind, name in (("deployment", "operator"), ("deployment", "mlflow"), ("statefulset", "qdrant")):
            cluster.kubectl(
                "rollout", "status", f"{kind}/{RELEASE}-{name}", "-n", NAMESPACE, "--timeout=240s", timeout=260
            )
        yield Platform(cluster, helm)
    finally:
        for plural in ("ragservices", "trainingjobs", "embeddingindexes"):
            cluster.kubectl.run("delete", plural, "--all", "--all-namespaces", "--timeout=200s", timeout=240)
        with contextlib.suppress(RuntimeError):  # a test may have uninstalled it
            helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
        cluster.kubectl.run("delete", "crd", "-l", "app.kubernetes.io/part-of=llmops", "--timeout=60s")
