"""What the command sends to a cluster."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from llmops_operator.backends.kubernetes.access import Cluster
from llmops_operator.cli.faults import CommandError
from llmops_operator.cli.push import Uploads


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


def test_a_folder_that_may_not_be_listed_is_not_stored_without_it(own_folder: Path) -> None:
    (own_folder / "open").mkdir()
    (own_folder / "closed").mkdir(mode=0)
    with httpx.Client() as client, pytest.raises(CommandError, match=r"/closed cannot be read \(Permission denied\)"):
        Uploads(client, "http://127.0.0.1:9", print).store(own_folder, ("**/*.md",))
