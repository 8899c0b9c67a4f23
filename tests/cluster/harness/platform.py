"""llmops in a cluster, as a person installs it: the chart by helm, objects by `llmops push | kubectl apply`.

The operator's image is built from its Dockerfile. The heavy programs (gateway, indexer, trainer, vLLM, MLflow, the vector store) run from this machine's
checkout in pods of the toolchain image: their images would take ten gigabytes and a quarter of an hour. Or all images are there already, by --images.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient
from waiting import wait_until

from harness import clusters, images
from harness.helm import CHART, Helm
from harness.pods import restricted_pod
from harness.volumes import toolchain_python
from llmops_operator.backends.kubernetes.access import Cluster

OPERATOR_IMAGE = "localhost/llmops-test/operator:1"
RELEASE = "llmops"
NAMESPACE = "llmops-system"
LLMOPS = str(Path(sys.executable).with_name("llmops"))
Fragment = Mapping[str, Sequence[Any]]
"""A `podTemplate` fragment of `Cluster.mount_toolchain`, alike for every namespace; empty where the images have all that runs."""
IMAGES = {"operator": OPERATOR_IMAGE, "services": images.TOOLCHAIN, "engine": images.TOOLCHAIN}


class Platform:
    """A release of the chart, and what a person does with it."""

    def __init__(self, cluster: clusters.Cluster, helm: Helm, fragment: Fragment, values: Mapping[str, Any]) -> None:
        self.cluster, self.helm, self.kubectl = cluster, helm, cluster.kubectl
        self.fragment, self._values = fragment, values

    def install(self) -> None:
        """`helm install`, until its parts are ready."""
        self.helm("install", RELEASE, CHART, "--namespace", NAMESPACE, values=self._values)
        for what in ("deployment/operator", "deployment/mlflow", "statefulset/qdrant"):
            self.rolled_out(what.replace("/", f"/{RELEASE}-"), NAMESPACE)

    def rolled_out(self, what: str, namespace: str) -> None:
        """Wait until the pods of a Deployment or StatefulSet are those of its spec."""
        self.kubectl("rollout", "status", what, "-n", namespace, "--timeout=240s", timeout=260)

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

    def patch(self, what: str, namespace: str, spec: Mapping[str, Any]) -> None:
        """Merge something into the spec of an object."""
        self.kubectl("patch", what, "-n", namespace, "--type=merge", "-p", json.dumps({"spec": spec}))

    def status(self, what: str, namespace: str) -> dict[str, Any]:
        """The status of an object such as `rag/handbook-chat`; empty before the operator has seen its spec as it stands."""
        found = self.kubectl.get(what, "-n", namespace)
        status: dict[str, Any] = found.get("status", {})
        return status if status.get("observedGeneration") == found["metadata"]["generation"] else {}

    def condition(self, what: str, type_: str, namespace: str) -> dict[str, Any]:
        """One condition of an object; empty before there is one."""
        conditions = self.status(what, namespace).get("conditions", ())
        return next((one for one in conditions if one["type"] == type_), {})

    def wait(self, what: str, type_: str, namespace: str, *, seconds: float) -> None:
        """Until a condition of the spec as it stands is True; an AssertionError with all conditions when it is not within `seconds`, or when the object has failed."""
        conditions: list[dict[str, Any]] = []

        def said() -> str:
            return f"{what} to be {type_}: {json.dumps(conditions, indent=1)}"

        def so() -> bool:
            conditions[:] = self.status(what, namespace).get("conditions", ())
            true = {one["type"] for one in conditions if one["status"] == "True"}
            assert "Failed" not in true, said()
            return type_ in true

        wait_until(so, said, seconds=seconds, pause=2)

    def delete_objects(self, namespace: str) -> None:
        """All objects of our kinds, and what is theirs."""
        plurals = "ragservices,trainingjobs,embeddingindexes"
        self.kubectl("delete", plurals, "--all", "-n", namespace, "--timeout=200s", timeout=240)

    def python(self, *arguments: str) -> dict[str, Any]:
        """The spec of a pod that runs Python with all that the services have."""
        pod = restricted_pod([toolchain_python() if self.fragment else "python", *arguments], self.fragment)
        image = self._values["images"]["services"]
        pod["containers"][0]["image"] = f"{image['repository']}:{image['tag']}"
        return pod

    def secrets(self, *namespaces: str) -> set[str]:
        """The values of all Secrets that are nobody's notes (as helm's are), as they are and in base64."""
        found = [one for name in namespaces for one in self.kubectl.get("secrets", "-n", name)["items"]]
        values = [value for one in found if one["type"] == "Opaque" for value in one.get("data", {}).values()]
        return {text for value in values for text in (value, b64decode(value).decode())}

    def told(self, namespace: str) -> dict[str, str]:
        """All that a namespace tells, by where it stands: objects with their statuses, events, and the logs of pods."""
        kinds = "llmops,pods,jobs,deployments,statefulsets,configmaps,persistentvolumeclaims,events.events.k8s.io"
        found = {}
        for one in self.kubectl.get(kinds, "-n", namespace)["items"]:
            name = f"{one['kind'].lower()}/{one['metadata']['name']}"
            found[name] = json.dumps(one)
            if one["kind"] == "Pod":
                logs = ("logs", name, "-n", namespace, "--all-containers")
                found[f"log of {name}"] = self.kubectl.run(*logs).stdout + self.kubectl.run(*logs, "--previous").stdout
        return found

    def kill_operator(self) -> None:
        """kill -9, by the kubelet where it cannot be done from here, and a new pod instead of one that waits for its back-off."""
        selector = ("-l", "app.kubernetes.io/part-of=llmops,app.kubernetes.io/component=operator")
        for pod in self.kubectl.get("pods", "-n", NAMESPACE, *selector)["items"]:
            name = pod["metadata"]["name"]
            with contextlib.suppress(clusters.NotHere):
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

    @contextmanager
    def qdrant(self) -> Iterator[QdrantClient]:
        """A client of the release's vector store."""
        secret = self.kubectl.get("secret", f"{RELEASE}-operator-connection", "-n", NAMESPACE)
        key = b64decode(secret["data"]["QDRANT_API_KEY"]).decode()
        with self.forwarded(f"{RELEASE}-qdrant") as url:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a key without TLS, over the loopback interface
                client = QdrantClient(url=url, api_key=key, check_compatibility=False, timeout=60)
            yield client
            client.close()


