"""How well labelled questions find their documents, in the collection and with the search that a gateway would use."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmops_api.reasons import FailureReason
from llmops_api.unicode import half_character
from llmops_api.v1alpha1.embedding_index import IndexGate, RetrievalScores
from llmops_api.v1alpha1.meta import decimal
from llmops_api.v1alpha1.rag_service import RetrievalMode
from llmops_services.embedding import Embedder
from llmops_services.program import UserError
from llmops_services.retrieval import Hit, search
from llmops_services.uris import local_path
from llmops_services.vectors import connect_async, patiently

_FIRST = 5
"""recall@5: a question is found when a chunk of one of its documents is among the first five."""
_CANDIDATES = 30
"""How many chunks are searched for, the gateway's default; the reciprocal rank of a document that is not among them is 0."""
_BATCH = 64


@dataclass(frozen=True)
class Question:
    """A question and the paths of the documents that answer it."""

    text: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Questions:
    """The answerable questions of a file; `digest` is of the whole file."""

    uri: str
    questions: tuple[Question, ...]
    digest: str


def load_questions(uri: str) -> Questions:
    """Read a JSONL file of {"question", "documents": [{"path"}], "answerable"?}. Raises `UserError` that names file and line.

    Questions with `answerable` false have nothing to find and are left out.
    """
    path = local_path(uri)
    try:
        raw = path.read_bytes()
        # splitlines() cuts at characters that may stand within a JSON string
        lines = raw.decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            FailureReason.QUESTIONS_UNREADABLE,
            f"evaluation.questions: {path}: {error}; give a UTF-8 file of JSON lines",
        ) from error
    questions = [
        question
        for number, line in enumerate(lines, 1)
        if line.strip() and (question := _question(path, number, line)) is not None
    ]
    if not questions:
        raise UserError(
            FailureReason.QUESTIONS_MISSING,
            f"evaluation.questions: {path} holds no answerable question; write some, or remove evaluation",
        )
    return Questions(uri, tuple(questions), hashlib.sha256(raw).hexdigest())


def _question(path: Path, number: int, line: str) -> Question | None:
    where = f"evaluation.questions: {path}, line {number}"
    form = '{"question": "…", "documents": [{"path": "hr/leave.md"}]}'
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(FailureReason.QUESTIONS_INVALID, f"{where} is not JSON ({error}); write {form}") from error
    if not isinstance(record, dict) or not isinstance(record.get("question"), str) or not record["question"].strip():
        raise UserError(FailureReason.QUESTIONS_INVALID, f"{where} has no question; write {form}")
    if half := half_character(record["question"]):
        raise UserError(
            FailureReason.QUESTIONS_INVALID,
            f"{where} holds what is not Unicode text ({half!r} is half a character); correct it",
        )
    if record.get("answerable") is False:
        return None
    entries = record.get("documents")
    paths = [entry.get("path") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    named = [path for path in paths if isinstance(path, str) and path]
    if not named or len(named) < len(paths):
        raise UserError(
            FailureReason.QUESTIONS_INVALID,
            f'{where} does not say which documents answer it; write {form}, or "answerable": false',
        )
    return Question(record["question"], tuple(named))


def found_at(hits: Sequence[Hit], question: Question) -> int | None:
    """The rank, from 1, of the first hit that is of one of the question's documents.

    A label is a path below the common folder of the sources or a longer one that ends alike: `hr/leave.md` is the document
    `leave.md` of the source `hr`, and the document `hr/leave.md` of any source.
    """
    for rank, hit in enumerate(hits, 1):
        for name in {f"{hit.source}/{hit.path}", f"{hit.source}/{hit.path.partition('#')[0]}"}:
            if any(
                f"/{name}".endswith(f"/{label}") or f"/{label}".endswith(f"/{name}") for label in question.documents
            ):
                return rank
    return None


def evaluate(collection: str, questions: Questions, embedder: Embedder, *, sparse: bool) -> RetrievalScores:
    """Search for every question, hybrid where there are keyword vectors. Waits for a store that does not answer."""
    ranks: list[int | None] = []
    for first in range(0, len(questions.questions), _BATCH):
        batch = questions.questions[first : first + _BATCH]
        vectors = embedder.encode_queries([question.text for question in batch]).tolist()
        ranks += patiently(lambda batch=batch, vectors=vectors: asyncio.run(_ranks(collection, batch, vectors, sparse)))  # type: ignore[misc]
    return scores(ranks).model_copy(update={"uri": questions.uri, "digest": questions.digest})


async def _ranks(
    collection: str, questions: Sequence[Question], vectors: Sequence[list[float]], sparse: bool
) -> list[int | None]:
    mode = RetrievalMode.HYBRID if sparse else RetrievalMode.DENSE
    client = connect_async(timeout_seconds=30)
    try:
        return [
            found_at(
                await search(
                    client, collection, question.text, vector, mode=mode, candidates=_CANDIDATES, sparse=sparse
                ),
                question,
            )
            for question, vector in zip(questions, vectors, strict=True)
        ]
    finally:
        await client.close()


def scores(ranks: Sequence[int | None]) -> RetrievalScores:
    """Recall@5 and mean reciprocal rank of questions whose documents were found at these ranks."""
    recall = sum(rank is not None and rank <= _FIRST for rank in ranks) / len(ranks)
    mrr = sum(1 / rank for rank in ranks if rank) / len(ranks)
    return RetrievalScores(questions=len(ranks), recall_at5=f"{recall:.4f}", mrr=f"{mrr:.4f}")


def judge(gate: IndexGate | None, found: RetrievalScores) -> tuple[bool | None, str]:
    """Whether a gate lets a version pass, and a sentence about it; None without a gate."""
    said = f"recall@5 is {decimal(found.recall_at5):.2f} on {found.questions} questions"
    if gate is None:
        return None, said
    if decimal(found.recall_at5) >= decimal(gate.recall_at5):
        return True, f"{said}; {gate.recall_at5} was asked for"
    return False, f"{said}, below the {gate.recall_at5} that evaluation.gate.recallAt5 asks for"
