"""The trainer as it is run: real Ray, real TRL and PEFT, a real MLflow server, a tiny model. Killed, cut off, refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow_server import MlflowServer
from waiting import wait_until

from llmops_api.lineage import DatasetContext, ModelType, Tag
from llmops_api.programs import ExitCode, TrainingConfig
from llmops_services.program import TryAgain, UserError
from llmops_services.training.job import check_data
from llmops_services.training.state import Finished, State
from llmops_services.training.tracking import Tracker
from llmops_services.uris import local_path

pytestmark = pytest.mark.timeout(280)

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")


@dataclass
class Job:
    """A TrainingJob's folder, and the program run in it."""

    folder: Path
    mlflow: str
    spec: dict[str, Any]
    uid: str
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> State:
        return State(self.folder / "state")

    @property
    def config(self) -> TrainingConfig:
        name = self.folder.name
        return TrainingConfig.model_validate(
            {
                "object": {"kind": "TrainingJob", "namespace": "tests", "name": name, "uid": self.uid},
                "spec": self.spec,
                "manifest": f"kind: TrainingJob\nmetadata: {{name: {name}}}\n",
            }
        )

    def start(self) -> subprocess.Popen[bytes]:
        config = self.folder / "training.json"
        config.write_text(json.dumps(self.config.dump()), "utf-8")
        (self.folder / "result.json").unlink(missing_ok=True)
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": self.mlflow,
            "LLMOPS_STATE_DIR": str(self.folder / "state"),
            "LLMOPS_RESULT_FILE": str(self.folder / "result.json"),
            "LLMOPS_PROGRESS_FILE": str(self.folder / "progress.json"),
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
            "PYTHONWARNINGS": "ignore",
        }
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "llmops_services.training", str(config)],
                cwd=self.folder, env=environment | self.extra, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def end(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Wait for the end; its exit code and result."""
        try:
            code = process.wait(200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert (self.folder / "result.json").exists(), self.log()
        return {"code": code, **json.loads((self.folder / "result.json").read_text("utf-8"))}

    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8")[-6000:]

    def progress(self) -> dict[str, Any]:
        path = self.folder / "progress.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _lines(count: int, seed: int) -> str:
    chosen = random.Random(seed).choices(WORDS, k=count)
    return "".join(
        json.dumps({"messages": [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": f"It is {word}."}]})
        + "\n"
        for word in chosen
    )  # fmt: skip


@pytest.fixture
def job(tmp_path: Path, mlflow_server: MlflowServer, tiny_chat_model: Path, request: pytest.FixtureRequest) -> Job:
    """A LoRA training of 20 steps with evaluation and gate; tests change its spec before they start it."""
    folder = tmp_path / request.node.name.removeprefix("test_").replace("_", "-")[:40]
    folder.mkdir()
    for name, count, seed in (("train", 64, 1), ("domain", 12, 2), ("general", 6, 3)):
        (folder / f"{name}.jsonl").write_text(_lines(count, seed), "utf-8")
    spec: dict[str, Any] = {
        "baseModel": {"uri": f"file://{tiny_chat_model}"},
        "data": {"train": {"uri": f"file://{folder}/train.jsonl"}, "maxLength": 64},
        "tuning": {"lora": {"rank": 4, "alpha": 8}},
        "hyperparameters": {"maxSteps": 20, "learningRate": "1e-2", "batchSize": 4, "warmupRatio": "0.1"},
        "checkpoint": {"everySteps": 5, "keep": 1},
        "evaluation": {
            "domain": {"uri": f"file://{folder}/domain.jsonl"},
            "general": {"uri": f"file://{folder}/general.jsonl"},
            "gate": {"minImprovement": "0.2"},
        },
        "output": {"model": folder.name},
    }
    return Job(folder, mlflow_server.url, spec, f"uid-{os.getpid()}-{folder.name}")


@pytest.fixture
def client(mlflow_server: MlflowServer) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(mlflow_server.url, mlflow_server.url)


def _the_run(client: Any, job: Job) -> Any:
    """The one run of the job; more or fewer are an error."""
    experiment = client.get_experiment_by_name("llmops/tests")
    [run] = client.search_runs([experiment.experiment_id], f"tags.`{Tag.UID}` = '{job.uid}'")
    return client.get_run(run.info.run_id)  # a search leaves the models out


def test_a_lora_training_ends_registered(
    job: Job, client: Any, tmp_path: Path, tiny_chat_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = job.end(job.start())
    assert result["code"] == ExitCode.DONE, job.log()
    assert (result["steps"], result["model"]) == (
        20,
        {"name": job.folder.name, "version": "1", "alias": "champion", "adapter": True},
    )
    evaluation = result["evaluation"]
    assert evaluation["gatePassed"]
    assert float(evaluation["after"]["domain"]["loss"]) < float(evaluation["before"]["domain"]["loss"]) - 0.2
    assert job.progress() | {"loss": None} == {
        "doing": "registering", "step": 20, "total": 20, "percent": 100, "secondsLeft": 0, "loss": None,
    }  # fmt: skip

    run = _the_run(client, job)
    assert (run.info.run_id, run.info.status) == (result["runId"], "FINISHED")
    assert run.data.params["hyperparameters.learningRate"] == "1e-2"
    assert run.data.tags["mlflow.source.name"] == f"TrainingJob/tests/{job.folder.name}"
    history = {
        key: client.get_metric_history(result["runId"], key) for key in ("loss", "learning_rate", "tokens_per_second")
    }
    assert all([point.step for point in points] == list(range(1, 21)) for points in history.values())
    assert history["loss"][-1].value < history["loss"][0].value
    assert {item.tags[0].value: item.dataset.name for item in run.inputs.dataset_inputs} == {
        DatasetContext.TRAINING: "train",
        DatasetContext.DOMAIN_EVALUATION: "domain",
        DatasetContext.GENERAL_EVALUATION: "general",
    }
    [base] = [client.get_logged_model(item.model_id) for item in run.inputs.model_inputs]
    [adapter] = [client.get_logged_model(item.model_id) for item in run.outputs.model_outputs]
    assert (base.model_type, adapter.model_type, str(adapter.status)) == (ModelType.BASE, ModelType.ADAPTER, "READY")
    assert base.tags[Tag.URI] == job.spec["baseModel"]["uri"]
    scored = {metric.key: metric for metric in adapter.metrics}
    assert scored["domain/loss/after"].value == pytest.approx(float(evaluation["after"]["domain"]["loss"]))
    assert scored["domain/loss/after"].dataset_name == "domain"
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"manifest.yaml", "samples.txt", "samples.html", "evaluation"} <= artifacts
    assert "⟦It is " in job.state.samples[0].read_text("utf-8")
    version = client.get_model_version_by_alias(job.folder.name, "champion")
    assert (version.version, version.source, version.run_id) == ("1", f"models:/{adapter.model_id}", run.info.run_id)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", job.mlflow)
    monkeypatch.setenv("LLMOPS_CACHE_DIR", str(tmp_path / "cache"))
    downloaded = local_path(f"mlflow://{job.folder.name}@champion")
    assert local_path(f"mlflow://{job.folder.name}/1") == downloaded
    with pytest.raises(UserError, match="no such version or alias"):
        local_path(f"mlflow://{job.folder.name}/7")
    _check_adapter(downloaded, tiny_chat_model)


def _check_adapter(folder: Path, base: Path) -> None:
    """The downloaded adapter loads, changes what the base says, and its tokenizer renders as the base's own."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Say beta"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == AutoTokenizer.from_pretrained(base).apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = plain(ids).logits
        after = PeftModel.from_pretrained(plain, folder)(ids).logits
    assert (before - after).abs().max() > 0.1


def test_killed_and_cut_off_from_mlflow_it_ends_the_same(job: Job, client: Any, mlflow_server: MlflowServer) -> None:
    job.spec["hyperparameters"]["maxSteps"] = 60
    job.spec["evaluation"]["gate"]["minImprovement"] = "99"
    first = job.start()
    wait_until(
        lambda: (job.state.latest_checkpoint() or Path("step-0")).name not in ("step-0", "step-5"), "two checkpoints"
    )
    processes = psutil.Process(first.pid).children(recursive=True)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(10)
    assert job.state.finished() is None
    wait_until(lambda: not any(_lives(process) for process in processes), "Ray and its workers to go", seconds=60)
    reached = int((job.state.latest_checkpoint() or Path("step-0")).name.removeprefix("step-"))
    assert 5 < reached < 60

    mlflow_server.pause()
    second = job.start()
    try:
        wait_until(lambda: job.state.finished() is not None, "the training to end without MLflow", seconds=150)
    finally:
        mlflow_server.resume()
    result = job.end(second)
    assert result["code"] == ExitCode.DONE, job.log()
    assert f"going on from {job.state.checkpoints}/step-{reached}" in (job.folder / "log").read_text("utf-8")
    assert (result["steps"], result["model"].get("alias")) == (60, None)
    assert "short of the 99" in result["evaluation"]["gateMessage"]
    run = _the_run(client, job)
    assert sorted(point.step for point in client.get_metric_history(run.info.run_id, "loss")) == list(range(1, 61))
    assert len(client.search_model_versions(f"name = '{job.folder.name}'")) == 1
    assert client.get_registered_model(job.folder.name).aliases == {}
    assert [path.name for path in sorted(job.state.checkpoints.glob("step-*"))] == ["step-60"]

    again = job.end(job.start())  # as if the control plane had been killed before it read the result
    assert again == result
    assert len(client.search_model_versions(f"name = '{job.folder.name}'")) == 1


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_answer_that_begins_after_maxlength_is_the_users_mistake(job: Job, client: Any) -> None:
    job.spec["data"]["maxLength"] = 16
    result = job.end(job.start())
    assert result["code"] == ExitCode.USER_ERROR, job.log()
    assert result["reason"] == "NothingToLearn"
    assert "raise data.maxLength" in result["message"]
    assert _the_run(client, job).info.status == "FAILED"


def test_a_data_error_ends_the_program_before_anything_starts(job: Job) -> None:
    path = job.folder / "train.jsonl"
    path.write_text(_lines(16, 1) + "{oops\n", "utf-8")
    started = time.monotonic()
    result = job.end(job.start())
    assert (result["code"], result["reason"]) == (ExitCode.USER_ERROR, "DataInvalid")
    assert result["message"].startswith(f"{path}, line 17: not JSON")
    assert time.monotonic() - started < 30
    assert not job.state.journal.exists()


def test_a_finished_training_waits_for_mlflow_and_is_kept(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    state = job.state
    state.folder.mkdir()
    state.write("finished.json", Finished(steps=1, time=1).model_dump_json())
    tracker = Tracker(job.config, state, check_data(job.config))
    tracker.start()
    with pytest.raises(TryAgain, match="the training is kept"):
        tracker.finish(patience=1)
    assert state.finished() is not None
