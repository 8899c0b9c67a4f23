"""The end of a training in MLflow: tables and scores, the logged model, the registered version, the alias, the finished run.

Each step looks for what an attempt before may have left, so that all of it can be called again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmops_api.lineage import DatasetContext, ModelType, Tag
from llmops_api.programs import TrainingConfig, TrainingResult
from llmops_api.v1alpha1.training_job import ModelVersion, Scores
from llmops_services.training.data import read_examples
from llmops_services.training.progress import AFTER, BEFORE
from llmops_services.training.state import DOMAIN, GENERAL, Finished, State
from llmops_services.training.tracking import DataFacts, logged_model_name, object_tags
from llmops_services.uris import DIGEST_TAG, folder_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CONTEXTS = {DOMAIN: DatasetContext.DOMAIN_EVALUATION, GENERAL: DatasetContext.GENERAL_EVALUATION}


def register(
    client: MlflowClient,
    run_id: str,
    config: TrainingConfig,
    state: State,
    finished: Finished,
    data: tuple[DataFacts, ...],
) -> TrainingResult:
    """Bring everything that a finished training has to show to MLflow, and end its run."""
    model_id = _logged_model(client, run_id, config, state, finished)
    _scores(client, run_id, model_id, finished, data)
    for name, table in _tables(config, state, data).items():
        client.log_text(run_id, json.dumps(table, ensure_ascii=False), f"evaluation/{name}.json")
    version = _version(client, run_id, model_id, config, state)
    passed = finished.evaluation is None or finished.evaluation.gate_passed
    output = config.spec.output
    alias = (output.alias_on_pass or None) if passed else None
    if alias:
        client.set_registered_model_alias(output.model, alias, version)
    run = client.get_run(run_id)
    client.set_terminated(run_id, "FINISHED")
    return TrainingResult(
        run_id=run_id,
        experiment_id=run.info.experiment_id,
        steps=finished.steps,
        model=ModelVersion(
            name=output.model, version=version, alias=alias, adapter=config.spec.tuning.lora is not None
        ),
        evaluation=finished.evaluation,
    )


def _logged_model(client: MlflowClient, run_id: str, config: TrainingConfig, state: State, finished: Finished) -> str:
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    obj = config.object
    kind = ModelType.ADAPTER if config.spec.tuning.lora is not None else ModelType.FULL
    found = client.search_logged_models(
        [run.info.experiment_id], f"tags.`{Tag.UID}` = '{obj.uid}' AND model_type = '{kind}'", max_results=1
    )
    model = (
        found[0]
        if found
        else client.create_logged_model(
            run.info.experiment_id,
            name=logged_model_name(obj.name),
            source_run_id=run_id,
            model_type=kind,
            tags={**object_tags(config), Tag.URI: config.spec.base_model.uri},
        )
    )
    if str(model.status) != "READY":
        client.log_model_artifacts(model.model_id, str(state.model))
        client.finalize_logged_model(model.model_id, "READY")
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {output.model_id for output in outputs}:  # MLflow refuses it a second time
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=finished.steps)])
    return str(model.model_id)


def _scores(client: MlflowClient, run_id: str, model_id: str, finished: Finished, data: tuple[DataFacts, ...]) -> None:
    from mlflow.entities import Metric, RunTag

    if finished.evaluation is None:
        return
    metrics = []
    for when, table in (("before", finished.evaluation.before), ("after", finished.evaluation.after)):
        for name, scores in ((DOMAIN, table.domain), (GENERAL, table.general)):
            facts = next((facts for facts in data if facts.context is _CONTEXTS[name]), None)
            if scores is None or facts is None:
                continue
            entity = facts.entity()
            of_model = {"model_id": model_id, "dataset_name": entity.name, "dataset_digest": entity.digest}
            for key, value in _values(scores).items():
                metrics.append(
                    Metric(f"{name}/{key}/{when}", value, finished.time, finished.steps, run_id=run_id,
                           **(of_model if when == "after" else {}))
                )  # fmt: skip
    gate = finished.evaluation
    tags = [
        RunTag(Tag.GATE.value, "passed" if gate.gate_passed else "failed"),
        RunTag(Tag.GATE_MESSAGE.value, gate.gate_message),
    ]
    client.log_batch(run_id, metrics=metrics, tags=tags)


def _values(scores: Scores) -> dict[str, float]:
    return {"loss": float(scores.loss), "perplexity": float(scores.perplexity), "token_f1": float(scores.token_f1)}


def _tables(config: TrainingConfig, state: State, data: tuple[DataFacts, ...]) -> dict[str, dict[str, Any]]:
    """A table for each evaluated set, in the shape that MLflow's own tables have."""
    before, after = state.measured(BEFORE) or {}, state.measured(AFTER) or {}
    tables = {}
    for name in after:
        facts = next(facts for facts in data if facts.context is _CONTEXTS[name])
        system_prompt = config.spec.data.system_prompt if name == DOMAIN else None
        examples = read_examples(facts.path, config.spec.data.format, system_prompt)
        rows = [
            [
                example.line, "\n\n".join(f"{m['role']}: {m['content']}" for m in example.prompt), example.answer,
                old.answer, new.answer, old.token_f1, new.token_f1,
                old.loss_sum / old.tokens, new.loss_sum / new.tokens, new.tokens,
            ]
            for example, old, new in zip(examples, before[name], after[name], strict=True)
        ]  # fmt: skip
        columns = ["line", "prompt", "reference", "answer_before", "answer_after", "token_f1_before", "token_f1_after",
                   "loss_before", "loss_after", "tokens"]  # fmt: skip
        tables[name] = {"columns": columns, "data": rows}
    return tables


def _version(client: MlflowClient, run_id: str, model_id: str, config: TrainingConfig, state: State) -> str:
    from mlflow.exceptions import MlflowException

    name = config.spec.output.model
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.search_model_versions(f"name = '{name}' and tags.`{Tag.UID}` = '{config.object.uid}'")
    if found:
        return str(found[0].version)
    tags = {**object_tags(config), DIGEST_TAG: folder_digest(state.model), Tag.URI: config.spec.base_model.uri}
    version = client.create_model_version(
        name, source=f"models:/{model_id}", run_id=run_id, model_id=model_id, tags=tags
    )
    return str(version.version)
