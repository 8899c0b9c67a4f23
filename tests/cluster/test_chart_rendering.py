"""The chart as text: what values are refused, what is rendered of the others, and that a real API server takes it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import binaries
from harness.api_server import ApiServer
from harness.helm import CHART, Helm
from harness.kubectl import as_list
from llmops_operator.backends.kubernetes.config import OperatorConfig, load

RELEASE = "llmops-system"
PLACED = {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
EXTRA = {
    "extraVolumes": [{"name": "python", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "python", "mountPath": "/opt/python"}],
    "extraEnv": [{"name": "A", "value": "b"}],
}
CASES: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "two replicas": {"operator": {"replicas": 2}},
    "some namespaces": {"operator": {"watchNamespaces": ["team-a", "team-b"]}},
    "existing MLflow and Qdrant": {
        "mlflow": {"enabled": False, "trackingUri": "https://mlflow.example.com"},
        "qdrant": {"enabled": False, "url": "https://qdrant.example.com:6333"},
        "connection": {"existingSecret": "platform"},
    },
    "no MLflow": {"mlflow": {"enabled": False}},
    "a Qdrant server": {"qdrant": {"engine": "server"}},
    "nothing kept": {"mlflow": {"persistence": {"enabled": False}}, "qdrant": {"persistence": {"enabled": False}}},
    "storage": {
        "workloads": {
            "state": {"storageClassName": "fast", "size": "5Gi", "accessModes": ["ReadWriteMany"]},
            "cache": {"kind": "PersistentVolumeClaim", "size": "50Gi", "storageClassName": "shared"},
        },
        "mlflow": {"persistence": {"storageClassName": "fast"}},
        "qdrant": {"persistence": {"storageClassName": "fast"}},
    },
    "a limited cache": {"workloads": {"cache": {"size": "10Gi"}}},
    "all workloads placed": {
        "workloads": {"podTemplate": {**PLACED, "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]}}
    },
    "observed": {
        "metrics": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": True},
        }
    },
    "placed and patched": {
        "operator": {**PLACED, "podLabels": {"a": "b"}, "podAnnotations": {"c": "d"}, "priorityClassName": "high"},
        "mlflow": {**PLACED, **EXTRA, "allowedHosts": ["mlflow.example.com"]},
        "qdrant": {**PLACED, **EXTRA},
        "imagePullSecrets": ["registry"],
        "fullnameOverride": "ai",
    },
    "policies": {
        "networkPolicy": {
            "mlflowFrom": [
                {"namespaceSelector": {"matchLabels": {"name": "ingress"}}},
                {"ipBlock": {"cidr": "10.0.0.10/32"}},
            ],
        }
    },
    "bare": {"crds": {"install": False}, "networkPolicy": {"enabled": False}, "rbac": {"aggregate": False}},
}
REFUSED = {
    "an unknown key": ({"operater": {}}, "additional properties 'operater' not allowed"),
    "an unknown key inside": ({"mlflow": {"uri": "http://a"}}, "at '/mlflow': additional properties 'uri' not allowed"),
    "a word for a number": ({"operator": {"replicas": "two"}}, "at '/operator/replicas': got string, want integer"),
    "no address of an existing Qdrant": ({"qdrant": {"enabled": False}}, "at '/qdrant/url': minLength"),
    "an address beside an own Qdrant": ({"qdrant": {"url": "http://a"}}, "at '/qdrant/url': value must be ''"),
    "an engine that is none": (
        {"qdrant": {"engine": "milvus"}},
        "at '/qdrant/engine': value must be one of 'embedded', 'server'",
    ),
    "an address without a scheme": ({"mlflow": {"externalUrl": "mlflow.example.com"}}, "at '/mlflow/externalUrl'"),
    "a size that is none": ({"mlflow": {"persistence": {"size": "20 GB"}}}, "at '/mlflow/persistence/size'"),
}


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="module")
def server(api_server: ApiServer) -> Iterator[ApiServer]:
    """With the namespaces of the cases, and with the Prometheus operator's ServiceMonitor."""
    for name in (RELEASE, "team-a", "team-b"):
        api_server.kubectl("create", "namespace", name)
        api_server.kubectl("label", "namespace", name, "pod-security.kubernetes.io/warn=restricted")
    prometheus = binaries.Module("", "github.com/prometheus-operator/prometheus-operator", "v0.84.0", ())
    folder = binaries.module_folder(prometheus) / "example/prometheus-operator-crd"
    monitors = str(folder / "monitoring.coreos.com_servicemonitors.yaml")
    api_server.kubectl("apply", "--server-side", "-f", monitors)
    api_server.kubectl.await_crds("servicemonitors.monitoring.coreos.com")
    yield api_server
    api_server.kubectl("delete", "crd", "servicemonitors.monitoring.coreos.com")
    for name in (RELEASE, "team-a", "team-b"):
        api_server.kubectl("delete", "namespace", name, "--wait=false")


def find(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)


def config_of(objects: list[dict[str, Any]], folder: Path, name: str = "llmops-operator") -> OperatorConfig:
    path = folder / "config.yaml"
    path.write_text(find(objects, "ConfigMap", name)["data"]["config.yaml"])
    return load(path)


