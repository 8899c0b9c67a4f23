"""What runs inside the cluster before any test does: DNS, and the KubeRay operator."""

from __future__ import annotations

from typing import Any

from harness import binaries, images
from harness.kubectl import Kubectl, Manifest

DNS_ADDRESS = "10.96.0.53"
_COREFILE = """.:53 {
  errors
  ready
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    pods insecure
    ttl 5
  }
  forward . /etc/resolv.conf
  cache 5
  reload 2s
}
"""


def install_dns(kubectl: Kubectl) -> None:
    """CoreDNS at DNS_ADDRESS."""
    deployment = _deployment("coredns", "kube-system", images.COREDNS, ["-conf", "/etc/coredns/Corefile"])
    pod = deployment["spec"]["template"]["spec"]
    pod["dnsPolicy"] = "Default"
    pod["priorityClassName"] = "system-cluster-critical"
    pod["volumes"] = [{"name": "config", "configMap": {"name": "coredns"}}]
    pod["containers"][0] |= {
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
    }
    ports = [{"name": protocol.lower(), "port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata("coredns"), "data": {"Corefile": _COREFILE}},
        *_account("coredns", "kube-system", "system:kube-dns"),
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "system:kube-dns"},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        },
        deployment,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": _metadata("kube-dns"),
            "spec": {"clusterIP": DNS_ADDRESS, "selector": {"app": "coredns"}, "ports": ports},
        },
    )


def install_kuberay_crds(kubectl: Kubectl) -> None:
    """What KubeRay's objects are."""
    kubectl("apply", "--server-side", "-f", str(binaries.module_folder(binaries.KUBERAY) / "config/crd/bases"))


def install_kuberay(kubectl: Kubectl) -> None:
    """The KubeRay operator and its CRDs, in the namespace kuberay. It may do anything: its own RBAC is not what is tested."""
    install_kuberay_crds(kubectl)
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kuberay"}},
        *_account("kuberay-operator", "kuberay", "cluster-admin"),
        _deployment("kuberay-operator", "kuberay", images.KUBERAY, []),
    )


def wait(kubectl: Kubectl, name: str, namespace: str) -> None:
    """Wait for the Deployment of an add-on."""
    kubectl("rollout", "status", f"deployment/{name}", "-n", namespace, "--timeout=180s", timeout=200)


def _metadata(name: str, namespace: str = "kube-system") -> dict[str, Any]:
    return {"name": name, "namespace": namespace}


def _account(name: str, namespace: str, role: str) -> list[Manifest]:
    """A service account that has a ClusterRole."""
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(name, namespace)},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"{namespace}:{name}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    ]


def _deployment(name: str, namespace: str, image: str, arguments: list[str]) -> dict[str, Any]:
    container = {
        "name": name,
        "image": image,
        "args": arguments,
        "imagePullPolicy": "IfNotPresent",
        # As everywhere else: who asks for nothing gets nothing on a full node, and then no name is resolved there.
        "resources": {"requests": {"cpu": "100m", "memory": "70Mi"}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(name, namespace),
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"serviceAccountName": name, "terminationGracePeriodSeconds": 1, "containers": [container]},
            },
        },
    }
