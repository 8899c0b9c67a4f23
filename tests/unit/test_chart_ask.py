"""The program of `helm test`: whom it asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ASK = Path(__file__).parents[2] / "helm/llmops/files/ask.py"
ANSWER = {"choices": [{"message": {"content": "25 days [1]"}}], "citations": [{"n": 1, "title": "Leave"}]}


@pytest.mark.parametrize(
    ("service", "host"),
    [
        ("chat", "chat-gateway"),
        ("7b-chat", "x7b-chat-e14c5e17-gateway"),
        ("a" * 63, f"{'a' * 46}-7d3e74a0-gateway"),
    ],
    ids=["short", "a digit first", "long"],
)
def test_a_service_is_asked_by_the_name_that_its_gateway_has(service: str, host: str) -> None:
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        """Takes every address for its own."""

        def do_POST(self) -> None:
            asked.append(self.path)
            body = json.dumps(ANSWER).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{proxy.server_port}"
        told = {"SERVICE": service, "SERVICE_NAMESPACE": "team", "QUESTION": "How many?"}
        environment = {**os.environ, **told, "http_proxy": address, "no_proxy": "", "NO_PROXY": ""}
        done = subprocess.run(
            [sys.executable, "-c", ASK.read_text()],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        proxy.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "25 days [1]\n[1] Leave\n"
    assert asked == [f"http://{host}.team.svc:8080/v1/chat/completions"]