def test_lint_has_nothing_to_say(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART)


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((binaries.CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert chart["version"] == chart["appVersion"] == version


def test_every_value_has_a_comment() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    leaves = [
        number
        for number, line in enumerate(lines)
        if re.match(r" *[A-Za-z]+: \S", line) and not re.match(r" +(requests|limits):", line)
    ]
    assert len(leaves) > 50
    assert [lines[number] for number in leaves if not lines[number - 1].lstrip().startswith("# ")] == []


@pytest.mark.parametrize(("values", "sentence"), REFUSED.values(), ids=REFUSED)
def test_wrong_values_are_refused(helm: Helm, values: Mapping[str, Any], sentence: str) -> None:
    refused = helm.run("template", "llmops", CHART, values=values)
    assert refused.returncode
    assert sentence in refused.stderr


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_api_server_takes_what_is_rendered(server: ApiServer, helm: Helm, values: Mapping[str, Any]) -> None:
    objects = helm.template(values)
    done = server.kubectl.run("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=as_list(objects))
    assert done.returncode == 0, done.stderr
    # Nothing of the pod security level `restricted`, nor of deprecated fields.
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_operator_understands_its_configuration(helm: Helm, tmp_path: Path, values: Mapping[str, Any]) -> None:
    name = values.get("fullnameOverride", "llmops")
    config = config_of(helm.template(values), tmp_path, f"{name}-operator")
    assert config.leader_election.namespace == RELEASE
    assert config.images.engine == "llmops-engine:0.1.0"


def test_addresses_and_namespaces_reach_the_operator(helm: Helm, tmp_path: Path) -> None:
    config = config_of(helm.template({}), tmp_path)
    assert config.mlflow.tracking_uri == "http://llmops-mlflow.llmops-system.svc:5000"
    assert config.qdrant.url == "http://llmops-qdrant.llmops-system.svc:6333"
    assert config.connection_secret is not None
    assert config.connection_secret.name == "llmops-operator-connection"
    config = config_of(helm.template(CASES["existing MLflow and Qdrant"]), tmp_path)
    assert config.mlflow.tracking_uri == "https://mlflow.example.com"
    assert config.qdrant.url == "https://qdrant.example.com:6333"
    assert config_of(helm.template(CASES["some namespaces"]), tmp_path).watch_namespaces == ("team-a", "team-b")
    config = config_of(helm.template(CASES["storage"]), tmp_path)
    assert config.cache.persistent_volume_claim is not None
    assert config.cache.persistent_volume_claim.size == "50Gi"


def test_the_operator_reaches_the_vector_store_and_may_read_its_key(helm: Helm, tmp_path: Path) -> None:
    objects = helm.template({})
    labels = find(objects, "Deployment", "llmops-operator")["spec"]["template"]["metadata"]["labels"]
    [peer] = find(objects, "NetworkPolicy", "llmops-qdrant")["spec"]["ingress"][0]["from"]
    assert peer["namespaceSelector"] == {}
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    secret = config_of(objects, tmp_path).connection_secret
    assert secret is not None
    reads = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [secret.name], "verbs": ["get"]}
    assert reads in find(objects, "Role", "llmops-operator")["rules"]


def test_who_is_named_reaches_mlflow_and_not_the_vector_store(helm: Helm) -> None:
    objects = helm.template(CASES["policies"])
    [rule] = find(objects, "NetworkPolicy", "llmops-mlflow")["spec"]["ingress"]
    assert rule["from"][1:] == CASES["policies"]["networkPolicy"]["mlflowFrom"]
    [rule] = find(objects, "NetworkPolicy", "llmops-qdrant")["spec"]["ingress"]
    assert len(rule["from"]) == 1


def test_the_operator_is_told_whether_to_make_policies(helm: Helm, tmp_path: Path) -> None:
    assert config_of(helm.template({}), tmp_path).network_policies
    objects = helm.template(CASES["bare"])
    assert not config_of(objects, tmp_path).network_policies
    assert not [one for one in objects if one["kind"] == "NetworkPolicy"]


def test_the_chart_has_the_generated_crds(helm: Helm) -> None:
    objects = helm.template({})
    for path in sorted((binaries.CHECKOUT / "crds").glob("*.yaml")):
        generated = yaml.safe_load(path.read_text())
        rendered = find(objects, "CustomResourceDefinition", generated["metadata"]["name"])
        assert rendered["spec"] == generated["spec"]
        assert rendered["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert not [one for one in helm.template(CASES["bare"]) if one["kind"] == "CustomResourceDefinition"]


def test_no_cluster_role_where_namespaces_are_named(helm: Helm) -> None:
    objects = helm.template(CASES["some namespaces"])
    assert not [one for one in objects if one["kind"] == "ClusterRoleBinding"]
    assert {one["metadata"]["namespace"] for one in objects if one["kind"] == "Role"} == {RELEASE, "team-a", "team-b"}


def test_a_budget_for_two_replicas_and_none_for_one(helm: Helm) -> None:
    assert not [one for one in helm.template({}) if one["kind"] == "PodDisruptionBudget"]
    budget = find(helm.template(CASES["two replicas"]), "PodDisruptionBudget", "llmops-operator")
    assert budget["spec"]["maxUnavailable"] == 1


def test_mlflow_is_told_its_own_names(helm: Helm) -> None:
    server = find(helm.template({"mlflow": {"allowedHosts": ["a.example.com"]}}), "Deployment", "llmops-mlflow")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    (option,) = [one for one in container["command"] if one.startswith("--allowed-hosts=")]
    hosts = option.removeprefix("--allowed-hosts=").split(",")
    assert {"llmops-mlflow.llmops-system.svc:5000", "localhost:*", "a.example.com"} <= set(hosts)
    assert "*" not in hosts


def test_the_dashboard_is_in_the_release(helm: Helm) -> None:
    config = find(helm.template(CASES["observed"]), "ConfigMap", "llmops-operator-dashboard")
    assert json.loads(config["data"]["llmops.json"])["title"]
