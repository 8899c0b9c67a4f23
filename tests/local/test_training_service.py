"""The trainer as it is run: real Ray, real TRL and PEFT, a real MLflow server, a tiny model. Killed, cut off, refused."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow_server import MlflowServer
from training_job import Job, lines, the_run
from waiting import wait_until

from llmops_api.lineage import DatasetContext, ModelType, Tag
from llmops_api.programs import ExitCode
from llmops_services.program import TryAgain, UserError
from llmops_services.training.job import check_data
from llmops_services.training.state import Finished
from llmops_services.training.tracking import Tracker
from llmops_services.uris import local_path

pytestmark = pytest.mark.timeout(280)


def test_a_lora_training_ends_registered(
    job: Job, mlflow_client: Any, tmp_path: Path, tiny_chat_model: Path, monkeypatch: pytest.MonkeyPatch
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

    run = the_run(mlflow_client, job)
    assert (run.info.run_id, run.info.status) == (result["runId"], "FINISHED")
    assert run.data.params["hyperparameters.learningRate"] == "1e-2"
    assert run.data.tags["mlflow.source.name"] == f"TrainingJob/tests/{job.folder.name}"
    history = {
        key: mlflow_client.get_metric_history(result["runId"], key)
        for key in ("loss", "learning_rate", "tokens_per_second")
    }
    assert all([point.step for point in points] == list(range(1, 21)) for points in history.values())
    assert history["loss"][-1].value < history["loss"][0].value
    assert {item.tags[0].value: item.dataset.name for item in run.inputs.dataset_inputs} == {
        DatasetContext.TRAINING: "train",
        DatasetContext.DOMAIN_EVALUATION: "domain",
        DatasetContext.GENERAL_EVALUATION: "general",
    }
    [base] = [mlflow_client.get_logged_model(item.model_id) for item in run.inputs.model_inputs]
    [adapter] = [mlflow_client.get_logged_model(item.model_id) for item in run.outputs.model_outputs]
    assert (base.model_type, adapter.model_type, str(adapter.status)) == (ModelType.BASE, ModelType.ADAPTER, "READY")
    assert base.tags[Tag.URI] == job.spec["baseModel"]["uri"]
    scored = {metric.key: metric for metric in adapter.metrics}
    assert scored["domain/loss/after"].value == pytest.approx(float(evaluation["after"]["domain"]["loss"]))
    assert scored["domain/loss/after"].dataset_name == "domain"
    artifacts = _artifacts(mlflow_client, run.info.run_id)
    assert {"manifest.yaml", "samples.txt", "samples.html", "evaluation"} <= artifacts
    assert "⟦It is " in job.state.samples[0].read_text("utf-8")
    version = mlflow_client.get_model_version_by_alias(job.folder.name, "champion")
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


def test_killed_and_cut_off_from_mlflow_it_ends_the_same(
    job: Job, mlflow_client: Any, mlflow_server: MlflowServer
) -> None:
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
    run = the_run(mlflow_client, job)
    assert sorted(point.step for point in mlflow_client.get_metric_history(run.info.run_id, "loss")) == list(
        range(1, 61)
    )
    assert len(mlflow_client.search_model_versions(f"name = '{job.folder.name}'")) == 1
    assert mlflow_client.get_registered_model(job.folder.name).aliases == {}
    assert [path.name for path in sorted(job.state.checkpoints.glob("step-*"))] == ["step-60"]

    again = job.end(job.start())  # as if the control plane had been killed before it read the result
    assert again == result
    assert len(mlflow_client.search_model_versions(f"name = '{job.folder.name}'")) == 1


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_answer_that_begins_after_maxlength_is_the_users_mistake_and_shown(job: Job, mlflow_client: Any) -> None:
    job.spec["data"]["maxLength"] = 16
    result = job.end(job.start())
    assert result["code"] == ExitCode.USER_ERROR, job.log()
    assert result["reason"] == "NothingToLearn"
    assert "raise data.maxLength" in result["message"]
    assert the_run(mlflow_client, job).info.status == "FAILED"
    assert "samples.txt of its MLflow run" in result["message"]
    assert "samples.txt" in _artifacts(mlflow_client, the_run(mlflow_client, job).info.run_id)


def test_samples_are_in_mlflow_before_anything_is_learned(
    job: Job, mlflow_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", job.mlflow)
    job.state.folder.mkdir()
    (job.folder / "downloaded").mkdir()
    tracker = Tracker(job.config, job.state, check_data(job.config))
    tracker.start()
    for number, sample in enumerate(job.state.samples):
        job.state.write(sample.name, f"sample {number}")
    expected = {sample.name for sample in job.state.samples}
    wait_until(lambda: tracker.run_id and expected <= _artifacts(mlflow_client, tracker.run_id), "the samples")
    job.state.write("samples.txt", "other data")
    tracker.finish()
    path = mlflow_client.download_artifacts(tracker.run_id, "samples.txt", str(job.folder / "downloaded"))
    assert Path(path).read_text("utf-8") == "other data"


def _artifacts(client: Any, run_id: str) -> set[str]:
    return {item.path for item in client.list_artifacts(run_id)}


def test_a_data_error_ends_the_program_before_anything_starts(job: Job) -> None:
    path = job.folder / "train.jsonl"
    path.write_text(lines(16, 1) + "{oops\n", "utf-8")
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
