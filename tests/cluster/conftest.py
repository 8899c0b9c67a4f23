"""What every test in a cluster is given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.api_server import ApiServer, running_api_server


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """etcd and kube-apiserver and nothing else; see `ApiServer`."""
    with running_api_server() as server:
        yield server
