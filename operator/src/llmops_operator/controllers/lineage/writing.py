"""How a record becomes runs, inputs and outputs in MLflow. Each function finds what is there before it creates, so that a record
that is written twice, by whomever, is written once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from types import MappingProxyType

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Param,
    Run,
    ViewType,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from llmops_api.lineage import DATASET_CONTEXT, MANIFEST_ARTIFACT, DatasetContext, ModelType, Tag, digest32
from llmops_api.names import experiment_name
from llmops_operator.domain.lineage import EndRecord, IndexRecord, Record, Recorded, RunRecord, ServiceRecord
from llmops_operator.domain.timing import parse_timestamp

EXTERNAL = {"mlflow.model.isExternal": "true"}
RECORD = "llmops.dev/record"
"""Tag of a run and its output: the key of the record, by which it is found again."""
DIGEST = "llmops.dev/digest"
"""Tag of an embedding model: the SHA-256 of its weights."""


class NotYet(Exception):
    """Something that this record points at is not in MLflow yet."""


def write(client: MlflowClient, record: Record, *, last_try: bool) -> Recorded:
    """Write a record. Raises `NotYet` unless it is the last try, which leaves out what is not there; and `MlflowException`."""
    match record:
        case IndexRecord():
            return _index(client, record)
        case ServiceRecord():
            return _service(client, record, last_try=last_try)
        case RunRecord():
            return _training(client, record, last_try=last_try)
        case EndRecord():
            return _end(client, record)


def _index(client: MlflowClient, record: IndexRecord) -> Recorded:
    version = record.version
    experiment = experiment_id(client, record.owner.namespace)
    facts = {
        "collection": version.collection,
        "fingerprint": version.fingerprint,
        "digest": version.digest,
        "documents": str(version.documents),
        "chunks": str(version.chunks),
        "dimensions": str(version.dimensions),
    }
    began = parse_timestamp(version.updated_at) if version.updated_at else None
    run = _run(client, experiment, record, version.collection, facts, _verdict(record), began)
    datasets = [
        _dataset(DatasetContext.DOCUMENTS, source.name, source.uri, source.digest, documents=source.documents)
        for source in record.sources
    ]
    if version.evaluation and version.evaluation.digest:
        asked = version.evaluation
        name = PurePosixPath(asked.uri.partition("://")[2]).stem
        datasets.append(_dataset(DatasetContext.EVALUATION, name, asked.uri, asked.digest, num_rows=asked.questions))
    embedding = _model_of_uri(client, experiment, record.embedding_uri, ModelType.EMBEDDING, record.embedding_digest)
    client.log_inputs(
        run.info.run_id,
        models=[LoggedModelInput(embedding)] if embedding else [],
        datasets=datasets,
    )
    if version.evaluation is not None and not run.data.metrics:
        client.log_metric(run.info.run_id, "recall_at_5", float(version.evaluation.recall_at5))
        client.log_metric(run.info.run_id, "mrr", float(version.evaluation.mrr))
    # nothing may be made from a version that is held back, so that it puts nothing out
    output = None if record.held_back else _output(client, run, record, ModelType.INDEX, version.collection, facts)
    return _recorded(client, run, output)


def _dataset(context: DatasetContext, name: str, uri: str, sha256: str, **profile: int) -> DatasetInput:
    """A data set as the input of a run. MLflow's digest holds 36 characters; the whole hash is in the profile."""
    dataset = Dataset(
        name=name,
        digest=digest32(sha256),
        source_type="llmops",
        source=json.dumps({"uri": uri}),
        profile=json.dumps({**profile, "sha256": sha256}),
    )
    return DatasetInput(dataset, [InputTag(DATASET_CONTEXT, context.value)])


def _verdict(record: IndexRecord) -> dict[str, str]:
    tags = {Tag.HELD_BACK.value: "true"} if record.held_back else {}
    if record.gate_passed is None:
        return tags
    return tags | {
        Tag.GATE.value: "passed" if record.gate_passed else "failed",
        Tag.GATE_MESSAGE.value: record.gate_message,
    }


