"""Tokens per second through the TrainingJob program against the same TRL trainer in a bare script, in one run.

usage: python bench/training.py [--steps 10] [--model URI] [--batch-size ROWS]      (8 minutes on 2 cores)

Both do the quickstart's training, on the same rows with the same settings; the first steps, which warm caches up, are left out of both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import yaml

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"
WARM_UP = 3

BARE = """
import json, sys, time
sys.path.insert(0, {src!r})
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer
from llmops_api.programs import TrainingConfig
from llmops_services.chat_template import chat_templates
from llmops_services.training.data import read_examples
from llmops_services.training.sft import in_bf16, lora_config, sft_config
from llmops_services.training.tokens import tokenize
from llmops_services.uris import local_path
from pathlib import Path

spec = TrainingConfig.model_validate_json(Path({config!r}).read_text()).spec
torch.set_num_threads({threads})
folder = local_path(spec.base_model.uri)
tokenizer = AutoTokenizer.from_pretrained(folder)
data = spec.data
rows = tokenize(tokenizer, chat_templates(tokenizer), read_examples(local_path(data.train.uri), data.format, data.system_prompt), data.max_length)
times = []

class Clock(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            times.append((time.monotonic(), logs["num_tokens"]))

trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if in_bf16(spec.hyperparameters.precision) else torch.float32),
    args=sft_config(spec, Path({output!r})),
    train_dataset=Dataset.from_list([{{"input_ids": row.input_ids, "labels": row.labels}} for row in rows]),
    processing_class=tokenizer, peft_config=lora_config(spec), callbacks=[Clock()],
)
trainer.train()
speeds = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(times, times[1:])]
Path({result!r}).write_text(json.dumps(speeds))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--model", help="another base model than the quickstart's")
    parser.add_argument("--batch-size", type=int, help="another one than the quickstart's, which fills no GPU")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-training-") as name:
        folder = Path(name)
        config = write_config(folder, chosen.model, chosen.steps, chosen.batch_size)
        # in turn, so that a machine that gets busier meanwhile is no advantage to either
        measured: dict[str, list[float]] = {"bare TRL script": [], "TrainingJob": []}
        for turn in range(2):
            measured["bare TRL script"] += run_bare(folder / f"bare-{turn}", config)
            measured["TrainingJob"] += run_program(folder / f"job-{turn}", config)
    bare, job = (median(values) for values in measured.values())
    print(f"\n{chosen.steps} steps of the quickstart twice, {os.cpu_count()} cores: median over the steps\n")
    print("| | tokens/s | of the bare script |\n| --- | --- | --- |")
    print(f"| bare TRL script | {bare:.0f} | 1.00 |\n| TrainingJob | {job:.0f} | {job / bare:.2f} |")


def write_config(folder: Path, model: str | None, steps: int, batch_size: int | None) -> Path:
    """The quickstart's training without its evaluation."""
    manifest = yaml.safe_load(
        (QUICKSTART / "training-job.yaml").read_text("utf-8").replace("file://.", f"file://{QUICKSTART}")
    )
    spec = manifest["spec"]
    del spec["evaluation"]
    spec["hyperparameters"]["maxSteps"] = steps
    spec["checkpoint"]["everySteps"] = 1000
    if batch_size:
        spec["hyperparameters"]["batchSize"] = batch_size
    if model:
        spec["baseModel"] = {"uri": model}
    bench = {"kind": "TrainingJob", "namespace": "bench", "name": "bench", "uid": f"bench-{time.time_ns()}"}
    path = folder / "training.json"
    path.write_text(json.dumps({"object": bench, "spec": spec}), "utf-8")
    return path


def run_bare(folder: Path, config: Path) -> list[float]:
    """Tokens per second of each steady step of the bare script."""
    folder.mkdir()
    script = BARE.format(
        src=str(Path(__file__).parent), config=str(config), threads=os.cpu_count() or 1,
        output=str(folder / "out"), result=str(folder / "speeds.json"),
    )  # fmt: skip
    subprocess.run([sys.executable, "-c", script], check=True, timeout=900, cwd=folder, env=_environment(folder))
    speeds: list[float] = json.loads((folder / "speeds.json").read_text("utf-8"))
    return speeds[WARM_UP - 1 :]


def run_program(folder: Path, config: Path) -> list[float]:
    """Tokens per second of each steady step of the program, from its journal."""
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-m", "llmops_services.training", str(config)],
        check=True,
        timeout=900,
        cwd=folder,
        env=_environment(folder),
    )
    entries = [
        json.loads(line) for line in (folder / "state" / "journal.jsonl").read_text("utf-8").splitlines() if line
    ]
    speeds = [entry["metrics"]["tokens_per_second"] for entry in entries if entry.get("metrics")]
    return speeds[WARM_UP:]


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "LLMOPS_STATE_DIR": str(folder / "state"),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


if __name__ == "__main__":
    main()
