"""What every test in a cluster is given."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration
from rendered_workloads import CONFIG
from workloads import Writes

from harness.api_server import ApiServer, running_api_server
from harness.clusters import Cluster, NamedCluster, NotHere, cluster_for_tests
from harness.docker import Docker, docker_daemon
from harness.dump import dump
from harness.platform import IMAGES, NAMESPACE, OPERATOR_IMAGE, Platform, installed
from harness.pods import restricted_namespace
from llmops_operator.backends.kubernetes.api import Api
from llmops_operator.backends.kubernetes.backend import KubernetesBackend
from llmops_operator.backends.kubernetes.client import Client
from llmops_operator.domain.workload import Owner


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("llmops", "tests in a cluster")
    group.addoption("--kube-context", help="a context of the kubeconfig: kind-… (without it, the tests make a cluster)")
    group.addoption(
        "--images",
        help="images of llmops that the cluster of --kube-context has or can pull, * for operator, services and engine: registry.example/llmops-*:1.0",
    )
    group.addoption(
        "--large-images", action="store_true", help="build the images with torch and vLLM, too (long; 40 GB of disk)"
    )
    group.addoption("--allow-context", action="store_true", help="let --kube-context name a cluster that is not kind's")


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """etcd and kube-apiserver and nothing else; see `ApiServer`."""
    with running_api_server() as server:
        yield server


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> Iterator[Cluster]:
    """A cluster whose nodes run pods; see `Cluster`."""
    context = pytestconfig.getoption("--kube-context")
    with cluster_for_tests(context, allow_any_context=pytestconfig.getoption("--allow-context")) as found:
        yield found


@pytest.fixture
def make_namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Makes namespaces of the test's own under PodSecurity's level restricted; they are deleted after it."""
    made: list[str] = []

    def make() -> str:
        test = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:40].strip("-")
        made.append(f"{test}-{uuid.uuid4().hex[:6]}")
        cluster.kubectl.apply(restricted_namespace(made[-1]))
        return made[-1]

    request.node.stash[_NAMESPACES] = made
    yield make
    for name in made:
        cluster.kubectl("delete", "namespace", name, "--timeout=120s", "--ignore-not-found", timeout=150)
        cluster.recycle(name)


@pytest.fixture
def namespace(make_namespace: Callable[[], str]) -> str:
    """A namespace of the test's own."""
    return make_namespace()


@pytest.fixture(scope="session")
def docker() -> Iterator[Docker]:
    """A Docker daemon of our own, see `harness.docker`."""
    if os.geteuid():
        pytest.skip("a Docker daemon of our own needs root")
    with docker_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def operator_image(docker: Docker) -> str:
    """The image of the operator, built anew from its Dockerfile for this checkout's code."""
    docker.build("operator/Dockerfile", OPERATOR_IMAGE, arguments={"BASE": docker.make_base()})
    return OPERATOR_IMAGE


@pytest.fixture(scope="session")
def platform(
    cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """A release of the chart for all tests that want one, see `harness.platform`."""
    folder = tmp_path_factory.mktemp("platform")
    named = request.config.getoption("--images")
    if named:
        images = {part: named.replace("*", part) for part in IMAGES}
    elif isinstance(cluster, NamedCluster):
        pytest.skip(
            f"the nodes of context {cluster.context} do not have this machine's programs: "
            "name images that they have or can pull, --images 'registry.example/llmops-*:1.0'"
        )
    else:
        images = IMAGES
        archive = folder / "operator.tar"
        request.getfixturevalue("docker").save(request.getfixturevalue("operator_image"), archive)
        cluster.load_image(archive)
    cluster.kubectl.apply(restricted_namespace(NAMESPACE))
    fragment = {} if named else cluster.mount_toolchain(NAMESPACE)
    with installed(cluster, folder, fragment, images) as platform:
        yield platform
    cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=120s", timeout=150)
    cluster.recycle(NAMESPACE)


@pytest.fixture(scope="module")
def team(platform: Platform) -> Iterator[str]:
    """A namespace for the objects of a module's tests, in which heavy pods can run."""
    name = f"team-{uuid.uuid4().hex[:6]}"
    platform.kubectl.apply(restricted_namespace(name))
    if platform.fragment:
        platform.cluster.mount_toolchain(name)
    yield name
    platform.delete_objects(name)  # while there is a namespace in which an index can have its collections dropped
    platform.kubectl("delete", "namespace", name, "--timeout=120s", timeout=150)
    platform.cluster.recycle(name)


@pytest.fixture(scope="session")
def load_image(cluster: Cluster) -> Callable[[Path], None]:
    """Makes the image of an archive known to the cluster's nodes; skips the test where that cannot be."""

    def load(archive: Path) -> None:
        try:
            cluster.load_image(archive)
        except NotHere as reason:
            pytest.skip(str(reason))

    return load


@pytest.fixture
def toolchain(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """The `podTemplate` fragment for heavy pods in `namespace`; the image is `images.TOOLCHAIN`."""
    try:
        return cluster.mount_toolchain(namespace)
    except NotHere as reason:
        pytest.skip(str(reason))


_NAMESPACES = pytest.StashKey[list[str]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Add the cluster's state to the report of a failure, while its namespaces are there."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and cluster is not None and report.when != "teardown":
        namespaces = [*item.stash.get(_NAMESPACES, []), *filter(None, [item.funcargs.get("team")]), NAMESPACE]
        for headline, text in dump(cluster.kubectl, namespaces):
            report.sections.append((headline, text))
    return report


@pytest.fixture
def owner(api_server: ApiServer) -> Owner:
    """An object that could own workloads; the garbage collector does not run here, so any uid will do."""
    namespace = f"w-{uuid.uuid4().hex[:8]}"
    api_server.kubectl("create", "namespace", namespace)
    return Owner("TrainingJob", namespace, "handbook", str(uuid.uuid4()))


@pytest.fixture
def writes() -> Writes:
    """What `client` writes."""
    return Writes()


@pytest.fixture
async def client(api_server: ApiServer, writes: Writes) -> AsyncIterator[Client]:
    """The operator's client of the API server."""
    found = Configuration()
    await kube_config.load_kube_config(str(api_server.kubeconfig), client_configuration=found)
    one = Client(found, meter=writes)
    yield one
    await one.close()
    await asyncio.sleep(0.25)  # aiohttp closes connections with TLS a moment later


@pytest.fixture
async def backend(client: Client) -> AsyncIterator[KubernetesBackend]:
    """The backend under test, its watches begun."""
    one = KubernetesBackend(Api(client), CONFIG)
    await one.start()
    yield one
    await one.stop()
