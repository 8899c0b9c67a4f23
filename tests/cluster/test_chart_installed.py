"""The chart in an API server with its controllers: upgrades and uninstalling lose nothing, and everybody may do what is theirs."""

from __future__ import annotations

import json
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from waiting import wait_until

from harness.addons import install_kuberay_crds
from harness.api_server import ApiServer, running_api_server
from harness.helm import CHART, Helm

RELEASE = "llmops-system"
FIRST_VALUES = Path(__file__).parent / "values/llmops-0.1.0.yaml"
OPERATOR = f"system:serviceaccount:{RELEASE}:llmops-operator"
KINDS = ("trainingjobs", "embeddingindexes", "ragservices")
INDEX = """
apiVersion: llmops.dev/v1alpha1
kind: EmbeddingIndex
metadata: {name: handbook, namespace: team-a}
spec:
  sources: [{name: hr, uri: "pvc://documents/hr"}]
  embedding: {model: {uri: "hf://org/model"}}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with running_api_server(controllers=True) as server:
        for name in (RELEASE, "team-a", "team-b"):
            server.kubectl("create", "namespace", name)
        # kubectl asks for rights on kinds that it knows.
        install_kuberay_crds(server.kubectl)
        server.kubectl.await_crds("rayjobs.ray.io")
        yield server


@pytest.fixture(scope="module")
def helm(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Has installed a release `llmops` by the first version's values."""
    helm = Helm(tmp_path_factory.mktemp("helm"), server.kubeconfig)
    helm("install", "llmops", CHART, "--namespace", RELEASE, "--values", FIRST_VALUES)
    server.kubectl.await_crds(*(f"{kind}.llmops.dev" for kind in KINDS))
    return helm


def may(server: ApiServer, who: str, verb: str, what: str, namespace: str = "team-a") -> bool:
    resource, _, subresource = what.partition(":")
    part = [f"--subresource={subresource}"] if subresource else []
    where = ["--all-namespaces"] if namespace == "*" else ["--namespace", namespace]
    answer = server.kubectl.run("auth", "can-i", verb, resource, *part, *where, f"--as={who}").stdout.strip()
    assert answer in ("yes", "no"), answer
    return answer == "yes"


def api_key(server: ApiServer) -> str:
    secret = server.kubectl.get("secret", "llmops-operator-connection", "-n", RELEASE)
    return b64decode(secret["data"]["QDRANT_API_KEY"]).decode()


ALLOWED = [
    *((verb, f"{kind}.llmops.dev") for kind in KINDS for verb in ("get", "list", "watch", "patch")),
    *(("patch", f"{kind}.llmops.dev:status") for kind in KINDS),
    *(("update", f"{kind}.llmops.dev:finalizers") for kind in KINDS),
    *(
        (verb, what)
        for what in (
            "configmaps",
            "services",
            "persistentvolumeclaims",
            "networkpolicies.networking.k8s.io",
            "jobs.batch",
            "deployments.apps",
            "rayjobs.ray.io",
        )
        for verb in ("get", "list", "watch", "create", "patch", "delete")
    ),
    *((verb, "pods") for verb in ("list", "watch", "patch")),
    ("get", "pods:log"),
    ("create", "events.events.k8s.io"),
    ("patch", "events.events.k8s.io"),
    ("list", "events"),
    ("create", "secrets/llmops-connection"),
    ("patch", "secrets/llmops-connection"),
]
FORBIDDEN = [
    *((verb, "secrets") for verb in ("get", "list", "watch", "create", "patch", "update", "delete")),
    ("get", "secrets/llmops-connection"),
    ("delete", "secrets/llmops-connection"),
    *(("create", f"pods:{part}") for part in ("exec", "attach", "portforward", "ephemeralcontainers")),
    *((verb, "pods") for verb in ("get", "create", "update", "delete")),
    ("create", "serviceaccounts"),
    ("create", "serviceaccounts:token"),
    *((verb, what) for verb in ("list", "create", "patch") for what in ("nodes", "namespaces")),
    *((verb, what) for verb in ("create", "patch") for what in ("clusterroles", "rolebindings", "daemonsets.apps")),
    ("patch", "customresourcedefinitions"),
    ("impersonate", "users"),
    *((verb, f"{kind}.llmops.dev") for kind in KINDS for verb in ("create", "update", "delete")),
    *((verb, f"{kind}.llmops.dev:status") for kind in KINDS for verb in ("get", "update")),
    *((verb, "events") for verb in ("create", "patch", "delete")),
    ("get", "leases.coordination.k8s.io"),
]


@pytest.mark.parametrize(("verb", "what"), ALLOWED)
def test_the_operator_may_do_its_work(server: ApiServer, helm: Helm, verb: str, what: str) -> None:
    assert may(server, OPERATOR, verb, what)


@pytest.mark.parametrize(("verb", "what"), FORBIDDEN)
def test_the_operator_may_not_do_more(server: ApiServer, helm: Helm, verb: str, what: str) -> None:
    assert not may(server, OPERATOR, verb, what)


def test_the_operator_reads_one_secret_and_one_lease_of_its_own_namespace(server: ApiServer, helm: Helm) -> None:
    assert may(server, OPERATOR, "get", "secrets/llmops-operator-connection", RELEASE)
    assert not may(server, OPERATOR, "list", "secrets", RELEASE)
    assert may(server, OPERATOR, "create", "leases.coordination.k8s.io", RELEASE)
    assert may(server, OPERATOR, "update", "leases.coordination.k8s.io/llmops-operator", RELEASE)
    assert not may(server, OPERATOR, "update", "leases.coordination.k8s.io/other", RELEASE)
    for verb in ("patch", "delete"):
        assert not may(server, OPERATOR, verb, "leases.coordination.k8s.io/llmops-operator", RELEASE)