@contextmanager
def installed(
    cluster: clusters.Cluster, home: Path, fragment: Fragment, images: Mapping[str, str]
) -> Iterator[Platform]:
    """A release in its namespace, which has the claims of `fragment`; gone after the block, CRDs and objects too."""
    helm = Helm(home, cluster.kubeconfig, cluster.context)
    # The chart's own pods have a HOME already, and a list of variables with one twice is refused.
    own = {**fragment, "env": [one for one in fragment.get("env", ()) if one["name"] != "HOME"]}
    extra = {f"extra{name[0].upper()}{name[1:]}": list(parts) for name, parts in own.items()}
    values = {
        "images": {
            part: dict(zip(("repository", "tag"), name.rsplit(":", 1), strict=True)) for part, name in images.items()
        },
        "workloads": {"podTemplate": dict(fragment), "cache": {"kind": "PersistentVolumeClaim"}},
        "mlflow": extra,
        "qdrant": extra,
    }
    platform = Platform(cluster, helm, fragment, values)
    try:
        platform.install()
        yield platform
    finally:
        with contextlib.suppress(RuntimeError):  # a test may have uninstalled it
            helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
        cluster.kubectl.run("delete", "crd", "-l", "app.kubernetes.io/part-of=llmops", "--timeout=60s")
