"""Walks MLflow from one thing to what it was made from, or to what was made from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run, Trace
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from llmops_api.lineage import MANIFEST_ARTIFACT, Tag
from llmops_api.names import experiment_name
from llmops_operator.controllers.lineage_graph import nodes
from llmops_operator.controllers.lineage_graph.graph import Graph, Reference, Unknown, Unreachable

LIMIT = 200
"""The latest so many runs of a kind are looked at to find what uses something: MLflow cannot be asked by model."""
ANSWERS = 20
"""The latest so many answers of a revision are shown."""
TIMEOUT_SECONDS = 10


class LineageReader:
    """Asks one MLflow server; each call of a method asks anew."""

    def __init__(self, tracking_uri: str) -> None:
        # Read by mlflow at each request. Its own defaults let a server that is away hold a command for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_SECONDS))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        self._uri = tracking_uri
        self._client = MlflowClient(tracking_uri, registry_uri=tracking_uri)

    def origins(self, reference: Reference) -> Graph:
        """Everything that a thing was made from. Raises `Unknown` and `Unreachable`."""
        return self._walk(_Origins(self._client), reference)

    def uses(self, reference: Reference) -> Graph:
        """Everything that was made from a thing. Raises `Unknown` and `Unreachable`."""
        return self._walk(_Uses(self._client), reference)

    def _walk(self, walk: _Origins | _Uses, reference: Reference) -> Graph:
        with self._asking():
            walk.graph.roots = walk.start(reference)
        return walk.graph

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
                raise Unknown(f"MLflow at {self._uri} knows no such thing: {_short(error)}") from error
            raise Unreachable(f"MLflow at {self._uri} does not answer: {_short(error)}") from error
        except (RequestException, OSError) as error:
            raise Unreachable(f"MLflow at {self._uri} does not answer: {_short(error)}") from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class _Walk:
    """What both directions share: asking MLflow, and never walking on from one thing twice."""

    def __init__(self, client: MlflowClient) -> None:
        self.graph = Graph()
        self._client = client
        self._models: dict[str, LoggedModel] = {}
        self._done: set[str] = set()

    def _first_time(self, id_: str) -> bool:
        new = id_ not in self._done
        self._done.add(id_)
        return new

    def _everywhere(self) -> list[str]:
        """The experiments of all namespaces."""
        found = self._client.search_experiments(filter_string=f"name LIKE '{experiment_name('%')}'")
        return [experiment.experiment_id for experiment in found]

    def _of_namespace(self, namespace: str) -> list[str]:
        found = self._client.get_experiment_by_name(experiment_name(namespace))
        if found is None:
            raise Unknown(
                f'nothing of namespace "{namespace}" is recorded in MLflow yet: it is when something was done there'
            )
        return [found.experiment_id]

    def _search(self, experiments: list[str], wanted: Iterable[str], limit: int) -> list[Run]:
        """The latest runs. Whole ones: a search leaves out which models a run has used."""
        if not experiments:
            return []
        tests = " and ".join(wanted)
        found = self._client.search_runs(experiments, tests, max_results=limit, order_by=["start_time DESC"])
        return [self._client.get_run(run.info.run_id) for run in found]

    def _tagged(self, experiments: list[str], tags: Mapping[Tag, str], limit: int) -> list[Run]:
        return self._search(experiments, [f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items()], limit)

    def _runs_of_object(self, reference: Reference, limit: int) -> list[Run]:
        tags = {Tag.KIND: reference.kind, Tag.NAME: reference.name}
        runs = self._tagged(self._of_namespace(reference.namespace), tags, limit)
        if not runs:
            raise Unknown(
                f'MLflow has no run of {reference.kind} "{reference.name}": it has one once its work has begun'
            )
        return runs

    def _runs_of_dataset(self, reference: Reference) -> dict[str, list[tuple[Run, str]]]:
        """The runs that used a data set, and as what, for each of its digests; by the ids of their nodes."""
        found: dict[str, list[tuple[Run, str]]] = {}
        for run in self._search(self._everywhere(), [f"dataset.name = {_quoted(reference.name)}"], LIMIT):
            for dataset, role in nodes.data_of(run):
                if dataset.name == reference.name and reference.version in (None, dataset.digest):
                    found.setdefault(self.graph.add(nodes.dataset_node(dataset)), []).append((run, role))
        if not found:
            message = (
                f'no run has used a data set "{reference.name}": write the stem of a data file, or the name of a source'
            )
            raise Unknown(message)
        return found

    def _model(self, model_id: str) -> LoggedModel:
        if model_id not in self._models:
            self._models[model_id] = self._client.get_logged_model(model_id)
        return self._models[model_id]

    def _versions_of(self, run_id: str) -> dict[str | None, ModelVersion]:
        """The registered versions that came of a run, by the id of their logged model."""
        found = self._client.search_model_versions(f"run_id = {_quoted(run_id)}")
        return {nodes.logged_model_id(version): self._version(version.name, version.version) for version in found}

    def _version(self, name: str, version: str | None) -> ModelVersion:
        """A version of a registered model, by number or alias; without either the latest."""
        if version is None:
            found = self._client.search_model_versions(f"name = {_quoted(name)}", max_results=1000)
            if not found:
                raise Unknown(
                    f'there is no registered model "{name}": `llmops get tj` lists the ones that were trained'
                )
            version = str(max(int(one.version) for one in found))
        if version.isdigit():
            # Not the one of a search: that leaves out the aliases.
            return self._client.get_model_version(name, version)
        return self._client.get_model_version_by_alias(name, version)

    def _trace(self, name: str) -> Trace:
        trace: Trace = self._client.get_trace(name if name.startswith("tr-") else f"tr-{name}")
        return trace


class _Origins(_Walk):
    """From a thing to what it was made from."""

    def start(self, reference: Reference) -> list[str]:
        """Walk from what is asked about; the ids of its nodes."""
        match reference.kind:
            case "answer":
                return [self._answer(self._trace(reference.name))]
            case "model":
                return [self._registered(self._version(reference.name, reference.version))]
            case "dataset":
                return list(self._runs_of_dataset(reference))
        if reference.run_id:
            return [self._run(self._client.get_run(reference.run_id))]
        return [self._run(self._runs_of_object(reference, 1)[0])]

    def _answer(self, trace: Trace) -> str:
        """The documents that were found for an answer, and the revision that gave it."""
        node = self.graph.add(nodes.answer_node(trace.info))
        tags: dict[str, Any] = {**trace.info.trace_metadata, **trace.info.tags}
        namespace, _, service = str(tags.get(Tag.SERVICE, "")).partition("/")
        revision = str(tags.get(Tag.REVISION, ""))
        experiments = [str(trace.info.experiment_id)]
        indexes = self._indexes_at(experiments, tags, trace.info.request_time)
        for document, index in nodes.documents_of(trace):
            self.graph.join(self.graph.add(document), node, "document")
            if index in indexes:
                self.graph.join(self._run(indexes[index]), document.id, "index version")
        if service:
            runs = self._tagged(experiments, {Tag.KIND: "RagService", Tag.NAME: service, Tag.VERSION: revision}, 1)
            unrecorded = nodes.unrecorded_revision(namespace, service, revision)
            self.graph.join(self._run(runs[0]) if runs else self.graph.add(unrecorded), node, "service")
        return node

    def _indexes_at(self, experiments: list[str], tags: Mapping[str, Any], moment: int) -> dict[str, Run]:
        """The run of each index that an answer was searched in: a collection is updated in place, and its runs say when."""
        found = {}
        for index, collection in nodes.as_object(tags.get(Tag.COLLECTIONS)).items():
            tags_of_index = {Tag.KIND: "EmbeddingIndex", Tag.VERSION: str(collection)}
            runs = [run for run in self._tagged(experiments, tags_of_index, LIMIT) if not nodes.held_back(run)]
            if runs:
                found[index] = next((run for run in runs if run.info.start_time <= moment), runs[-1])
        return found

    def _registered(self, version: ModelVersion) -> str:
        model_id = nodes.logged_model_id(version)
        return self._from_model(self._model(model_id)) if model_id else self.graph.add(nodes.version_node(version))

    def _from_model(self, model: LoggedModel) -> str:
        if model.model_type in nodes.RUNS_THEMSELVES and model.source_run_id:
            return self._run(self._client.get_run(model.source_run_id))
        if model.model_type not in nodes.TRAINED or not model.source_run_id:
            return self.graph.add(nodes.model_node(model, None))
        version = self._versions_of(model.source_run_id).get(model.model_id)
        node = self.graph.add(nodes.model_node(model, version))
        self.graph.join(self._run(self._client.get_run(model.source_run_id)), node, "training")
        return node

    def _run(self, run: Run) -> str:
        """The models that went into a run, its data and its manifest."""
        node = self.graph.add(nodes.run_node(run))
        if not self._first_time(node):
            return node
        for model_id in nodes.models_of(run):
            model = self._model(model_id)
            self.graph.join(self._from_model(model), node, nodes.role_of(model))
        for dataset, role in nodes.data_of(run):
            self.graph.join(self.graph.add(nodes.dataset_node(dataset)), node, role)
        if any(file.path == MANIFEST_ARTIFACT for file in self._client.list_artifacts(run.info.run_id)):
            self.graph.join(self.graph.add(nodes.manifest_node(run)), node, "manifest")
        return node


class _Uses(_Walk):
    """From a thing to everything that was made from it."""

    def __init__(self, client: MlflowClient) -> None:
        super().__init__(client)
        self._known_users: dict[str, list[Run]] | None = None

    def start(self, reference: Reference) -> list[str]:
        """Walk from what is asked about; the ids of its nodes."""
        match reference.kind:
            case "answer":
                return [self.graph.add(nodes.answer_node(self._trace(reference.name).info))]
            case "model":
                version = self._version(reference.name, reference.version)
                model_id = nodes.logged_model_id(version)
                return [
                    self._model_used(self._model(model_id), version)
                    if model_id
                    else self.graph.add(nodes.version_node(version))
                ]
            case "dataset":
                found = self._runs_of_dataset(reference)
                for node, runs in found.items():
                    for run, role in runs:
                        self.graph.join(node, self._run(run), role)
                return list(found)
        return [self._run(run) for run in self._runs_of_object(reference, LIMIT)]

    def _run(self, run: Run) -> str:
        """What came out of a run, and what used that."""
        node = self.graph.add(nodes.run_node(run))
        if not self._first_time(node):
            return node
        versions = self._versions_of(run.info.run_id)
        for model_id in nodes.products_of(run):
            model = self._model(model_id)
            if model.model_type in nodes.RUNS_THEMSELVES:
                self._join_users(model, node)
            else:
                self.graph.join(node, self._model_used(model, versions.get(model.model_id)), "training")
        if run.data.tags.get(Tag.KIND) == "RagService":
            self._join_answers(run, node)
        return node

    def _model_used(self, model: LoggedModel, version: ModelVersion | None) -> str:
        node = self.graph.add(nodes.model_node(model, version))
        if self._first_time(node):
            self._join_users(model, node)
        return node

    def _join_users(self, model: LoggedModel, node: str) -> None:
        for run in self._users().get(model.model_id, ()):
            self.graph.join(node, self._run(run), nodes.role_of(model))

    def _users(self) -> dict[str, list[Run]]:
        """The runs that used a model, by its id."""
        if self._known_users is None:
            self._known_users = {}
            everywhere = self._everywhere()
            for kind in ("TrainingJob", "EmbeddingIndex", "RagService"):
                for run in self._tagged(everywhere, {Tag.KIND: kind}, LIMIT):
                    for model_id in nodes.models_of(run):
                        self._known_users.setdefault(model_id, []).append(run)
        return self._known_users

    def _join_answers(self, run: Run, node: str) -> None:
        wanted = f"tags.`{Tag.REVISION}` = {_quoted(run.data.tags.get(Tag.VERSION, ''))}"
        found = self._client.search_traces(
            locations=[run.info.experiment_id], filter_string=wanted, max_results=ANSWERS, include_spans=False
        )
        for trace in found:
            self.graph.join(node, self.graph.add(nodes.answer_node(trace.info)), "service")


def _quoted(text: str) -> str:
    """Text as a filter of MLflow's takes it, which knows no way to write a quote within."""
    return "'" + text.replace("'", "") + "'"
