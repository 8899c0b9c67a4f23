"""The API server that contract tests are given."""

from __future__ import annotations

import json
import os
import shutil

import psutil
import pytest

from harness.api_server import API_SERVER, ApiServer, running_api_server
from harness.state import make_temporary, own


def test_it_is_the_version_that_was_asked_for_and_validates(api_server: ApiServer) -> None:
    assert json.loads(api_server.kubectl("get", "--raw", "/version"))["gitVersion"] == "v1.36.3"
    refused = api_server.kubectl.run(
        "apply", "--server-side", "--dry-run=server", "-f", "-",
        stdin='{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "default"}, "spec": {}}',
    )  # fmt: skip
    assert refused.returncode
    assert "spec.containers: Required value" in refused.stderr


def test_objects_outlive_a_restart(api_server: ApiServer) -> None:
    api_server.kubectl("create", "configmap", "kept", "--from-literal=a=b")
    api_server.restart()
    assert api_server.kubectl.get("configmap", "kept")["data"] == {"a": "b"}
    api_server.kubectl("delete", "configmap", "kept")


def test_a_user_without_rights_is_refused(api_server: ApiServer) -> None:
    refused = api_server.kubectl.run("get", "secrets", "--as=nobody")
    assert 'User "nobody" cannot list resource "secrets"' in refused.stderr


def test_controllers_delete_what_a_deleted_owner_leaves() -> None:
    with running_api_server(controllers=True) as server:
        server.kubectl("create", "namespace", "short")
        server.kubectl("create", "configmap", "inside", "-n", "short")
        server.kubectl("delete", "namespace", "short", "--timeout=60s")
        processes = [psutil.Process(server.processes.pid(name)) for name in server.processes.names()]
    assert len(processes) == 3
    assert not any(process.is_running() for process in processes)
    assert not server.folder.exists()


@pytest.mark.parametrize("seconds_until_recycled", [None, 5.0])
def test_what_a_killed_owner_left_is_found_and_ended(seconds_until_recycled: float | None) -> None:
    left = ApiServer(make_temporary("leftover"))
    left.start()
    owner = left.folder / "owner.json"
    # A pid that nobody has, or one that somebody else has since.
    pid, started = (2**22 + 1, 0.0) if seconds_until_recycled is None else (os.getpid(), seconds_until_recycled)
    owner.write_text(f'{{"pid": {pid}, "started": {started}}}')
    try:
        new = make_temporary("leftover")
        assert not left.processes.running(API_SERVER)
        assert not left.folder.exists()
        shutil.rmtree(new)
    finally:
        left.stop()


def test_what_a_living_owner_has_is_left_alone() -> None:
    first = make_temporary("living")
    own(first)
    second = make_temporary("living")
    assert first.exists()
    shutil.rmtree(first)
    shutil.rmtree(second)
