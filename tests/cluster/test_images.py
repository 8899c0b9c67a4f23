"""Images are built from Dockerfiles here, though no base image can be pulled."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.clusters import Cluster
from harness.docker import Docker, docker_daemon
from harness.pods import restricted_pod, run_job

_DOCKERFILE = """
ARG PYTHON=python:3.11-slim
FROM ${PYTHON}
RUN pip install --no-cache-dir filelock
USER 10001
"""


@pytest.fixture(scope="module")
def docker() -> Any:
    if os.geteuid():
        pytest.skip("a Docker daemon of our own needs root")
    with docker_daemon() as daemon:
        yield daemon


@pytest.mark.timeout(600)
def test_a_dockerfile_that_installs_a_package_runs_in_the_cluster(
    docker: Docker, cluster: Cluster, namespace: str, load_image: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(_DOCKERFILE)
    tag = "localhost/llmops-test/installs:1"
    docker.build(str(tmp_path / "Dockerfile"), tag, arguments={"PYTHON": docker.make_base()}, context=str(tmp_path))
    docker.save(tag, tmp_path / "image.tar")
    load_image(tmp_path / "image.tar")
    pod = restricted_pod(["python", "-c", "import filelock; print('imported')"], {})
    pod["containers"][0]["image"] = tag
    assert run_job(cluster.kubectl, namespace, "installed", pod).strip() == "imported"