def _service(client: MlflowClient, record: ServiceRecord, *, last_try: bool) -> Recorded:
    experiment = experiment_id(client, record.owner.namespace)
    uris = dict.fromkeys(uri for uri in (record.model_uri, record.registered_uri) if uri)
    found = [_model_of_uri(client, experiment, uri, ModelType.BASE, "") for uri in uris]
    found += [_index_model_id(client, experiment, collection) for collection in record.collections.values()]
    if None in found and not last_try:
        raise NotYet("a model or an index that it answers with is not recorded yet")
    facts = {
        "revision": record.revision,
        "model": record.model_name,
        "collections": json.dumps(dict(record.collections), sort_keys=True),
    }
    run = _run(client, experiment, record, record.revision, facts)
    inputs = dict.fromkeys(model_id for model_id in found if model_id is not None)
    client.log_inputs(run.info.run_id, models=[LoggedModelInput(model_id) for model_id in inputs])
    model = _output(client, run, record, ModelType.SERVICE, record.revision, facts)
    return _recorded(client, run, model)


def _training(client: MlflowClient, record: RunRecord, *, last_try: bool) -> Recorded:
    run = _training_run(client, record)
    if run is None and not last_try:
        raise NotYet("the training has not opened its run yet")
    if run is None:
        return Recorded(None)
    return Recorded(run.info.run_id, run_url(client.tracking_uri, run.info.experiment_id, run.info.run_id))


def _training_run(client: MlflowClient, record: RunRecord | EndRecord) -> Run | None:
    experiment = client.get_experiment_by_name(experiment_name(record.owner.namespace))
    return _find_run(client, experiment.experiment_id, _tag(Tag.UID, record.owner.uid)) if experiment else None


def _end(client: MlflowClient, record: EndRecord) -> Recorded:
    """End the run of a training, if there is one that has not ended."""
    run = _training_run(client, record)
    if run is None:
        return Recorded(None)
    if run.info.status in ("RUNNING", "SCHEDULED"):
        client.set_terminated(run.info.run_id, record.end)
    return Recorded(run.info.run_id, run_url(client.tracking_uri, run.info.experiment_id, run.info.run_id))


def run_url(tracking_uri: str, experiment: str, run_id: str) -> str:
    """The address of a run's page."""
    return f"{tracking_uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def experiment_id(client: MlflowClient, namespace: str) -> str:
    """The experiment of a namespace, made if it is not there, brought back if somebody has deleted it."""
    name = experiment_name(namespace)
    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            known = client.get_experiment_by_name(name)
            assert known is not None
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    return str(known.experiment_id)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "") + "'"


def _tag(tag: str, value: str) -> str:
    return f"tags.`{tag}` = {_quoted(value)}"


def _find_run(client: MlflowClient, experiment: str, *wanted: str) -> Run | None:
    """The whole run: a search leaves out its inputs and outputs."""
    runs = client.search_runs([experiment], " and ".join(wanted), run_view_type=ViewType.ACTIVE_ONLY, max_results=1)
    return client.get_run(runs[0].info.run_id) if runs else None


def _run(
    client: MlflowClient,
    experiment: str,
    record: IndexRecord | ServiceRecord,
    version: str,
    facts: Mapping[str, str],
    more_tags: Mapping[str, str] = MappingProxyType({}),
    began: datetime | None = None,
) -> Run:
    """The run of a record, with its facts as params and the object's manifest as an artifact. It starts when what it tells of `began`,
    however late it is written: by that it is found for an answer.
    """
    owner = record.owner
    run = _find_run(client, experiment, _tag(Tag.UID, owner.uid), _tag(RECORD, record.key))
    if run is None:
        tags = {
            **_tags(record, version),
            Tag.GENERATION.value: str(record.generation),
            "mlflow.source.name": f"{owner.kind}/{owner.namespace}/{owner.name}",
            "mlflow.source.type": "JOB",
            **more_tags,
        }
        start = int(began.timestamp() * 1000) if began else None
        name = f"{owner.name}-{version.rsplit('.', 1)[-1]}"
        run = client.create_run(experiment, start_time=start, run_name=name, tags=tags)
    params = [Param(name, facts[name]) for name in facts if name not in run.data.params]
    if params:
        client.log_batch(run.info.run_id, params=params)
    if not client.list_artifacts(run.info.run_id):
        client.log_text(run.info.run_id, record.manifest, MANIFEST_ARTIFACT)
    return run


