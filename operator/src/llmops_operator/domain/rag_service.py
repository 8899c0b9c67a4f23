"""A RagService: an engine as soon as the base model is known, a gateway as soon as it can answer rightly, both changed live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from llmops_api.programs import GatewayReport
from llmops_api.reasons import Reason
from llmops_api.v1alpha1.meta import ConditionStatus
from llmops_api.v1alpha1.rag_service import (
    IndexInUse,
    RagService,
    RagServiceCondition,
    RagServiceSpec,
    RagServiceStatus,
)
from llmops_operator.domain.conditions import (
    Aspect,
    carried,
    find,
    holds,
    is_true,
    reported,
    summarised,
    updated,
    waits,
)
from llmops_operator.domain.decision import Decision, owner_of, transitions, without
from llmops_operator.domain.fingerprint import fingerprint
from llmops_operator.domain.lineage import Recorded, RecordState, Resolution, ServiceRecord, lineage_aspect
from llmops_operator.domain.service_workloads import engine, engine_name, gateway, gateway_name
from llmops_operator.domain.serving import (
    IndexView,
    JobView,
    ResolvedIndexes,
    ResolvedModel,
    resolve_indexes,
    resolve_model,
)
from llmops_operator.domain.timing import Timing, seconds_since, soonest, timestamp
from llmops_operator.domain.workload import State, Workload, WorkloadStatus

KIND = "RagService"
On = RagServiceCondition
NOT_THERE = frozenset({Reason.TRAINING_JOB_NOT_FOUND, Reason.INDEX_NOT_FOUND})
Resolved = TypeVar("Resolved", ResolvedModel, ResolvedIndexes)


@dataclass(frozen=True)
class ServiceInput:
    """Everything that decides about a RagService. `job`, `resolution` and `indexes` are what it refers to, None where that is
    not there; `manifest` writes the object as the user did, as YAML.
    """

    service: RagService
    now: datetime
    manifest: Callable[[], str] = str
    workloads: Mapping[str, WorkloadStatus] = field(default_factory=dict)
    job: JobView | None = None
    resolution: Resolution | None = None
    indexes: Mapping[str, IndexView | None] = field(default_factory=dict)
    records: RecordState = field(default_factory=RecordState)
    timing: Timing = field(default_factory=Timing)


def decide(i: ServiceInput) -> Decision[RagServiceStatus]:
    """What is to be done about a RagService now."""
    service, spec, old = i.service, i.service.spec, i.service.status
    observed = i.workloads
    if service.metadata.deletion_timestamp:
        return Decision(old, remove=tuple(sorted(observed)), discard_volumes=True)
    namespace = service.metadata.namespace
    model, model_left = _patient(i, On.MODEL_RESOLVED, resolve_model(spec, old, namespace, i.job, i.resolution))
    indexes, indexes_left = _patient(i, On.INDEXES_RESOLVED, resolve_indexes(spec, old, namespace, i.indexes))
    left = soonest(model_left, indexes_left)
    if spec.suspend:
        return _suspended(i, model, indexes, left)

    engine_seen = observed.get(engine_name(service.metadata.name))
    gateway_seen = observed.get(gateway_name(service.metadata.name))
    revision = revision_of(spec, model, indexes) if model.wanted else None
    report = _report(gateway_seen)
    status, aspects, record = _in_use(i, model, revision, report, gateway_seen)

    workloads = []
    if model.base is not None:
        rank = i.job.rank if i.job and model.aspect.status != "True" else None
        workloads.append(engine(service, model, in_use=status, rank=rank))
    answers_rightly = model.aspect.status == "True" and indexes.aspect.status == "True"
    if model.wanted and revision and (answers_rightly or old.model is not None):
        embedding_models = tuple(view.embedding_model for view in i.indexes.values() if view and view.embedding_model)
        workloads.append(
            gateway(
                service,
                model,
                indexes,
                revision,
                status,
                engine_seen,
                embedding_models=embedding_models,
                traces=i.records.enabled,
            )
        )
    wanted = {workload.name for workload in workloads}

    aspects |= {
        On.ACCEPTED: holds(Reason.ACCEPTED, "the spec is valid"),
        On.SUSPENDED: waits(Reason.ACTIVE),
        On.MODEL_RESOLVED: model.aspect,
        On.INDEXES_RESOLVED: indexes.aspect,
        On.ENGINE_READY: _engine_ready(spec, model, engine_seen),
        On.GATEWAY_READY: _known_before(service, gateway_seen)
        or _gateway_ready(gateway_name(service.metadata.name) in wanted, model, revision, gateway_seen, report),
    }
    parts = [aspects[part] for part in (On.MODEL_RESOLVED, On.INDEXES_RESOLVED, On.ENGINE_READY, On.GATEWAY_READY)]
    aspects[On.READY] = summarised(parts, holds(Reason.READY, f"answers at {status.url}"))
    serving = gateway_seen if model.base is None else engine_seen
    status = status.model_copy(
        update={
            "phase": _phase(aspects, report),
            "replicas": spec.replicas,
            "ready_replicas": serving.ready_replicas if serving else 0,
            "selector": serving.selector if serving else None,
            "progress": _progress(engine_seen, gateway_seen),
        }
    )
    return _decision(i, status, aspects, left, tuple(workloads), record)


def _patient(i: ServiceInput, type_: str, resolved: Resolved) -> tuple[Resolved, float | None]:
    """What is not there is waited for before it is trouble; after how many seconds it is."""
    aspect = resolved.aspect
    if not aspect.trouble or aspect.reason not in NOT_THERE:
        return resolved, None
    known = find(i.service.status.conditions, type_)
    since = known.last_transition_time if known and known.status == aspect.status else ""
    left = i.timing.reference_grace - (seconds_since(since, i.now) if since else 0.0)
    if left <= 0:
        return resolved, None
    return replace(resolved, aspect=replace(aspect, message=f"waits: {aspect.message}", trouble=False)), left


def revision_of(spec: RagServiceSpec, model: ResolvedModel, indexes: ResolvedIndexes) -> str:
    """Ten hex digits of everything that decides an answer."""
    return fingerprint(
        {
            "model": model.wanted.dump() if model.wanted else None,
            "base": model.base.dump() if model.base else None,
            "endpoint": spec.model.endpoint.dump() if spec.model.endpoint else None,
            "engine": spec.engine.dump() if model.base else None,
            "indexes": [index.dump() for index in indexes.wanted],
            "descriptions": [index.dump() for index in spec.indexes],
            "retrieval": spec.retrieval.dump(),
            "prompt": spec.prompt.dump(),
        }
    )[:10]


def _report(seen: WorkloadStatus | None) -> GatewayReport | None:
    if seen is None or seen.report is None:
        return None
    try:
        return GatewayReport.model_validate(seen.report)
    except ValidationError:
        return None


def _in_use(
    i: ServiceInput,
    model: ResolvedModel,
    revision: str | None,
    report: GatewayReport | None,
    gateway_seen: WorkloadStatus | None,
) -> tuple[RagServiceStatus, dict[str, Aspect], ServiceRecord | None]:
    """What the gateway says that it answers with, as status; and that as a record, until it is known to be written."""
    old = i.service.status
    url = gateway_seen.endpoints[0] if gateway_seen and gateway_seen.endpoints else old.url if gateway_seen else None
    update: dict[str, Any] = {"url": url}
    aspects: dict[str, Aspect] = {}
    if report is not None and report.ready and model.wanted and report.model == model.wanted.name:
        update["model"] = model.wanted
    if report is not None and report.ready:
        update["indexes"] = tuple(IndexInUse(name=name, collection=one) for name, one in sorted(report.indexes.items()))
        if report.revision != old.revision:
            update |= {"revision": report.revision, "run_id": None, "run_url": None, "mlflow_model_id": None}
    status = old.model_copy(update=update)
    if status.revision is None or status.model is None:
        return status, aspects, None
    known = is_true(status.conditions, On.LINEAGE_RECORDED) and status.revision == old.revision
    if known:
        return status, aspects, None
    aspects[On.LINEAGE_RECORDED] = lineage_aspect(i.records, status.revision)
    state = i.records.of(status.revision)
    if isinstance(state, Recorded):
        ids = {"run_id": state.run_id, "run_url": state.run_url, "mlflow_model_id": state.model_id}
        return status.model_copy(update=ids), aspects, None
    # Only what answers as the spec asks is recorded: of anything else the manifest is no longer at hand.
    if not i.records.enabled or status.revision != revision or status.model != model.wanted:
        return status, aspects, None
    record = ServiceRecord(
        owner=owner_of(KIND, i.service.metadata),
        generation=i.service.metadata.generation,
        manifest=i.manifest(),
        revision=status.revision,
        model_name=status.model.name,
        model_uri=model.base.uri if model.base else None,
        registered_uri=status.model.uri,
        collections={index.name: index.collection for index in status.indexes},
    )
    return status, aspects, record


def _engine_ready(spec: RagServiceSpec, model: ResolvedModel, seen: WorkloadStatus | None) -> Aspect:
    if spec.model.endpoint is not None:
        return holds(Reason.EXTERNAL, "the engines of model.endpoint run elsewhere")
    if model.base is None:
        return waits(Reason.WAITS_FOR_MODEL, "starts when the base model is known")
    if seen is not None and seen.ready_replicas > 0:
        return holds(Reason.ENGINE_READY, f"{seen.ready_replicas} of {spec.replicas} replicas are ready")
    if seen is not None and seen.reason:
        return reported(seen.reason, seen.message)
    if seen is None or seen.state is State.PENDING:
        return waits(Reason.STARTING, "the engine is being started")
    return waits(Reason.STARTING, "the engine is loading the model")


def _known_before(service: RagService, seen: WorkloadStatus | None) -> Aspect | None:
    """That it was ready, while it runs as it did and nobody has asked it again."""
    if seen is None or not seen.unasked or not seen.ready_replicas:
        return None
    known = carried(service.status.conditions, On.GATEWAY_READY)
    same = known.status is ConditionStatus.TRUE and known.observed_generation == service.metadata.generation
    return known if same else None


def _gateway_ready(
    wanted: bool, model: ResolvedModel, revision: str | None, seen: WorkloadStatus | None, report: GatewayReport | None
) -> Aspect:
    if not wanted:
        return waits(Reason.WAITS_FOR_REFERENCES, "starts when model and indexes are known")
    if seen is None:
        return waits(Reason.STARTING, "the gateway is being started")
    if report is None or not report.ready or seen.ready_replicas == 0:
        if seen.reason:
            return reported(seen.reason, seen.message)
        return waits(Reason.NOT_READY, (report.message if report else "") or "the gateway does not answer yet")
    if report.revision != revision or (model.wanted and report.model != model.wanted.name):
        return waits(
            Reason.TAKING_OVER,
            f"revision {report.revision} with {report.model} answers while revision {revision} is taken over",
        )
    return holds(Reason.GATEWAY_READY, f"revision {revision} answers")


def _phase(aspects: Mapping[str, Aspect], report: GatewayReport | None) -> str:
    if aspects[On.READY].status == "True":
        return "Ready"
    if report is not None and report.ready:
        return "Updating" if not aspects[On.READY].trouble else "Degraded"
    if aspects[On.READY].trouble:
        return "Failed"
    waiting = aspects[On.MODEL_RESOLVED].status == "False" or aspects[On.INDEXES_RESOLVED].status == "False"
    return "Waiting" if waiting else "Starting"


def _progress(*seen: WorkloadStatus | None) -> Any:
    return next((one.progress for one in seen if one and one.progress and one.ready_replicas == 0), None)


def _suspended(
    i: ServiceInput, model: ResolvedModel, indexes: ResolvedIndexes, left: float | None
) -> Decision[RagServiceStatus]:
    on_hold = waits(Reason.SUSPENDED, "spec.suspend is set: set it to false to answer again")
    aspects: dict[str, Aspect] = {
        On.ACCEPTED: holds(Reason.ACCEPTED, "the spec is valid"),
        On.SUSPENDED: holds(Reason.SUSPENDED, on_hold.message),
        On.MODEL_RESOLVED: model.aspect,
        On.INDEXES_RESOLVED: indexes.aspect,
        On.ENGINE_READY: on_hold,
        On.GATEWAY_READY: on_hold,
        On.READY: on_hold,
    }
    update = {"phase": "Suspended", "url": None, "replicas": 0, "ready_replicas": 0, "progress": None}
    return _decision(i, i.service.status.model_copy(update=update), aspects, left)


def _decision(
    i: ServiceInput,
    status: RagServiceStatus,
    aspects: Mapping[str, Aspect],
    left: float | None,
    workloads: tuple[Workload, ...] = (),
    record: ServiceRecord | None = None,
) -> Decision[RagServiceStatus]:
    generation, now = i.service.metadata.generation, timestamp(i.now)
    old = i.service.status.conditions
    conditions = updated(old, aspects, On, generation=generation, now=now)
    return Decision(
        status.model_copy(update={"conditions": conditions, "observed_generation": generation}),
        workloads=workloads,
        remove=without(i.workloads, (workload.name for workload in workloads)),
        events=transitions(old, aspects),
        record=record,
        requeue_after=left,
    )
