"""Ways to train beside LoRA in one worker: two workers, packed data, all weights, prompts with completions. And MLflow away for 30 s."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from training_job import Job, lines, the_run
from waiting import wait_until

from llmops_api.lineage import ModelType
from llmops_api.programs import ExitCode
from llmops_services.uris import local_path

pytestmark = pytest.mark.timeout(280)

ALIKE = ("eta", "theta", "22", "37", "46", "91")
"""Words that make examples of the same length for the tiny model."""

ONE_PROCESS = """
import json, sys
from pathlib import Path
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer
from llmops_api.programs import TrainingConfig
from llmops_services.chat_template import chat_templates
from llmops_services.training.data import read_examples
from llmops_services.training.sft import lora_config, sft_config
from llmops_services.training.tokens import tokenize
from llmops_services.uris import local_path

spec = TrainingConfig.model_validate_json(Path(sys.argv[1]).read_text()).spec
folder = local_path(spec.base_model.uri)
tokenizer = AutoTokenizer.from_pretrained(folder)
examples = read_examples(local_path(spec.data.train.uri), spec.data.format)
rows = tokenize(tokenizer, chat_templates(tokenizer), examples, spec.data.max_length)
losses = []

class Listener(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            losses.append(logs["loss"])

SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    args=sft_config(spec, Path(sys.argv[2])),
    train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]),
    processing_class=tokenizer, peft_config=lora_config(spec), callbacks=[Listener()],
).train()
Path(sys.argv[3]).write_text(json.dumps({"losses": losses, "lengths": sorted({len(row.input_ids) for row in rows})}))
"""


def one_process(job: Job) -> dict[str, Any]:
    """What TRL alone makes of a job's spec, without Ray: the loss of each step, and the lengths of the examples."""
    config, result = job.folder / "one.json", job.folder / "one-result.json"
    config.write_text(json.dumps(job.config.dump()), "utf-8")
    subprocess.run(
        [sys.executable, "-c", ONE_PROCESS, str(config), str(job.folder / "one"), str(result)],
        check=True, timeout=200, env=os.environ | {"PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}, cwd=job.folder,
    )  # fmt: skip
    told: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return told


def test_two_workers_with_packed_data_and_none_of_their_gpus_learn_what_one_process_learns_on_the_whole_batch(
    job: Job, mlflow_client: Any
) -> None:
    """Every step sees all the data, so that its order, its packing and its shares must make no difference."""
    (job.folder / "train.jsonl").write_text(lines(64, 1, ALIKE), "utf-8")
    job.spec["hyperparameters"] |= {"maxSteps": 8, "precision": "FP32", "batchSize": 64}
    alone = one_process(job)
    [length] = alone["lengths"]

    job.spec["compute"] = {"workers": 2, "gpus": {"count": 2}}
    job.spec["data"] |= {"packing": True, "maxLength": 2 * length + 1}  # two examples in a row of the batch
    job.spec["hyperparameters"]["batchSize"] = (
        8  # x 2 workers x 2 GPUs, whose shares a worker takes one after the other
    )
    result = job.end(job.start())
    assert result["code"] == ExitCode.DONE, job.log()
    assert "world_rank=1" in (job.folder / "log").read_text("utf-8")
    run = the_run(mlflow_client, job)
    history = mlflow_client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == list(range(1, 9))
    assert alone["losses"][-1] < alone["losses"][0] - 0.5, "or any two trainings would look alike"
    assert [point.value for point in history] == pytest.approx(alone["losses"], rel=2e-3)
    assert result["evaluation"]["before"]["domain"]["examples"] == 12
    assert [path.name for path in job.state.checkpoints.glob("step-*")] == ["step-8"]
    assert len(list(job.state.checkpoints.glob("step-8/rng_state_*.pth"))) == 2, "each worker left its part"


def test_all_weights_learn_prompts_and_completions_while_mlflow_is_away_for_half_a_minute(
    job: Job, mlflow_client: Any, mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "domain", "general"):
        path = job.folder / f"{name}.jsonl"
        asked = [json.loads(line)["messages"] for line in path.read_text("utf-8").splitlines()]
        pairs = [{"prompt": question["content"], "completion": answer["content"]} for question, answer in asked]
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    job.spec["data"] |= {"format": "PromptCompletion", "systemPrompt": "Answer in one sentence."}
    job.spec["tuning"] = {"full": {}}
    job.spec["hyperparameters"] |= {"maxSteps": 30, "learningRate": "1e-3"}
    process = job.start()
    wait_until(lambda: job.progress().get("doing") == "evaluating before", "the evaluation")
    mlflow_server.pause()
    back = threading.Timer(30, mlflow_server.resume)
    back.start()
    began = time.monotonic()
    try:
        result = job.end(process)
    finally:
        back.join()
    assert result["code"] == ExitCode.DONE, job.log()
    assert time.monotonic() - began > 30, "it waited for MLflow"
    assert (result["steps"], result["model"]["adapter"], result["model"]["alias"]) == (30, False, "champion")

    run = the_run(mlflow_client, job)
    history = mlflow_client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == list(range(1, 31))
    [made] = [mlflow_client.get_logged_model(item.model_id) for item in run.outputs.model_outputs]
    assert made.model_type == ModelType.FULL
    assert len(mlflow_client.search_model_versions(f"name = '{job.folder.name}'")) == 1
    assert "Answer in one sentence." in job.state.samples[0].read_text("utf-8")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", job.mlflow)
    monkeypatch.setenv("LLMOPS_CACHE_DIR", str(tmp_path / "cache"))
    folder = local_path(f"mlflow://{job.folder.name}@champion")
    assert not (folder / "adapter_config.json").exists()
    assert _loss(folder) < _loss(local_path(job.spec["baseModel"]["uri"])) - 1


def _loss(folder: Path) -> float:
    """Of the whole text of what was taught, with the model of a folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([tokenizer("It is gamma.<|im_end|>")["input_ids"]])
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)
