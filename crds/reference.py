"""Write docs/reference from the code: `python crds/reference.py`; with `--check`, fail when it is not what would be written.

What the kinds consist of is read from their CRDs, what is measured from the registries of operator and gateway themselves.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from pydantic import TypeAdapter

from generate import attribute_docs, crd, in_one_line, main
from llmops_api.programs import TOKEN_PREFIX, Env, ExitCode, token_variable
from llmops_api.reasons import FailureReason, Reason
from llmops_api.v1alpha1 import API_VERSION, KINDS
from llmops_api.v1alpha1.embedding_index import EmbeddingIndexCondition
from llmops_api.v1alpha1.meta import DataUri, ModelUri
from llmops_api.v1alpha1.rag_service import RagServiceCondition
from llmops_api.v1alpha1.training_job import TrainingJobCondition
from llmops_operator.backends.kubernetes import config as operator_config
from llmops_operator.backends.kubernetes import metrics as operator_metrics
from llmops_operator.backends.kubernetes.cache import Cache
from llmops_operator.controllers.meter import Result
from llmops_operator.controllers.queue import WorkQueue
from llmops_services.gateway.app import create_app
from llmops_services.gateway.live import Live
from llmops_services.gateway.metrics import Metrics as GatewayMetrics
from llmops_services.gateway.traces import SAMPLING_RATIO, TraceSender
from printing import NAMES

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
HEADER = "<!-- Written by crds/reference.py: change the code and run `make generate`. -->\n"
CONDITIONS: Mapping[str, type[Enum]] = {
    "TrainingJob": TrainingJobCondition,
    "EmbeddingIndex": EmbeddingIndexCondition,
    "RagService": RagServiceCondition,
}
DOMAIN, LINEAGE = "operator/src/llmops_operator/domain", "operator/src/llmops_operator/controllers/lineage"
EVERYWHERE = (
    f"{DOMAIN}/conditions.py",
    f"{DOMAIN}/lineage.py",
    "operator/src/llmops_operator/controllers/refusal.py",
)
DECIDING: Mapping[str, tuple[str, ...]] = {
    "TrainingJob": (f"{DOMAIN}/training_job.py", f"{DOMAIN}/attempts.py", *EVERYWHERE),
    "EmbeddingIndex": (f"{DOMAIN}/embedding_index.py", f"{DOMAIN}/attempts.py", *EVERYWHERE),
    "RagService": (
        f"{DOMAIN}/rag_service.py",
        f"{DOMAIN}/serving.py",
        f"{LINEAGE}/mlflow.py",
        f"{LINEAGE}/port.py",
        *EVERYWHERE,
    ),
}
"""The modules that make a kind's conditions; the first of them its events too."""
LONGEST_DEFAULT = 80


def pattern_of(scalar: Any) -> str:
    """What a scalar type has to match."""
    return str(TypeAdapter(scalar).json_schema()["pattern"])


URIS = {pattern_of(DataUri): "a [URI](../uris.md)", pattern_of(ModelUri): "a [URI](../uris.md) of a model"}

Schema = Mapping[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: str) -> str:
    """As code, when there is any."""
    return f"`{text}`" if text else ""


# The kinds


def nodes(schema: Schema, path: str) -> Iterator[tuple[str, Schema, bool]]:
    """Everything below a node: its path, its schema, and whether it has to be there."""
    for name, one in schema.get("properties", {}).items():
        below = f"{path}.{name}"
        yield below, one, name in schema.get("required", ())
        yield from nodes(one, below)
        yield from nodes(one.get("items", {}), f"{below}[]")


def rules(schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    """Where a rule across fields stands, and what it is refused with."""
    yield from ((path, rule["message"]) for rule in schema.get("x-kubernetes-validations", ()))
    for name, one in schema.get("properties", {}).items():
        yield from rules(one, f"{path}.{name}")
    if "items" in schema:
        yield from rules(schema["items"], f"{path}[]")


def type_of(schema: Schema) -> str:
    """In words."""
    if "items" in schema:
        return f"list of {type_of(schema['items'])}s"
    if "additionalProperties" in schema:
        return f"map of {type_of(schema['additionalProperties'])}s"
    return "one of " + ", ".join(map(code, schema["enum"])) if "enum" in schema else str(schema["type"])


def bounds_of(schema: Schema) -> str:
    """What a value has to keep to."""
    found = []
    for least, most, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " entries"),
        ("minProperties", "maxProperties", " entries"),
    ):
        low, high = schema.get(least), schema.get(most)
        if low is not None and high is not None:
            found.append(f"{low} to {high}{unit}")
        elif low is not None or high is not None:
            found.append(f"at least {low}{unit}" if high is None else f"at most {high}{unit}")
    if "pattern" in schema:
        found.append(URIS.get(schema["pattern"], code(schema["pattern"])))
    inner = schema.get("items") or schema.get("additionalProperties")
    if isinstance(inner, Mapping) and (each := bounds_of(inner)):
        found.append(f"each {each}")
    return "; ".join(found)


