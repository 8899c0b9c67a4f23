"""What somebody reads in `llmops describe` whose input is wrong: what is wrong, where, and what to write instead.

What is wrong with manifests and with the lines of data files is said before that, by `llmops validate`: test_cli_validate.py.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_cases import INDEX, JOB
from disks import filled, small_disk
from waiting import wait_until

from llmops_api.programs import Env, ExitCode, IndexingResult
from llmops_api.v1alpha1 import EmbeddingIndex, RagService, TrainingJob
from llmops_api.v1alpha1.embedding_index import IndexSource
from llmops_api.v1alpha1.training_job import DataFormat
from llmops_operator.cli.app import execute
from llmops_operator.cli.describe import describe
from llmops_operator.domain import embedding_index, rag_service, training_job
from llmops_operator.domain.decision import Decision
from llmops_operator.domain.embedding_index import IndexInput
from llmops_operator.domain.rag_service import ServiceInput
from llmops_operator.domain.serving import IndexView, JobView
from llmops_operator.domain.training_job import TrainingInput
from llmops_operator.domain.workload import State, WorkloadStatus
from llmops_services.gateway.server import serve
from llmops_services.indexing.documents import Rejects, list_files, read_documents
from llmops_services.program import TryAgain, UserError
from llmops_services.training.data import read_examples
from llmops_services.uris import local_path

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
BEGUN = [{"number": 1, "startTime": "2026-11-23T11:59:00Z"}]
PUSHED = f"artifact://{'0' * 64}/data.jsonl"
EXAMPLE = '{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}\n'


def manifest(kind: str, spec: dict[str, Any], **status: Any) -> dict[str, Any]:
    metadata = {"name": "x", "namespace": "default", "uid": "u", "generation": 1}
    return {"kind": kind, "metadata": metadata, "spec": spec, "status": status}


def shown(written: dict[str, Any], decision: Decision[Any]) -> str:
    return describe({**written, "status": decision.status.dump()}, (), ())


REFERENCES: dict[str, tuple[JobView | None, IndexView | None, str]] = {
    "a job that does not exist": (None, IndexView(),
        'there is no TrainingJob "tuned" in namespace "default": create it, or name another one in spec.model.adapter.trainingJobRef'),
    "a job that is being deleted": (JobView(deleting=True), IndexView(),
        'TrainingJob "tuned" is being deleted: name another one, or its version in spec.model.adapter.model'),
    "an index that does not exist": (JobView(), None,
        'there is no EmbeddingIndex "docs" in namespace "default": create it, or remove it from spec.indexes'),
    "an index that is being deleted": (JobView(), IndexView(deleting=True),
        'EmbeddingIndex "docs" is being deleted: name another one in spec.indexes'),
}  # fmt: skip


@pytest.mark.parametrize(("job", "index", "sentence"), REFERENCES.values(), ids=REFERENCES)
def test_a_reference_that_leads_nowhere(job: JobView | None, index: IndexView | None, sentence: str) -> None:
    model = {"base": {"uri": "pkg://llm/base.gguf"}, "adapter": {"trainingJobRef": {"name": "tuned"}}}
    written = manifest("RagService", {"model": model, "indexes": [{"indexRef": {"name": "docs"}}]})
    service, references = RagService.model_validate(written), {"job": job, "indexes": {"docs": index}}
    first = rag_service.decide(ServiceInput(service, NOW, **references))
    service = service.model_copy(update={"status": first.status})
    later = rag_service.decide(ServiceInput(service, NOW + timedelta(seconds=10), **references))
    (ready,) = [line for line in shown(written, later).splitlines() if line.split()[:1] == ["Ready"]]
    assert sentence in ready
    assert any(sentence in one.message and one.type_ == "Warning" for one in (*first.events, *later.events))


def example(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    read_examples(path, DataFormat.MESSAGES)


def sources(path: Path) -> None:
    list_files([IndexSource(name="docs", uri=f"file://{path}")])


PROGRAMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "line 17 is not JSON": (lambda path: example(path, (EXAMPLE * 16 + "{oops}").encode()),
        "PATH, line 17: not JSON (Expecting property name enclosed in double quotes, column 2); write one whole JSON object a line"),
    "a message without a role": (lambda path: example(path, b'{"messages": [{"content": "Q"}]}'),
        'PATH, line 1: message 1: no "role"; write one of system, user, assistant'),
    "data that is not UTF-8": (lambda path: example(path, EXAMPLE.encode() + b"\xff"),
        "PATH, line 2: not UTF-8 (byte 1 of the line); save the file as UTF-8"),
    "an empty file": (lambda path: example(path, b"\n"),
        'PATH has no example: write one JSON object a line, {"messages": [{"role": "user", "content": "…"}, '
        '{"role": "assistant", "content": "…"}]}'),
    "a missing file": (lambda path: local_path(f"file://{path}"),
        "file://PATH: there is no PATH; correct the path, or put the file there"),
    "a missing folder": (sources, "source docs: file://PATH: there is no PATH; correct the path, or put the file there"),
    "a port in use": (serve,
        "cannot listen on 127.0.0.1:PORT (Address already in use): stop what listens there, or set LLMOPS_HOST and LLMOPS_PORT"),
    "MLflow away": (lambda _: local_path(PUSHED),
        "MLflow at http://127.0.0.1:9 does not answer (ConnectError): see whether it runs and what its log says, or correct "
        f"MLFLOW_TRACKING_URI; {PUSHED} is fetched when it does"),
}  # fmt: skip


@pytest.mark.parametrize(("program", "sentence"), PROGRAMS.values(), ids=PROGRAMS)
def test_what_a_program_ends_with(
    program: Callable[[Path], Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(Env.MLFLOW_TRACKING_URI, "http://127.0.0.1:9")
    path = tmp_path / "data.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv(Env.PORT, port)
        with pytest.raises((UserError, TryAgain)) as caught:
            program(path)
    code = ExitCode.USER_ERROR if isinstance(caught.value, UserError) else ExitCode.TRY_AGAIN
    ended = WorkloadStatus(State.FAILED, caught.value.reason, str(caught.value), code)

    written = manifest("TrainingJob", JOB, attempts=BEGUN)
    job = TrainingInput(TrainingJob.model_validate(written), NOW, workloads={"x-train-1": ended})
    text = shown(written, training_job.decide(job))
    for section in ("Conditions:\n", "Attempts:\n"):
        assert sentence.replace("PATH", str(path)).replace("PORT", port, 1) in text.partition(section)[2]


def test_documents_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("fine")
    (tmp_path / "b.md").write_bytes(b"one\ntwo \xff")
    (tmp_path / "c.md").touch()
    rejects = Rejects()
    list(read_documents(list_files([IndexSource(name="docs", uri=f"file://{tmp_path}")]), rejects))
    result = IndexingResult(alias="default.x", rejected=tuple(rejects.first), rejected_count=rejects.count)
    begun = [{"type": "Synced", "observedGeneration": 1}]
    written = manifest("EmbeddingIndex", INDEX, attempts=BEGUN, conditions=begun)
    ended = WorkloadStatus(State.SUCCEEDED, result=result.dump(), exit_code=0)
    index = IndexInput(EmbeddingIndex.model_validate(written), NOW, workloads={"x-sync-1": ended})
    text = " ".join(shown(written, embedding_index.decide(index)).split())
    assert "2 documents were rejected, see status.rejected" in text
    assert "path: docs/b.md reason: is not UTF-8 (line 2: byte 0xff); save it as UTF-8, or exclude it" in text
    assert "path: docs/c.md reason: is empty; write something into it, or exclude it" in text


def test_a_full_disk_under_the_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, file = tmp_path / "home", tmp_path / "handbook.md"
    text = (
        "apiVersion: llmops.dev/v1alpha1\nkind: EmbeddingIndex\nmetadata: {name: handbook}\n"
        f"spec:\n  sources: [{{name: docs, uri: 'file://{file}'}}]\n  embedding: {{model: {{uri: hf://organisation/embedder}}}}\n"
    )
    file.write_text(text)
    with small_disk(home, 1):
        apply = ["apply", "--home", str(home), "-f", str(file)]
        assert execute(apply) == 0
        file.write_text(text + "  retainVersions: 3\n")
        with filled(home):
            wait_until(lambda: shutil.disk_usage(home).free == 0, "the disk to be full")
            assert execute(apply) == 1
        said = f"error: {home}/objects.db: no space left on the disk, nothing was stored; free some and try again\n"
        assert capsys.readouterr().err.endswith(said)
        assert execute(apply) == 0
        assert "handbook configured" in capsys.readouterr().out
