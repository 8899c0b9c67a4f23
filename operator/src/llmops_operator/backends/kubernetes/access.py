"""A cluster as a person's command reaches it: one context of a kubeconfig, synchronous, without the operator.

`Cluster.forwarded` makes a Service of the cluster answer on this machine, through the API server's service proxy: whoever can use
`kubectl` can use it, from anywhere, and every client speaks to it as to a server beside it.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
from kubernetes.client import Configuration
from kubernetes.config import ConfigException, kube_config

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
ANSWER_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""Of what is forwarded: a model may think for long; who asked has a timeout of their own."""

API = "/apis/llmops.dev/v1alpha1"
HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)
REPLACED = frozenset(("host", "authorization"))
"""By `headers_to_service`: what a client says to a Service about itself is not for the API server, which hands no Authorization on."""


class ClusterError(Exception):
    """The cluster cannot be used, or has refused: why, and what to do. `status` is the HTTP status of an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def kubeconfig_files(explicit: Path | None = None) -> list[Path]:
    """The kubeconfig files that exist, as kubectl looks for them."""
    if explicit is not None:
        return [explicit]
    named = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return [path for part in named.split(os.pathsep) if part and (path := Path(part).expanduser()).is_file()]


def current_context(files: list[Path]) -> str | None:
    """The context that kubectl would take, None when there is none."""
    if not files:
        return None
    try:
        _, current = kube_config.list_kube_config_contexts(os.pathsep.join(map(str, files)))  # type: ignore[no-untyped-call]
    except (ConfigException, OSError, ValueError):
        return None
    return str(current["name"]) if current else None


class Cluster:
    """One context of a kubeconfig. Raises `ClusterError` when there is no such context."""

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None) -> None:
        files = kubeconfig_files(kubeconfig)
        path = os.pathsep.join(map(str, files))
        self._configuration = Configuration()
        try:
            if not files:
                raise ConfigException("there is no kubeconfig: name one with --kubeconfig")
            contexts, current = kube_config.list_kube_config_contexts(path)  # type: ignore[no-untyped-call]
            wanted = context or (current or {}).get("name")
            found = next((one for one in contexts if one["name"] == wanted), None)
            if found is None:
                names = ", ".join(one["name"] for one in contexts)
                raise ConfigException(f'there is no context "{wanted}" in {path}: write --context with one of {names}')
            kube_config.load_kube_config(path, wanted, self._configuration)  # type: ignore[no-untyped-call]
        except (ConfigException, OSError) as error:
            raise ClusterError(str(error)) from error
        self.context = str(wanted)
        self.namespace = str(found["context"].get("namespace") or "default")
        self.server = str(self._configuration.host).rstrip("/")
        self._http = httpx.Client(
            base_url=self.server, verify=self._tls(), proxy=self._configuration.proxy, timeout=TIMEOUT
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **parameters: str) -> dict[str, Any]:
        """The JSON at a path of the API. Raises `ClusterError`."""
        with self._answers():
            response = self._http.get(path, params=parameters, headers=self._authorization())
        if response.status_code != 200:
            raise self.refusal(response)
        value: dict[str, Any] = response.json()
        return value

    def lines(self, path: str, **parameters: str) -> Iterator[str]:
        """The lines of a text as they come, until its end. Raises `ClusterError`."""
        with (
            self._answers(),
            self._http.stream(
                "GET", path, params=parameters, headers=self._authorization(), timeout=httpx.Timeout(30.0, read=None)
            ) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise self.refusal(response)
            yield from response.iter_lines()

    @contextmanager
    def forwarded(self, namespace: str, service: str, port: str) -> Iterator[str]:
        """The base URL of a Service on this machine, for as long as the block lasts. `port` is a number or a port's name."""
        path = f"/api/v1/namespaces/{namespace}/services/{service}:{port}/proxy"
        client = httpx.Client(
            base_url=f"{self.server}{path}", verify=self._tls(), proxy=self._configuration.proxy, timeout=ANSWER_TIMEOUT
        )
        server = _Forwarder(client, self)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            client.close()

    def refusal(self, response: httpx.Response) -> ClusterError:
        """What an answer of the API server that is none says; it has been read."""
        try:
            message = str(response.json()["message"])
        except (ValueError, KeyError, TypeError):
            message = f"HTTP {response.status_code} {response.text[:200]}".rstrip()
        return ClusterError(f'the cluster of context "{self.context}" says: {message}', response.status_code)

    def headers_to_service(self) -> dict[str, str]:
        """What the API server asks for, and the name by which the Service is called.

        The API server hands the Host header on, and MLflow answers to no foreign one. Where the API server lies below a path,
        something in front of it needs the header to find it.
        """
        return {**self._authorization(), **({} if urlsplit(self.server).path else {"host": "localhost"})}

    def _tls(self) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=self._configuration.ssl_ca_cert)
        if not self._configuration.verify_ssl:
            made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        if self._configuration.cert_file:
            made.load_cert_chain(self._configuration.cert_file, self._configuration.key_file)
        return made

    def _authorization(self) -> dict[str, str]:
        """Asked for anew each time: a token that a login program has made runs out."""
        settings = cast("Mapping[str, Mapping[str, Any]]", self._configuration.auth_settings())
        return {one["key"]: str(one["value"]) for one in settings.values() if one["in"] == "header"}

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ClusterError(
                f'the cluster of context "{self.context}" ({self.server}) does not answer ({error}): '
                "try `kubectl version`, or name another with --context, or --home DIR for this machine"
            ) from error


class _Forwarder(ThreadingHTTPServer):
    """Hands requests on to the Service behind `client`, and its answers back as they come."""

    daemon_threads = True

    def __init__(self, client: httpx.Client, cluster: Cluster) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.client, self.cluster = client, cluster

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked has gone away; there is nobody to tell."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Forwarder

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""

    def _hand_on(self) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP | REPLACED}
        headers |= self.server.cluster.headers_to_service()
        begun = False
        try:
            with self.server.client.stream(
                self.command, self.path.lstrip("/"), headers=headers, content=self._body()
            ) as answer:
                self.send_response_only(answer.status_code)
                for name, value in answer.headers.multi_items():
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                empty = self.command == "HEAD" or answer.status_code in (204, 304)
                chunked = "content-length" not in answer.headers and not empty
                if chunked:
                    self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                begun = True
                for data in () if empty else answer.iter_raw():
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
                if chunked:
                    self.wfile.write(b"0\r\n\r\n")
        except httpx.HTTPError as error:
            self.close_connection = True
            if not begun:
                self.send_error(502, f"{type(error).__name__}: {error}")

    def _body(self) -> Iterator[bytes] | None:
        left = int(self.headers.get("content-length") or 0)
        return self._read(left) if left else None

    def _read(self, left: int) -> Iterator[bytes]:
        while left > 0 and (data := self.rfile.read(min(left, 1 << 20))):
            left -= len(data)
            yield data

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _hand_on  # noqa: N815 - http.server's names