def default_of(schema: Schema, required: bool) -> str:
    """What is filled in."""
    if required:
        return "required"
    text = json.dumps(schema["default"], ensure_ascii=False) if "default" in schema else ""
    return code(text) if len(text) <= LONGEST_DEFAULT else "see below" if "properties" in schema else code(text)


def kind_page(kind: str) -> str:
    """Fields, rules, conditions, and what kubectl prints."""
    names, version = NAMES[kind], crd(kind)["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    spec, status = schema["properties"]["spec"], schema["properties"]["status"]
    fields = (
        (code(path), type_of(one), default_of(one, required), bounds_of(one), one.get("description", ""))
        for path, one, required in nodes(spec, "spec")
    )
    broken = (
        *(("metadata.name", rule["message"]) for rule in schema["x-kubernetes-validations"]),
        *rules(spec, "spec"),
    )
    written = ((code(path), type_of(one), one.get("description", "")) for path, one, _ in nodes(status, "status"))
    docs = attribute_docs(CONDITIONS[kind])
    columns = ((one.name, code(one.path), "with `-o wide`" if one.wide else "") for one in names.columns)
    return "\n".join(
        (
            f"{HEADER}# {kind}\n",
            f"{schema['description']} `apiVersion: {API_VERSION}`; on the command line `{names.short}` or `{names.plural}`.\n",
            f"## Spec\n\n{spec['description']}\n\n{table(('field', 'type', 'default', 'bounds', 'what it is'), fields)}",
            f"## Rules across fields\n\n{table(('at', 'refused with'), ((code(path), said) for path, said in broken))}",
            f"## Status\n\n{table(('field', 'type', 'what it is'), written)}",
            "## Conditions\n\nEach is `True`, `False` or `Unknown`.\n\n"
            + table(("type", "True when"), ((code(str(one.value)), docs[one.name]) for one in CONDITIONS[kind])),
            f"## Reasons\n\n{reasons(used(Reason, *DECIDING[kind]))}",
            "A condition about work may carry the reason of its [pods, processes or program](reasons.md) too.\n",
            "## Events\n\nA condition that becomes `True` is a Normal event, and trouble that is new a Warning, with the condition's reason and message. "
            f"Beside these:\n\n{events(kind)}",
            f"## What `kubectl get` prints\n\n{table(('column', 'from', ''), columns)}",
            f"`--field-selector` knows {', '.join(code(path.removeprefix('.')) for path in names.selectable)}.\n",
        )
    )


# Reasons and events


def used(enum: type[Enum], *paths: str) -> list[Enum]:
    """The members that the code below some paths names, in the order of the enumeration."""
    files = [
        file for path in paths for file in ([ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("*.py"))
    ]
    found = {name for file in files for name in re.findall(rf"(?<!\w){enum.__name__}\.([A-Z_]+)", file.read_text())}
    return [one for one in enum if one.name in found]


def reasons(members: Iterable[Enum]) -> str:
    """A table of them."""
    members = list(members)
    docs = attribute_docs(type(members[0]))
    return table(
        ("reason", "what it means, and what to do"), ((code(str(one.value)), docs[one.name]) for one in members)
    )


def events(kind: str) -> str:
    """What is told beside the conditions."""
    docs = attribute_docs(Reason)
    source = (ROOT / DECIDING[kind][0]).read_text()
    found = re.findall(r"(?<!\w)(normal|warning)\(\s*Reason\.([A-Z_]+)", source)
    rows = [(type_.capitalize(), code(Reason[name]), docs[name]) for type_, name in found]
    rows.append(("Warning", code(Reason.INVALID), docs[Reason.INVALID.name]))
    return table(("type", "reason", "when"), rows)


def reasons_page() -> str:
    """Those that come from below the objects."""
    services, backends = "services/src/llmops_services", "operator/src/llmops_operator/backends"
    parts = {name: [f"{services}/{name}"] for name in ("training", "indexing", "engine", "gateway", "vectorstore")}
    shared = [f"{services}/{path.name}" for path in (ROOT / services).glob("*.py")]
    said = {title: used(FailureReason, *paths) for title, paths in parts.items()}
    said = {"whatever reads URIs and models": used(FailureReason, f"{services}/uris", *shared)} | said
    return "\n".join(
        (
            f"{HEADER}# Reasons of workloads and programs\n",
            "A condition about work (`Trained`, `Synced`, `EngineReady`, `GatewayReady`), and an attempt, carry the reason of what does the work: of its "
            "pods or processes, or of the program itself. The message beside it says what is wrong where, and what to do.\n",
            f"## In a cluster\n\n{reasons(used(Reason, f'{backends}/kubernetes'))}",
            f"## On a laptop\n\n{reasons(used(Reason, f'{backends}/local'))}",
            *(f"## Said by {title}\n\n{reasons(members)}" for title, members in said.items()),
            "What no object can tell: [When something does not go on](../install/troubleshooting.md).\n",
        )
    )


# What is measured


def operator_registry() -> CollectorRegistry:
    """The operator's, with a sample of each."""
    metrics, cache = operator_metrics.Metrics(), Cache()
    cache.conditions["TrainingJob", "Succeeded", "True"] = 1
    metrics.watch(WorkQueue(), cache, lambda: 0)
    metrics.looked("TrainingJob", Result.DONE, 0.1)
    metrics.wrote("PATCH", "trainingjobs", 200)
    return metrics.registry


def gateway_registry() -> CollectorRegistry:
    """The gateway's, with a sample of each."""
    metrics = GatewayMetrics()
    create_app(Live(Path(os.devnull)), metrics, TraceSender("http://127.0.0.1:1"))
    metrics.requested("/v1/chat/completions", 200)
    return metrics.registry


def metric_table(registry: CollectorRegistry) -> str:
    """Names as they are queried."""
    rows = []
    for metric in sorted(registry.collect(), key=lambda one: one.name):
        labels = dict.fromkeys(label for sample in metric.samples for label in sample.labels if label != "le")
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        rows.append((code(name), metric.type, ", ".join(map(code, labels)), metric.documentation))
    return table(("metric", "type", "labels", "what it is"), rows)


def metrics_page() -> str:
    """What Prometheus is told."""
    return "\n".join(
        (
            f"{HEADER}# Metrics\n",
            "A histogram has `_bucket`, `_count` and `_sum`.\n",
            f"## Operator, port 8080\n\n{metric_table(operator_registry())}",
            f"`result` of a look is one of {', '.join(code(one.value) for one in Result)}.\n",
            f"## Gateway\n\n{metric_table(gateway_registry())}",
        )
    )


# The programs


def programs_page() -> str:
    """How programs are told what they need, and how they end."""
    variables = attribute_docs(Env)
    codes = attribute_docs(ExitCode)
    example = "https://example.com/data.jsonl"
    own = [(code(one.value), variables[one.name]) for one in Env]
    token = (
        code(f"{TOKEN_PREFIX}…"),
        f"The token that a `secretRef` names for a URI, for `{example}` in `{token_variable(example)}`: the first twelve hex digits "
        "of the URI's sha256.",
    )
    others = (
        (code(SAMPLING_RATIO), "Gateway: the share of the answers that is traced, from 0 to 1."),
        (code(operator_config.ENVIRONMENT), "Operator: its configuration file, where `--config` names none."),
        (code("LLMOPS_HOME"), "`llmops` on this machine: the folder that everything is kept in."),
    )
    ends = ((code(str(one.value)), codes[one.name]) for one in ExitCode)
    return "\n".join(
        (
            f"{HEADER}# The programs: environment variables and exit codes\n",
            "`python -m llmops_services.NAME config/NAME.json`, with NAME one of training, indexing, engine, gateway: what the platform starts, "
            "and anybody can by hand.\n",
            f"## Environment variables\n\n{table(('variable', 'what it is'), (*own, token, *others))}",
            f"## Exit codes\n\n{in_one_line(ExitCode.__doc__ or '')}\n\n{table(('code', 'meaning'), ends)}",
            "Those of the command: [llmops](../cli.md).\n",
        )
    )


def files() -> dict[Path, str]:
    """What is to be written where."""
    pages = {f"{kind.lower()}.md": kind_page(kind) for kind in KINDS}
    pages |= {"reasons.md": reasons_page(), "metrics.md": metrics_page(), "programs.md": programs_page()}
    return {FOLDER / name: text for name, text in pages.items()}


if __name__ == "__main__":
    sys.exit(main(files))
