"""Objects as rows of plain, aligned text, and as YAML and JSON. No colours: what is printed here is read by programs too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from llmops_operator.cli.kinds import BY_KIND, GROUP, Kind

Object = Mapping[str, Any]
Column = tuple[str, Callable[[Object], str]]


def lines(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """The rows with their columns aligned, three spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def dig(value: Any, *way: str) -> Any:
    """The value at the end of a way through mappings; None where it ends early."""
    for part in way:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def shown(*way: str) -> Callable[[Object], str]:
    """A column that shows one value, `-` when there is none."""
    return lambda manifest: text(dig(manifest, *way))


def text(value: Any) -> str:
    """A cell: `-` for nothing."""
    return "-" if value is None or value == "" else str(value)


def age(since: str | None, now: datetime | None = None) -> str:
    """How long ago, like kubectl: 12s, 5m10s, 3h, 2d."""
    if not since:
        return "-"
    seconds = max(0, int(((now or datetime.now(UTC)) - datetime.fromisoformat(since)).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    return f"{minutes}m" if minutes < 180 else f"{hours}h" if hours < 48 else f"{days}d"


def phase(manifest: Object) -> str:
    """One word for how the object is."""
    if dig(manifest, "metadata", "deletionTimestamp"):
        return "Deleting"
    return str(dig(manifest, "status", "phase") or "Pending")


def _progress(manifest: Object) -> str:
    progress = dig(manifest, "status", "progress")
    if not progress:
        return "-"
    steps = f" ({progress.get('step', 0)}/{progress['total']})" if progress.get("total") else ""
    return f"{progress.get('percent', 0)}%{steps}"


def _loss(manifest: Object) -> str:
    return text(
        dig(manifest, "status", "evaluation", "after", "domain", "loss") or dig(manifest, "status", "progress", "loss")
    )


def model_version(manifest: Object) -> str:
    """`name/3` for the model version that a job has made."""
    model = dig(manifest, "status", "model")
    return f"{model['name']}/{model['version']}" if model else "-"


def _model_in_use(manifest: Object) -> str:
    model = dig(manifest, "status", "model")
    version = dig(model, "version")
    return f"{model['name']}/{version}" if version else text(dig(model, "name"))


def _indexes(manifest: Object) -> str:
    return ",".join(index["indexRef"]["name"] for index in dig(manifest, "spec", "indexes") or ()) or "-"


def _ready(manifest: Object) -> str:
    return f"{dig(manifest, 'status', 'readyReplicas') or 0}/{dig(manifest, 'spec', 'replicas') or 1}"


def _fingerprint(manifest: Object) -> str:
    return text((dig(manifest, "status", "version", "fingerprint") or "")[:10])


def _last_sync(manifest: Object) -> str:
    return age(dig(manifest, "status", "lastSyncTime"))


def _summary(manifest: Object) -> str:
    """Why it is as it is: the message of the summing condition."""
    done = BY_KIND[manifest["kind"]].done
    conditions = dig(manifest, "status", "conditions") or ()
    return text(next((c.get("message") for c in conditions if c["type"] == done), None))


# What a spec leaves out has the API's default: method SFT, one replica.
COLUMNS: dict[str, tuple[Column, ...]] = {
    "TrainingJob": (
        ("METHOD", lambda manifest: dig(manifest, "spec", "method") or "SFT"),
        ("PROGRESS", _progress),
        ("LOSS", _loss),
        ("MODEL", model_version),
    ),
    "EmbeddingIndex": (
        ("DOCUMENTS", shown("status", "documents")),
        ("CHUNKS", shown("status", "chunks")),
        ("VERSION", _fingerprint),
        ("RECALL@5", shown("status", "version", "evaluation", "recallAt5")),
    ),
    "RagService": (("MODEL", _model_in_use), ("INDEXES", _indexes), ("READY", _ready), ("URL", shown("status", "url"))),
}
WIDE: dict[str, tuple[Column, ...]] = {
    "TrainingJob": (("BASE", shown("spec", "baseModel", "uri")), ("RUN", shown("status", "runId"))),
    "EmbeddingIndex": (
        ("MRR", shown("status", "version", "evaluation", "mrr")),
        ("SYNCED", _last_sync),
        ("COLLECTION", shown("status", "version", "collection")),
    ),
    "RagService": (("REVISION", shown("status", "revision")), ("BASE", shown("spec", "model", "base", "uri"))),
}


def columns(kind: Kind, *, wide: bool, all_namespaces: bool, prefixed: bool) -> list[Column]:
    """The columns of a kind's table; `prefixed` names carry their kind, as in `get all`."""

    def name(manifest: Object) -> str:
        bare = str(manifest["metadata"]["name"])
        return f"{kind.singular}.{GROUP}/{bare}" if prefixed else bare

    first: list[Column] = [("NAME", name), ("PHASE", phase)]
    if all_namespaces:
        first.insert(0, ("NAMESPACE", shown("metadata", "namespace")))
    last: list[Column] = [("AGE", lambda manifest: age(dig(manifest, "metadata", "creationTimestamp")))]
    if wide:
        last = [*last, *WIDE[kind.kind], ("MESSAGE", _summary)]
    return [*first, *COLUMNS[kind.kind], *last]


def table(objects: Sequence[Object], kind: Kind, **how: bool) -> list[list[str]]:
    """The rows of a kind's objects, the headings first."""
    wanted = columns(kind, **how)
    return [[heading for heading, _ in wanted], *([cell(item) for _, cell in wanted] for item in objects)]


def serialised(objects: Sequence[Object], form: str, *, single: bool) -> str:
    """The objects as `json` or `yaml`: one as it is, several as a List that `apply -f -` reads again."""
    value: Any = objects[0] if single else {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    if form == "json":
        return json.dumps(value, indent=4, ensure_ascii=False)
    import yaml

    from llmops_operator.cli.kubernetes_yaml import Dumper

    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120).rstrip()
