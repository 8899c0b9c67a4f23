"""What the command sends to a cluster."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from llmops_operator.backends.kubernetes.access import Cluster


class Echo(BaseHTTPRequestHandler):
    """Says by which credentials it was asked."""

    def do_GET(self) -> None:
        said = json.dumps(self.headers.get_all("authorization")).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


def test_the_api_server_is_told_who_asks_it_and_not_who_asks_the_service(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
            "users": [{"name": "u", "user": {"token": "of-the-cluster"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        (tmp_path / "config").write_text(json.dumps(config))
        with closing(Cluster(tmp_path / "config")) as cluster, cluster.forwarded("a", "mlflow", "5000") as url:
            said = httpx.get(url, headers={"Authorization": "Bearer of-mlflow"}, trust_env=False).json()
        server.shutdown()
    assert said == ["Bearer of-the-cluster"]