def _tags(record: IndexRecord | ServiceRecord, version: str) -> dict[str, str]:
    owner = record.owner
    return {
        Tag.UID.value: owner.uid,
        Tag.KIND.value: owner.kind,
        Tag.NAMESPACE.value: owner.namespace,
        Tag.NAME.value: owner.name,
        Tag.VERSION.value: version,
        RECORD: record.key,
    }


def _output(
    client: MlflowClient,
    run: Run,
    record: IndexRecord | ServiceRecord,
    type_: ModelType,
    version: str,
    facts: Mapping[str, str],
) -> str:
    """The id of the logged model that comes out of a run. One that was begun and not put out is found again by its run."""
    run_id = run.info.run_id
    if run.outputs is not None and run.outputs.model_outputs:
        return str(run.outputs.model_outputs[0].model_id)
    known = client.search_logged_models([run.info.experiment_id], f"source_run_id = {_quoted(run_id)}", max_results=1)
    model = (
        known[0]
        if known
        else client.create_logged_model(
            run.info.experiment_id,
            name=_model_name(f"{record.owner.name}-{version.rsplit('.', 1)[-1]}"),
            source_run_id=run_id,
            tags={**EXTERNAL, **_tags(record, version)},
            params=dict(facts),
            model_type=type_.value,
        )
    )
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def _recorded(client: MlflowClient, run: Run, model_id: str | None) -> Recorded:
    if run.info.status != "FINISHED":
        client.set_terminated(run.info.run_id, "FINISHED")
    url = run_url(client.tracking_uri, run.info.experiment_id, run.info.run_id)
    return Recorded(run.info.run_id, url, model_id)


def _model_of_uri(client: MlflowClient, experiment: str, uri: str, type_: ModelType, digest: str) -> str | None:
    """The id of the logged model that stands for the weights of a URI: a registered version's own one, or else one for the URI,
    made if it is not there. None when the registry does not have it (yet).
    """
    if uri.startswith("mlflow://"):
        version = registered_version(client, uri.removeprefix("mlflow://"))
        return logged_model_id(version) if version else None
    tag = uri.replace("'", "%27")
    wanted = f"model_type = {_quoted(type_.value)} and {_tag(Tag.URI, tag)}"
    if digest:
        wanted += f" and {_tag(DIGEST, digest)}"
    newest = [{"field_name": "creation_timestamp", "ascending": False}]
    known = client.search_logged_models([experiment], wanted, max_results=1, order_by=newest)
    if known:
        return str(known[0].model_id)
    tags = {**EXTERNAL, Tag.URI.value: tag, **({DIGEST: digest} if digest else {})}
    name = _model_name(uri.split("://", 1)[-1].rstrip("/").rsplit("/", 1)[-1])
    model = client.create_logged_model(experiment, name=name, tags=tags, model_type=type_.value)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _index_model_id(client: MlflowClient, experiment: str, collection: str) -> str | None:
    """The id of the logged model of a collection; of several, in-place updates of one, the newest."""
    wanted = f"model_type = {_quoted(ModelType.INDEX.value)} and {_tag(Tag.VERSION, collection)}"
    newest = [{"field_name": "creation_timestamp", "ascending": False}]
    known = client.search_logged_models([experiment], wanted, max_results=1, order_by=newest)
    return str(known[0].model_id) if known else None


def registered_version(client: MlflowClient, reference: str) -> ModelVersion | None:
    """The version that `name@alias` or `name/3` names. None when there is none."""
    name, alias, version = *reference.partition("@")[::2], reference.partition("/")[2]
    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name.partition("/")[0], version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def logged_model_id(version: ModelVersion) -> str | None:
    """The logged model that a registered version is made of; `ModelVersion.model_id` is empty over REST, so from its source."""
    source = version.source or ""
    return source.removeprefix("models:/") if source.startswith("models:/m-") else None


def _model_name(text: str) -> str:
    """A name that MLflow takes for a logged model."""
    return re.sub(r"[./:%\"']", "-", text)
