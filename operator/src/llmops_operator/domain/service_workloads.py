"""What is started for a RagService: an engine, and a gateway that is told by a live file what to answer with."""

from __future__ import annotations

from llmops_api.names import experiment_name, index_alias
from llmops_api.programs import (
    AdaptersConfig,
    AdapterToLoad,
    EngineConfig,
    Env,
    GatewayConfig,
    GatewayIndex,
)
from llmops_api.v1alpha1.meta import ModelSource
from llmops_api.v1alpha1.rag_service import RagService, RagServiceStatus
from llmops_operator.domain.decision import object_id
from llmops_operator.domain.files import CACHE, config_file, program
from llmops_operator.domain.fingerprint import workload_name
from llmops_operator.domain.placement import asked, placed
from llmops_operator.domain.serving import ResolvedIndexes, ResolvedModel, base_name
from llmops_operator.domain.workload import Lifecycle, Readiness, Role, Secret, Workload, WorkloadStatus


def engine_name(service: str) -> str:
    """The workload of the engine."""
    return workload_name(service, "engine")


def gateway_name(service: str) -> str:
    """The workload of the gateway."""
    return workload_name(service, "gateway", service=True)


def engine(service: RagService, model: ResolvedModel, *, in_use: RagServiceStatus, rank: int | None = None) -> Workload:
    """vLLM with the base model. The adapter that answers stays loaded until another one does. `rank` is that of an adapter to come:
    in the live file, because a change of it must not start an engine anew.
    """
    assert model.base is not None
    config = EngineConfig(
        object=object_id(service.kind, service.metadata),
        base=model.base,
        served_name=base_name(model.base.uri),
        engine=service.spec.engine,
        adapters=model.adapters,
    )
    adapters = {
        one.name: AdapterToLoad(name=one.name, uri=one.uri)
        for one in (in_use.model, model.wanted)
        if one is not None and one.adapter and one.uri and model.adapters
    }
    return Workload(
        name=engine_name(service.metadata.name),
        role=Role.ENGINE,
        lifecycle=Lifecycle.RUNS,
        command=program("engine"),
        files={"engine.json": config_file(config)},
        live_files={
            "adapters.json": config_file(AdaptersConfig(adapters=tuple(adapters.values()), expected_rank=rank))
        },
        port=True,
        replicas=service.spec.replicas,
        volumes=(CACHE,),
        readiness=Readiness("/health"),
        grace_seconds=30.0,
        **asked(service.spec.compute),
        **placed(service.metadata, service.spec.pod_template, [model.base]),
    )


def gateway(
    service: RagService,
    model: ResolvedModel,
    indexes: ResolvedIndexes,
    revision: str,
    status: RagServiceStatus,
    engine_seen: WorkloadStatus | None,
    *,
    embedding_models: tuple[ModelSource, ...] = (),
    traces: bool,
) -> Workload:
    """The gateway with what it is to answer with, as a live file. It embeds questions by the `embedding_models`."""
    metadata, spec, endpoint = service.metadata, service.spec, service.spec.model.endpoint
    assert model.wanted is not None
    about = {index.index_ref.name: index.description for index in spec.indexes}
    engines = tuple(url.rstrip("/").removesuffix("/v1") for url in endpoint.urls) if endpoint else ()
    config = GatewayConfig(
        object=object_id(service.kind, metadata, generation=metadata.generation),
        revision=revision,
        engines=engines or (engine_seen.endpoints if engine_seen else ()),
        model=model.wanted.name,
        max_model_len=spec.engine.max_model_len,
        indexes=tuple(
            GatewayIndex(
                name=index.name,
                alias=index_alias(metadata.namespace, index.name),
                description=about.get(index.name, ""),
            )
            for index in indexes.wanted
        ),
        retrieval=spec.retrieval,
        prompt=spec.prompt,
        mlflow_experiment=experiment_name(metadata.namespace) if traces else None,
        mlflow_model_id=status.mlflow_model_id if status.revision == revision else None,
    )
    secret = endpoint.secret_ref if endpoint else None
    return Workload(
        name=gateway_name(metadata.name),
        role=Role.GATEWAY,
        lifecycle=Lifecycle.RUNS,
        command=program("gateway"),
        live_files={"gateway.json": config_file(config)},
        port=True,
        replicas=spec.replicas if endpoint else 1,
        volumes=(CACHE,),
        readiness=Readiness("/readyz"),
        grace_seconds=30.0,
        **placed(
            metadata,
            spec.pod_template,
            embedding_models,
            secrets=(Secret(Env.ENGINE_API_KEY, secret.name, secret.key),) if secret else (),
        ),
    )