def test_the_operator_makes_the_connection_secret_by_apply_and_no_other(server: ApiServer, helm: Helm) -> None:
    def apply(name: str) -> subprocess.CompletedProcess[str]:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "team-b"}}
        arguments = ("apply", "--server-side", "--field-manager=llmops-operator", "-f", "-", f"--as={OPERATOR}")
        return server.kubectl.run(*arguments, stdin=json.dumps(secret))

    assert 'cannot patch resource "secrets"' in apply("another").stderr
    made = apply("llmops-connection")
    assert made.returncode == 0, made.stderr


def test_people_may_do_what_their_role_says(server: ApiServer, helm: Helm) -> None:
    for role in ("view", "edit"):
        server.kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", "-n", "team-a")
    # A controller puts our rules into `view` and `edit`.
    for who, verb in (("viewer", "list"), ("editer", "create")):
        wait_until(partial(may, server, who, verb, "ragservices.llmops.dev"), f"{who}'s right to {verb}", seconds=30)
    for kind in KINDS:
        what = f"{kind}.llmops.dev"
        assert may(server, "viewer", "get", what)
        for verb in ("create", "patch", "delete"):
            assert may(server, "editer", verb, what)
            assert not may(server, "viewer", verb, what)
        assert not may(server, "editer", "patch", f"{what}:status")
        assert not may(server, "editer", "create", what, "team-b")
    assert may(server, "editer", "patch", "ragservices.llmops.dev:scale")
    assert not may(server, "viewer", "patch", "ragservices.llmops.dev:scale")


def test_a_user_without_a_role_is_refused(server: ApiServer, helm: Helm) -> None:
    refused = server.kubectl.run("apply", "--server-side", "--as=nobody", "-f", "-", stdin=INDEX)
    assert 'User "nobody" cannot patch resource "embeddingindexes"' in refused.stderr


def test_named_namespaces_are_all_that_the_operator_sees(server: ApiServer, helm: Helm) -> None:
    helm("install", "llmops-two", CHART, "-n", "team-b", values={"crds": {"install": False}, "operator": {"watchNamespaces": ["team-b"]}})  # fmt: skip
    who = "system:serviceaccount:team-b:llmops-two-operator"
    assert may(server, who, "patch", "ragservices.llmops.dev", "team-b")
    assert may(server, who, "create", "jobs.batch", "team-b")
    assert not may(server, who, "list", "ragservices.llmops.dev", "team-a")
    assert not may(server, who, "list", "pods", "*")
    helm("uninstall", "llmops-two", "-n", "team-b")


def test_an_upgrade_loses_no_object_and_no_key(server: ApiServer, helm: Helm) -> None:
    server.kubectl("apply", "--server-side", "-f", "-", stdin=INDEX)
    before, key = server.kubectl.get("embeddingindex", "handbook", "-n", "team-a"), api_key(server)
    assert len(key) == 40
    helm("upgrade", "llmops", CHART, "-n", RELEASE, values={"operator": {"replicas": 2}})
    assert server.kubectl.get("embeddingindex", "handbook", "-n", "team-a") == before
    assert api_key(server) == key
    assert server.kubectl.get("deployment", "llmops-operator", "-n", RELEASE)["spec"]["replicas"] == 2


def test_an_upgrade_brings_the_new_crds(server: ApiServer, helm: Helm, tmp_path: Path) -> None:
    def columns() -> list[str]:
        crd = server.kubectl.get("crd", "ragservices.llmops.dev")
        return [one["name"] for one in crd["spec"]["versions"][0]["additionalPrinterColumns"]]

    older = tmp_path / "llmops"
    shutil.copytree(CHART, older)
    path = older / "files/crds/ragservices.llmops.dev.yaml"
    crd = yaml.safe_load(path.read_text())
    crd["spec"]["versions"][0]["additionalPrinterColumns"] = [{"name": "Old", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]  # fmt: skip
    path.write_text(yaml.safe_dump(crd))
    now = columns()
    helm("upgrade", "llmops", older, "-n", RELEASE)
    assert columns() == ["Old"]
    helm("upgrade", "llmops", CHART, "-n", RELEASE)
    assert columns() == now


def test_uninstalling_keeps_crds_objects_and_runs_and_a_new_release_takes_them_over(
    server: ApiServer, helm: Helm
) -> None:
    server.kubectl("apply", "--server-side", "-f", "-", stdin=INDEX)
    before = server.kubectl.get("embeddingindex", "handbook", "-n", "team-a")["metadata"]["uid"]
    key = api_key(server)
    helm("uninstall", "llmops", "-n", RELEASE)
    assert server.kubectl.get("embeddingindex", "handbook", "-n", "team-a")["metadata"]["uid"] == before
    assert len(server.kubectl.get("crd", *(f"{kind}.llmops.dev" for kind in KINDS))["items"]) == 3
    claims = [one["metadata"]["name"] for one in server.kubectl.get("pvc", "-n", RELEASE)["items"]]
    assert "llmops-mlflow" in claims
    assert not server.kubectl.get("deployment", "-n", RELEASE)["items"]
    helm("install", "llmops", CHART, "-n", RELEASE)
    assert server.kubectl.get("embeddingindex", "handbook", "-n", "team-a")["metadata"]["uid"] == before
    assert api_key(server) == key, "or what goes on running could not search any more"
