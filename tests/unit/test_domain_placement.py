"""What workloads take along from their object: GPUs, claims, the pod template, and the labels of a queue."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from llmops_api.v1alpha1 import EmbeddingIndex, EmbeddingIndexStatus, RagService, TrainingJob
from llmops_api.v1alpha1.embedding_index import IndexVersion
from llmops_api.v1alpha1.meta import Condition, ModelSource
from llmops_operator.domain import embedding_index, rag_service, training_job
from llmops_operator.domain.serving import IndexView
from llmops_operator.domain.workload import Role, Workload

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
METADATA: dict[str, Any] = {
    "name": "x",
    "uid": "u",
    "labels": {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "low", "team": "search"},
}
COMPUTE: dict[str, Any] = {
    "resources": {"cpu": "4", "memory": "64Gi"},
    "gpus": {"count": 2, "product": "NVIDIA-H100-80GB-HBM3"},
}
TEMPLATE: dict[str, Any] = {
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "volumes": [{"name": "data", "nfs": {"server": "nas", "path": "/data", "readOnly": True}}],
    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
}


def job() -> Workload:
    spec = {
        "baseModel": {"uri": "pvc://models/qwen"},
        "data": {"train": {"uri": "pvc://data/train.jsonl"}},
        "evaluation": {"domain": {"uri": "pvc://data/eval.jsonl"}, "general": {"uri": "file:///general.jsonl"}},
        "hyperparameters": {"maxSteps": 5},
        "output": {"model": "assistant"},
        "compute": COMPUTE,
        "podTemplate": TEMPLATE,
    }
    made = TrainingJob.model_validate({"metadata": METADATA, "spec": spec})
    (workload,) = training_job.decide(training_job.TrainingInput(made, NOW)).workloads
    return workload


def index() -> Workload:
    spec = {
        "sources": [{"name": "a", "uri": "pvc://documents"}, {"name": "b", "uri": "pkg://b/docs"}],
        "embedding": {"model": {"uri": "pvc://models/minilm"}},
        "evaluation": {"questions": {"uri": "pvc://questions/all.jsonl"}},
        "compute": COMPUTE | {"gpus": {"product": "NVIDIA-H100-80GB-HBM3"}},
        "podTemplate": TEMPLATE,
    }
    made = EmbeddingIndex.model_validate({"metadata": METADATA, "spec": spec})
    (workload,) = embedding_index.decide(embedding_index.IndexInput(made, NOW)).workloads
    return workload


def service() -> dict[Role, Workload]:
    spec = {
        "model": {"base": {"uri": "pvc://models/qwen"}},
        "indexes": [{"indexRef": {"name": "handbook"}}],
        "compute": COMPUTE,
        "podTemplate": TEMPLATE,
    }
    made = RagService.model_validate({"metadata": METADATA, "spec": spec})
    status = EmbeddingIndexStatus(
        version=IndexVersion(collection="default.handbook.a", fingerprint="a"),
        conditions=(Condition(type="Serving", status="True", reason="Serving"),),
    )
    views = {"handbook": IndexView(status, embedding_model=ModelSource(uri="pvc://embedders/minilm"))}
    decision = rag_service.decide(rag_service.ServiceInput(made, NOW, indexes=views))
    return {workload.role: workload for workload in decision.workloads}


def test_a_worker_gets_what_compute_says() -> None:
    for workload, gpus in ((job(), 2), (index(), 1), (service()[Role.ENGINE], 2)):
        assert (workload.cpu, workload.memory) == ("4", "64Gi")
        assert (workload.gpus, workload.gpu_product) == (gpus, "NVIDIA-H100-80GB-HBM3")


def test_the_gateway_gets_no_gpu() -> None:
    assert service()[Role.GATEWAY].gpus == 0


def test_the_claims_that_uris_name_are_named_once() -> None:
    assert job().claims == ("data", "models")
    assert index().claims == ("documents", "models", "questions")
    assert service()[Role.ENGINE].claims == ("models",)


def test_the_gateway_reads_the_embedding_models_of_its_indexes() -> None:
    assert service()[Role.GATEWAY].claims == ("embedders",)


def test_the_pod_template_comes_as_it_was_written() -> None:
    for workload in (job(), index(), *service().values()):
        assert workload.pod_template == TEMPLATE


def test_only_the_labels_of_a_queue_come_along() -> None:
    for workload in (job(), index(), *service().values()):
        assert workload.labels == {
            "kueue.x-k8s.io/priority-class": "low",
            "kueue.x-k8s.io/queue-name": "gpus",
        }


def test_programs_are_not_told_the_pod_template() -> None:
    for workload in (job(), index(), *service().values()):
        assert "nodeSelector" not in "".join([*workload.files.values(), *workload.live_files.values()])
