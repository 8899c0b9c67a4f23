"""Images are built from Dockerfiles here, though no base image can be pulled; what is in them, and that it runs as its pods would run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.clusters import Cluster
from harness.docker import Docker
from harness.pods import restricted_pod, run_job

# As a restricted pod runs a container.
CONFINED = ("--read-only", "--tmpfs=/tmp:exec", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges")
_DOCKERFILE = """
ARG PYTHON=python:3.11-slim
FROM ${PYTHON}
RUN pip install --no-cache-dir filelock
USER 10001
"""


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


def confined(docker: Docker, image: str, program: str, *arguments: str) -> str:
    """What a program prints in a container of the image, as the user of the image."""
    return docker.run("run", "--rm", *CONFINED, f"--entrypoint={program}", image, *arguments).strip()


@pytest.mark.timeout(600)
def test_the_image_of_the_operator_is_small_and_has_no_machine_learning(docker: Docker, operator_image: str) -> None:
    assert docker.size(operator_image) < 250e6
    found = docker.modules(operator_image)
    assert {"llmops_api", "llmops_operator", "kopf"} <= found
    assert not found & {"torch", "ray", "vllm", "transformers", "qdrant_client", "pip", "numpy"}


@pytest.mark.timeout(600)
def test_the_operator_and_the_command_run_on_a_read_only_root(docker: Docker, operator_image: str) -> None:
    assert confined(docker, operator_image, "id", "-u") == "10001"
    assert "--config" in confined(
        docker, operator_image, "python", "-m", "llmops_operator.backends.kubernetes", "--help"
    )
    assert "0.1.0" in confined(docker, operator_image, "llmops", "version")
