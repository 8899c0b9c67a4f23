"""What an autoscaler is told by the scale subresource, on a real API server with the real backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import operators
import pytest
from operators import Operator, configuration, manifest
from waiting import wait_until

from harness.api_server import ApiServer


@pytest.mark.parametrize(
    ("model", "role"),
    [
        ({"base": {"uri": "pkg://llm/base.gguf"}}, "engine"),
        ({"endpoint": {"urls": ["http://elsewhere/v1"], "name": "m"}}, "gateway"),
    ],
    ids=["engines", "gateways"],
)
def test_an_autoscaler_finds_the_pods_of_a_service_and_their_number(
    model: dict[str, Any], role: str, api_server: ApiServer, tmp_path: Path
) -> None:
    kubectl = api_server.kubectl
    operators.install_crds(api_server)
    with operators.namespace(api_server) as namespace:
        service = manifest("RagService", namespace, "chat")
        kubectl.apply({**service, "spec": {"model": model, "replicas": 2}})
        operator = Operator(tmp_path, api_server.kubeconfig, configuration(namespace))

        def scale() -> dict[str, Any]:
            path = f"/apis/llmops.dev/v1alpha1/namespaces/{namespace}/ragservices/chat/scale"
            found: dict[str, Any] = json.loads(kubectl("get", "--raw", path))
            return found

        try:
            wait_until(lambda: "selector" in scale()["status"], operator.log.read_text, seconds=60)
            for deployment in json.loads(kubectl("get", "deployments", "-n", namespace, "-o", "json"))["items"]:
                metadata, template = deployment["metadata"], deployment["spec"]["template"]
                head = {"apiVersion": "v1", "kind": "Pod"}
                labels = template["metadata"]["labels"]
                pod = {"metadata": {"name": metadata["name"], "namespace": namespace, "labels": labels}}
                kubectl.apply({**head, **pod, "spec": {"containers": [{"name": "a", "image": "a"}]}})
            found = kubectl("get", "pods", "-n", namespace, "-l", scale()["status"]["selector"], "-o", "name")
            assert found.split() == [f"pod/chat-{role}"]
            assert (scale()["spec"]["replicas"], scale()["status"]["replicas"]) == (2, 2)
            kubectl("scale", "rag/chat", "-n", namespace, "--replicas=3")
            wait_until(
                lambda: kubectl.get("deployment", f"chat-{role}", "-n", namespace)["spec"]["replicas"] == 3,
                "three replicas",
                seconds=60,
            )
            assert scale()["status"]["replicas"] == 3
        finally:
            assert operator.end() == 0
