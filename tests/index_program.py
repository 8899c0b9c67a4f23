"""The indexing program over a folder of documents, and documents to put there."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models

from llmops_api.programs import Env, IndexingConfig, IndexingResult, ObjectId
from llmops_services.indexing.program import main

WORDS = [
    "leave",
    "policy",
    "employee",
    "remote",
    "travel",
    "budget",
    "backup",
    "console",
    "volume",
    "router",
    "green",
    "light",
]


class Index:
    """An EmbeddingIndex over a folder, synchronised by hand."""

    def __init__(self, name: str, folder: Path, model: Path, client: QdrantClient) -> None:
        self.name = name
        self.documents = folder / "documents"
        self.documents.mkdir(parents=True)
        self.config = folder / "indexing.json"
        self.client = client
        self.uid = f"uid-{name}"
        self.spec: dict[str, Any] = {
            "sources": [{"name": "hr", "uri": f"file://{self.documents}"}],
            "embedding": {"model": {"uri": f"file://{model}"}},
            "chunking": {"maxTokens": 64, "overlapTokens": 8},
        }

    def write(self, **documents: str | None) -> None:
        for name, text in documents.items():
            path = self.documents / f"{name}.md"
            path.unlink() if text is None else path.write_text(text)

    def configure(self, **spec: Any) -> Path:
        self.spec.update(spec)
        owner = ObjectId(kind="EmbeddingIndex", namespace="team", name=self.name, uid=self.uid)
        config = IndexingConfig.model_validate({"object": owner, "spec": self.spec})
        self.config.write_text(json.dumps(config.dump()))
        return self.config

    def sync(self, **spec: Any) -> IndexingResult:
        return main(str(self.configure(**spec)))

    @property
    def alias(self) -> str:
        return f"team.{self.name}"

    def collections(self) -> set[str]:
        names = {one.name for one in self.client.get_collections().collections}
        return {name for name in names if name.startswith(f"{self.alias}.")}

    def points(self, collection: str | None = None) -> dict[str, models.Record]:
        records, rest = self.client.scroll(
            collection or self.alias, limit=100_000, with_payload=True, with_vectors=True
        )
        assert rest is None
        return {str(record.id): record for record in records}

    def texts(self) -> dict[str, list[str]]:
        """Texts of the chunks in order, by path."""
        found: dict[str, list[Any]] = {}
        for record in self.points().values():
            payload = record.payload or {}
            found.setdefault(payload["path"], []).append((payload["chunk"], payload["text"]))
        return {path: [text for _, text in sorted(chunks)] for path, chunks in found.items()}


def prose(seed: int, sentences: int = 12) -> str:
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=9)) + f" {seed} {number}." for number in range(sentences)]
    return f"# Document {seed}\n\n" + "\n\n".join(lines) + "\n"


def counts(result: IndexingResult) -> dict[str, int]:
    return {key: value for key, value in result.counts.dump().items() if value}


def questions(index: Index, labelled: list[tuple[str, str]], gate: str | None = None) -> dict[str, Any]:
    file = index.config.with_name("questions.jsonl")
    lines = [{"question": text, "documents": [{"path": path}], "answerable": True} for text, path in labelled]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return {"questions": {"uri": f"file://{file}"}, **({"gate": {"recallAt5": gate}} if gate else {})}


def payloads(points: dict[str, models.Record]) -> dict[str, Any]:
    return {key: record.payload for key, record in points.items()}


def start(index: Index, url: str, *, progress: Path | None = None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, Env.QDRANT_URL: url, "OMP_NUM_THREADS": "1"}
    if progress:
        environment[Env.PROGRESS_FILE] = str(progress)
    return subprocess.Popen([sys.executable, "-m", "llmops_services.indexing", str(index.config)], env=environment)
