"""What outlives a killed attempt: the journal without torn lines, the newest whole checkpoint, the percentage of the job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmops_api.v1alpha1.meta import Compute
from llmops_api.v1alpha1.training_job import Precision, Scheduler, TrainingJobSpec
from llmops_services.evaluation.scores import Measured
from llmops_services.training.cluster import spread
from llmops_services.training.journal import JournalReader, JournalWriter
from llmops_services.training.progress import AFTER, BEFORE, LOADING, REGISTERING, TRAINING, Reporter, percent_of_job
from llmops_services.training.state import Finished, State


def test_a_line_that_a_kill_tore_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    JournalWriter(path).write(TRAINING, step=1, metrics={"loss": 2.5})
    with path.open("ab") as file:
        file.write(b'{"doing": "training", "st')
    reader = JournalReader(path)
    assert [entry.step for entry in reader.read()] == [1]
    JournalWriter(path).write(TRAINING, step=2)
    assert [entry.step for entry in reader.read()] == [2]
    assert list(reader.read()) == []


def test_a_journal_that_does_not_exist_yet_is_empty(tmp_path: Path) -> None:
    assert list(JournalReader(tmp_path / "journal.jsonl").read()) == []


def test_the_reporter_says_percent_and_whole_seconds(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Reporter(JournalWriter(path)).say(TRAINING, 5, 10, seconds_left=3.6, metrics={"loss": 1.5})
    Reporter(None).say(TRAINING, 6, 10)
    [entry] = JournalReader(path).read()
    assert (entry.percent, entry.seconds_left, entry.metrics) == (50, 4, {"loss": 1.5})


def test_the_percentage_never_goes_back() -> None:
    parts = (LOADING, BEFORE, TRAINING, AFTER, REGISTERING)
    seen = [percent_of_job(part, share) for part in parts for share in (0.0, 0.5, 1.0)]
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 100)


def test_the_newest_whole_checkpoint_is_taken_and_leftovers_go(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert state.latest_checkpoint() is None
    for name in ("step-5", "step-10", "step-100", "scratch", "step-110.new"):
        (state.checkpoints / name).mkdir(parents=True)
    (state.checkpoints / "checkpoint_manager_snapshot.json").write_text("{torn", "utf-8")
    latest = state.latest_checkpoint()
    assert latest is not None
    assert latest.name == "step-100"
    state.prune(keep=2)
    assert sorted(path.name for path in state.checkpoints.iterdir()) == ["step-10", "step-100"]


def test_what_was_measured_and_finished_is_kept(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert state.measured(BEFORE) is None
    assert state.finished() is None
    rows = {"domain": [Measured(0, 1.5, 3, "a", 0.5), Measured(1, 2.0, 4)]}
    state.keep_measured(BEFORE, rows)
    state.write("finished.json", Finished(steps=9, time=1).model_dump_json())
    assert State(tmp_path).measured(BEFORE) == rows
    assert State(tmp_path).finished() == Finished(steps=9, time=1)


def _spec(**hyperparameters: object) -> TrainingJobSpec:
    return TrainingJobSpec.model_validate(
        {
            "baseModel": {"uri": "hf://a/b"},
            "data": {"train": {"uri": "file:///t.jsonl"}, "maxLength": 77, "packing": True},
            "hyperparameters": hyperparameters,
            "checkpoint": {"everySteps": 9},
            "output": {"model": "m"},
        }
    )


def test_every_hyperparameter_reaches_the_trainer(tmp_path: Path) -> None:
    import torch

    from llmops_services.training.sft import sft_config

    config = sft_config(
        _spec(epochs=3, learningRate="3e-5", batchSize=7, gradientAccumulationSteps=2, warmupRatio="0.2",
              scheduler="Linear", weightDecay="0.1", seed=11, precision="FP32"), tmp_path
    )  # fmt: skip
    assert (config.num_train_epochs, config.max_steps, config.learning_rate) == (3, -1, 3e-5)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (7, 2)
    assert (config.get_warmup_steps(50), config.weight_decay, config.seed, config.data_seed) == (10, 0.1, 11, 11)
    assert (config.lr_scheduler_type, config.bf16, config.max_length, config.packing) == ("linear", False, 77, True)
    assert (config.save_steps, sft_config(_spec(maxSteps=5), tmp_path).max_steps) == (9, 5)
    assert sft_config(_spec(maxSteps=5, precision=Precision.BF16), tmp_path).bf16
    # What the kernel says of a CPU is held to what PyTorch has found out.
    assert sft_config(_spec(maxSteps=5), tmp_path).bf16 is torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert (
        sft_config(_spec(maxSteps=5, gradientAccumulationSteps=3), tmp_path, turns=4).gradient_accumulation_steps == 12
    )


@pytest.mark.parametrize(
    ("compute", "there", "on_gpu", "processes"),
    [
        ({}, 0, False, 1),
        ({}, 8, True, 1),
        ({"workers": 2}, 1, False, 2),
        ({"workers": 2}, 2, True, 2),
        ({"workers": 2, "gpus": {"count": 4}}, 8, True, 8),
        ({"workers": 2, "gpus": {"count": 4}}, 7, True, 2),
        ({"workers": 2, "gpus": {"count": 4}}, 0, False, 2),
        ({"gpus": {"count": 4}}, 1, True, 1),
    ],
)
def test_a_process_for_each_gpu_that_is_asked_for_or_else_for_each_worker(
    compute: dict[str, Any], there: int, on_gpu: bool, processes: int
) -> None:
    assert spread(Compute.model_validate(compute), there) == (on_gpu, processes)


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [(Scheduler.COSINE, "cosine"), (Scheduler.LINEAR, "linear"), (Scheduler.CONSTANT, "constant_with_warmup")],
)
def test_schedulers_by_their_names(tmp_path: Path, scheduler: Scheduler, name: str) -> None:
    from llmops_services.training.sft import sft_config

    assert sft_config(_spec(epochs=1, scheduler=scheduler), tmp_path).lr_scheduler_type == name


def test_lora_settings_reach_peft() -> None:
    from llmops_services.training.sft import lora_config

    spec = _spec(epochs=1).dump()
    given = spec | {"tuning": {"lora": {"rank": 4, "alpha": 9, "dropout": "0.05", "targetModules": ["q_proj"]}}}
    lora = lora_config(TrainingJobSpec.model_validate(given))
    assert lora is not None
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (4, 9, 0.05, {"q_proj"})
    assert lora_config(TrainingJobSpec.model_validate(spec | {"tuning": {"full": {}}})) is None
