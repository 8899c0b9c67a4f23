"""Which cluster the tests run on: one that was named, kind where it can be had, else one made on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from harness import addons, binaries, images
from harness.binaries import CHECKOUT
from harness.kubectl import Kubectl
from harness.single_node import SingleNode
from harness.state import make_temporary

KIND_NAME = "llmops-test"


class NotHere(Exception):
    """This cluster cannot do it; the test that asks is skipped with this sentence."""


class Cluster(Protocol):
    """What tests see."""

    kubeconfig: Path
    context: str
    kubectl: Kubectl

    def load_image(self, archive: Path) -> None:
        """Make an image of an archive (of `docker save`, or of `images.pack`) known to the nodes."""

    def mount_toolchain(self, namespace: str) -> dict[str, Any]:
        """The `podTemplate` fragment that brings Python, torch, vLLM and this checkout into toolchain pods of the namespace."""

    def kill(self, namespace: str, pod: str) -> None:
        """SIGKILL to every process of a pod."""

    def recycle(self, namespace: str) -> None:
        """Take back what a deleted namespace had of the machine."""


class NamedCluster:
    """A cluster of somebody, by its context: images have to be there already."""

    def __init__(self, kubeconfig: Path, context: str) -> None:
        self.kubeconfig = kubeconfig
        self.context = context
        self.kubectl = Kubectl(shutil.which("kubectl") or binaries.binary("kubectl"), kubeconfig, context)

    def load_image(self, archive: Path) -> None:
        """Raise NotHere."""
        raise NotHere(f"images cannot be put into the cluster of context {self.context} from here")

    def mount_toolchain(self, namespace: str) -> dict[str, Any]:
        """Raise NotHere."""
        raise NotHere(f"the nodes of context {self.context} do not have this machine's folders")

    def kill(self, namespace: str, pod: str) -> None:
        """Raise NotHere."""
        raise NotHere(f"the processes of context {self.context} are not this machine's")

    def recycle(self, namespace: str) -> None:
        """Do nothing: its provisioner does."""


class KindCluster(NamedCluster):
    """A cluster of kind, which takes images."""

    def load_image(self, archive: Path) -> None:
        """Make an image of an archive known to its nodes."""
        _kind("load", "image-archive", str(archive), "--name", self.context.removeprefix("kind-"))


@contextmanager
def cluster_for_tests(context: str | None, *, allow_any_context: bool) -> Iterator[Cluster]:
    """The cluster of that context; without one, a new one that ends with the block, or one that was started here by hand."""
    if context:
        if not (context.startswith("kind-") or allow_any_context):
            raise RuntimeError(
                f"The tests create and delete what they want in {context}: say --allow-context if that is meant to happen."
            )
        kubeconfig = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube/config")
        yield (KindCluster if context.startswith("kind-") else NamedCluster)(kubeconfig, context)
        return
    node = SingleNode()
    if node.is_kept():
        yield node
    elif kind_is_here():
        with _new_kind_cluster() as cluster:
            yield cluster
    else:
        node.up(kept=False)
        try:
            yield node
        finally:
            node.down()


def kind_is_here() -> bool:
    """Whether kind and Docker work here, and kind's node image is there or comes."""
    if not (shutil.which("kind") and shutil.which("docker")):
        return False
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return False
    return _has_node_image()


def _has_node_image() -> bool:
    listed = subprocess.run(["docker", "images", "-q", "kindest/node"], capture_output=True, text=True, check=False)
    if listed.stdout.strip():
        return True
    return (
        subprocess.run(
            ["docker", "pull", "-q", f"kindest/node:{binaries.KUBERNETES_VERSION}"], capture_output=True, check=False
        ).returncode
        == 0
    )


@contextmanager
def _new_kind_cluster() -> Iterator[Cluster]:
    binaries.build(binaries.KUBERAY)
    folder = make_temporary("kind")
    kubeconfig = folder / "kubeconfig"
    where = ("--name", KIND_NAME, "--kubeconfig", str(kubeconfig))
    _kind("delete", "cluster", *where)  # what a killed run has left
    try:
        _kind("create", "cluster", *where, "--config", str(CHECKOUT / "kind-config.yaml"), "--wait", "180s")
        cluster = KindCluster(kubeconfig, f"kind-{KIND_NAME}")
        cluster.load_image(images.archive(images.KUBERAY))
        addons.install_kuberay(cluster.kubectl)
        addons.wait(cluster.kubectl, "kuberay-operator", "kuberay")
        yield cluster
    finally:
        _kind("delete", "cluster", *where)
        shutil.rmtree(folder)


def _kind(*arguments: str) -> None:
    done = subprocess.run(["kind", *arguments], capture_output=True, text=True, cwd=CHECKOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"kind {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
