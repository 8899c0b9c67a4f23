"""A RagService in a situation, and what is decided about it."""

from __future__ import annotations

import json
from typing import Any

from decisions import NOW, ago

from llmops_api.programs import EngineConfig
from llmops_api.v1alpha1 import EmbeddingIndexStatus, RagService, RagServiceStatus, TrainingJobStatus
from llmops_api.v1alpha1.embedding_index import IndexVersion
from llmops_api.v1alpha1.meta import Condition
from llmops_api.v1alpha1.rag_service import IndexInUse, ModelInUse
from llmops_api.v1alpha1.training_job import ModelVersion
from llmops_operator.domain.decision import Decision
from llmops_operator.domain.lineage import RecordState, Resolution
from llmops_operator.domain.rag_service import ServiceInput, decide
from llmops_operator.domain.serving import IndexView, JobView
from llmops_operator.domain.timing import timestamp
from llmops_operator.domain.workload import State, WorkloadStatus

BASE = "pkg://llm/base.gguf"
BY_JOB = {"base": {"uri": BASE}, "adapter": {"trainingJobRef": {"name": "assistant"}}}
BY_ALIAS = {"base": {"uri": BASE}, "adapter": {"model": {"name": "assistant", "alias": "champion"}}}
PLAIN = {"base": {"uri": BASE}}
ELSEWHERE = {"endpoint": {"urls": ["http://one/v1"], "name": "llama"}}
V1 = ModelInUse(name="assistant-v1", version="1", uri="mlflow://assistant/1", adapter=True)


def condition(type_: str, status: str = "True", reason: str = "Fine", message: str = "") -> Condition:
    return Condition(type=type_, status=status, reason=reason, message=message)


def missing_for(seconds: float) -> Condition:
    return condition("IndexesResolved", "False").model_copy(update={"last_transition_time": ago(seconds)})


def trained(*, gate: str = "True", adapter: bool = True, version: str = "1") -> JobView:
    status = TrainingJobStatus(
        model=ModelVersion(name="assistant", version=version, adapter=adapter),
        completion_time=timestamp(NOW),
        conditions=(condition("GatePassed", gate, message="loss rose by 0.1"), condition("Succeeded")),
    )
    return JobView(status, full=not adapter)


def serving(collection: str = "default.handbook.aaa") -> IndexView:
    version = IndexVersion(collection=collection, fingerprint="aaa")
    return IndexView(EmbeddingIndexStatus(version=version, conditions=(condition("Serving"),)))


def look(
    model: dict[str, Any] = PLAIN,
    *,
    status: RagServiceStatus | None = None,
    workloads: dict[str, WorkloadStatus] | None = None,
    job: JobView | None = None,
    resolution: Resolution | None = None,
    indexes: dict[str, IndexView | None] | None = None,
    records: RecordState | None = None,
    metadata: dict[str, Any] | None = None,
    **spec: Any,
) -> Decision[RagServiceStatus]:
    refs = [{"indexRef": {"name": name}} for name in indexes or {}]
    made = RagService.model_validate(
        {
            "metadata": {"name": "chat", "uid": "u", **(metadata or {})},
            "spec": {"model": model, "indexes": refs, **spec},
        }
    ).model_copy(update={"status": status or RagServiceStatus()})
    return decide(
        ServiceInput(
            made,
            NOW,
            manifest=lambda: "kind: RagService\n",
            workloads=workloads or {},
            job=job,
            resolution=resolution,
            indexes=indexes or {},
            records=records or RecordState(),
        )
    )


def names(decision: Decision[RagServiceStatus]) -> list[str]:
    return [one.name for one in decision.workloads]


def live(decision: Decision[RagServiceStatus], file: str) -> Any:
    [text] = [one.live_files[file] for one in decision.workloads if file in one.live_files]
    return json.loads(text)


def base_of(decision: Decision[RagServiceStatus]) -> tuple[str, bool]:
    [workload] = [one for one in decision.workloads if one.name == "chat-engine"]
    config = EngineConfig.model_validate_json(workload.files["engine.json"])
    return config.base.uri, config.adapters


def in_use(model: ModelInUse, *collections: str) -> RagServiceStatus:
    indexes = tuple(IndexInUse(name="handbook", collection=one) for one in collections)
    return RagServiceStatus(model=model, revision="0123456789", indexes=indexes)


def gateway_says(**report: Any) -> WorkloadStatus:
    told = {"ready": True, "revision": "0123456789", "model": "base", "indexes": {}} | report
    return WorkloadStatus(State.RUNNING, ready_replicas=1, endpoints=("http://gateway",), report=told)


def revision_of(decision: Decision[RagServiceStatus]) -> str:
    return str(live(decision, "gateway.json")["revision"])


ENGINE = WorkloadStatus(State.RUNNING, ready_replicas=1, endpoints=("http://engine",))
WANTED = revision_of(look())
