"""Nodes of what MLflow says about runs, models, data sets and traces. The tags are those of `llmops_api.lineage`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from mlflow.entities import Dataset, LoggedModel, Run, Trace, TraceInfo
from mlflow.entities.model_registry import ModelVersion

from llmops_api.lineage import DATASET_CONTEXT, MANIFEST_ARTIFACT, ModelType, Tag
from llmops_operator.controllers.lineage_graph.graph import Node

TRAINED = (ModelType.ADAPTER, ModelType.FULL)
"""Models that a training has made; the other ones that runs use are from outside."""

RUNS_THEMSELVES = (ModelType.INDEX, ModelType.SERVICE)
"""Logged models that stand for their run: a version of an index, a revision of a service."""


def models_of(run: Run) -> list[str]:
    """The ids of the models that went into a run."""
    return [used.model_id for used in run.inputs.model_inputs] if run.inputs else []


def data_of(run: Run) -> list[tuple[Dataset, str]]:
    """The data sets that went into a run, and what each was for it."""
    return [(used.dataset, context_of(used.tags)) for used in run.inputs.dataset_inputs] if run.inputs else []


def products_of(run: Run) -> list[str]:
    """The ids of the models that came out of a run."""
    return [made.model_id for made in run.outputs.model_outputs] if run.outputs else []


def run_node(run: Run) -> Node:
    """A training, a version of an index, or a revision of a service."""
    tags, params = run.data.tags, run.data.params
    name = tags.get(Tag.NAME) or run.info.run_name or run.info.run_id
    facts = {"namespace": tags.get(Tag.NAMESPACE, ""), "version": tags.get(Tag.VERSION, "")}
    facts |= {key: params[key] for key in ("documents", "chunks", "digest", "model") if key in params}
    facts |= {"gate": tags.get(Tag.GATE, ""), "held_back": tags.get(Tag.HELD_BACK, "")}
    facts |= {"status": run.info.status, "run": run.info.run_id}
    return _node(f"run/{run.info.run_id}", tags.get(Tag.KIND, "run"), name, facts)


def held_back(run: Run) -> bool:
    """Whether it is of a version of an index that nobody was answered from."""
    return run.data.tags.get(Tag.HELD_BACK) == "true"


def manifest_node(run: Run) -> Node:
    """The object as it was applied, an artifact of its run."""
    facts = {"generation": run.data.tags.get(Tag.GENERATION, ""), "artifact": f"{run.info.run_id}/{MANIFEST_ARTIFACT}"}
    return _node(f"manifest/{run.info.run_id}", "manifest", MANIFEST_ARTIFACT, facts)


def model_node(model: LoggedModel, version: ModelVersion | None) -> Node:
    """A registered version by its name and number; another model by where its weights are."""
    if version is not None:
        return version_node(version, type=str(model.model_type or ""))
    trained = model.model_type in TRAINED
    name = model.name if trained else model.tags.get(Tag.URI) or model.name
    facts = {"type": str(model.model_type)} if trained else {}
    return _node(f"logged-model/{model.model_id}", "model" if trained else role_of(model), name, facts)


def version_node(version: ModelVersion, **facts: str) -> Node:
    """A version of a registered model."""
    name = f"{version.name}/{version.version}"
    return _node(f"model/{name}", "model", name, {**facts, "aliases": ", ".join(version.aliases or ())})


def dataset_node(dataset: Dataset) -> Node:
    """A data set as it was: by name and digest."""
    profile = as_object(dataset.profile)
    facts = {key: str(profile[key]) for key in ("num_rows", "documents") if key in profile}
    facts |= {"digest": dataset.digest, "uri": str(as_object(dataset.source).get("uri", ""))}
    return _node(f"dataset/{dataset.name}@{dataset.digest}", "dataset", dataset.name, facts)


def answer_node(info: TraceInfo) -> Node:
    """An answer, by its trace."""
    at = datetime.fromtimestamp(info.request_time / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return _node(
        f"answer/{info.trace_id}", "answer", info.trace_id, {"question": _line(info.request_preview), "at": at}
    )


def unrecorded_revision(namespace: str, service: str, revision: str) -> Node:
    """A revision of a service that MLflow has no run of: lineage may lag behind the first answers."""
    facts = {"namespace": namespace, "version": revision, "status": "not recorded (yet)"}
    return _node(f"revision/{namespace}/{service}/{revision}", "RagService", service, facts)


def documents_of(trace: Trace) -> Iterator[tuple[Node, str]]:
    """The documents that an answer was given from, those that it cites with their numbers, each with the name of its index."""
    cited = {}
    for span in trace.data.spans:
        for citation in _objects(as_object(span.outputs).get("citations")):
            cited[_place(citation.get("uri"), citation.get("lines"))] = citation
    found = {}
    for span in trace.data.spans:
        for hit in _objects(span.outputs) if span.span_type == "RETRIEVER" else ():
            metadata = as_object(hit.get("metadata"))
            found[_place(metadata.get("doc_uri"), metadata.get("lines"))] = metadata
    for place in dict.fromkeys((*cited, *found)):
        uri, lines = place
        citation = cited.get(place, {})
        facts = {
            "title": _heading(str(citation.get("title") or ""), str(citation.get("section") or "")),
            "lines": lines,
            "cited": f"[{citation['n']}]" if "n" in citation else "",
        }
        name = str(citation.get("path") or uri)
        yield (
            _node(f"document/{uri}#{lines}", "document", name, facts),
            str({**found.get(place, {}), **citation}.get("index")),
        )


def _heading(title: str, section: str) -> str:
    """Title and section; a section is a path of headings that often begins with the title."""
    return section if title and section.split(" > ")[0] == title else " > ".join(filter(None, (title, section)))


def context_of(tags: Iterable[Any] | None) -> str:
    """What a data set was for its run."""
    return next((str(tag.value).replace("-", " ") for tag in tags or () if tag.key == DATASET_CONTEXT), "data")


def role_of(model: LoggedModel) -> str:
    """What a model is for the run that uses it."""
    if model.model_type == ModelType.INDEX:
        return "index version"
    return str(model.model_type or "model").replace("-", " ")


def logged_model_id(version: ModelVersion) -> str | None:
    """The logged model of a registered version. Over REST MLflow tells it by `source` alone."""
    source = version.source or ""
    return source.removeprefix("models:/") if source.startswith("models:/m-") else None


def as_object(value: Any) -> Mapping[str, Any]:
    """A JSON object, as text or read already; an empty one when it is something else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, Mapping) else {}


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def _place(uri: Any, lines: Any) -> tuple[str, str]:
    return str(uri), f"{lines[0]}-{lines[1]}" if isinstance(lines, list | tuple) and len(lines) == 2 else ""


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _node(id_: str, kind: str, name: str, facts: Mapping[str, str]) -> Node:
    return Node(id_, kind, name, {key: value for key, value in facts.items() if value})
