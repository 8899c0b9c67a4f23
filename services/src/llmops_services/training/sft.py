"""Supervised fine-tuning with TRL: the trainer, its checkpoints through Ray Train, and what it says while it runs."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
import trl.trainer.utils
from datasets import Dataset  # type: ignore[import-untyped]
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl.kernels.chunked_logprob import _use_triton
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from llmops_api.reasons import FailureReason
from llmops_api.v1alpha1.training_job import Precision, Scheduler, TrainingJobSpec
from llmops_services.number_formats import cpu_has_bf16
from llmops_services.program import UserError
from llmops_services.training.progress import TRAINING, Reporter
from llmops_services.training.state import State

log = logging.getLogger(__name__)


METRICS = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy", "entropy", "epoch")
"""What is taken over from the trainer's log; TRL says what the latter ones are."""


def train(
    spec: TrainingJobSpec,
    state: State,
    reporter: Reporter,
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, list[int]]],
) -> tuple[Any, int]:
    """Train `model` on tokenized rows, from the latest checkpoint if there is one. The trained model and its number of steps."""
    score_labels_only()
    scratch = state.checkpoints / "scratch"  # on the same file system, so that a checkpoint can be moved in one step
    trainer = _Trainer(
        model=model,
        args=sft_config(spec, scratch, turns=spec.compute.shares // ray.train.get_context().get_world_size()),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(spec),
        callbacks=[_Follower(state, reporter)],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = state.latest_checkpoint()
    if checkpoint:
        log.info("going on from %s", checkpoint)
    reached = json.loads((checkpoint / "trainer_state.json").read_text("utf-8")) if checkpoint else {}
    if checkpoint and reached["global_step"] >= reached["max_steps"]:
        trainer._load_from_checkpoint(str(checkpoint))  # train() would do a step too many
        return _bare(trainer), int(reached["global_step"])
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _bare(trainer), trainer.state.global_step


def score_labels_only() -> None:
    """Have TRL project only what has a label onto the vocabulary on a CPU, too, as it does on a GPU.

    Elsewhere it projects every position, prompts and padding too, for devices that compile anew for each shape. The loss and its
    gradients are the same; a step of the quickstart takes 0.6 of the time.
    """
    trl.trainer.utils._use_triton = lambda device: device.type == "cpu" or _use_triton(device)  # type: ignore[attr-defined]


def _bare(trainer: SFTTrainer) -> Any:
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def sft_config(spec: TrainingJobSpec, output: Path, *, turns: int = 1) -> SFTConfig:
    """The spec in TRL's words, for a process that takes the shares of so many GPUs one after the other. What the spec does not
    name keeps TRL's default, but for the log, which is every step's.
    """
    chosen, on_cpu = spec.hyperparameters, not torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(output),
        max_length=spec.data.max_length,
        packing=spec.data.packing,
        num_train_epochs=chosen.epochs or 1,
        max_steps=chosen.max_steps or -1,
        learning_rate=float(chosen.learning_rate),
        per_device_train_batch_size=chosen.batch_size,
        gradient_accumulation_steps=chosen.gradient_accumulation_steps * turns,
        warmup_steps=float(chosen.warmup_ratio),  # below 1 it is a share
        lr_scheduler_type={
            Scheduler.COSINE: "cosine",
            Scheduler.LINEAR: "linear",
            Scheduler.CONSTANT: "constant_with_warmup",
        }[chosen.scheduler],
        weight_decay=float(chosen.weight_decay),
        seed=chosen.seed,
        data_seed=chosen.seed,
        bf16=in_bf16(chosen.precision),
        # saves the memory that is scarce on an accelerator, at the price of a third more computing, which is scarce on a CPU
        gradient_checkpointing=not on_cpu,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        ddp_find_unused_parameters=False,
        save_strategy="steps",
        save_steps=spec.checkpoint.every_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )


def in_bf16(precision: Precision) -> bool:
    """Whether this machine is to compute in bf16."""
    if precision is not Precision.AUTO:
        return precision is Precision.BF16
    return torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else cpu_has_bf16()


def lora_config(spec: TrainingJobSpec) -> LoraConfig | None:
    """PEFT's configuration; None for full fine-tuning."""
    lora = spec.tuning.lora
    if lora is None:
        return None
    modules = list(lora.target_modules)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=float(lora.dropout),
        target_modules="all-linear" if modules == ["all-linear"] else modules,
        task_type="CAUSAL_LM",
    )


class _Trainer(SFTTrainer):
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a checkpoint is for going on, not for people."""


class _Follower(TrainerCallback):
    """Tells each step to the journal and hands each checkpoint to Ray Train."""

    def __init__(self, state: State, reporter: Reporter) -> None:
        self._state, self._reporter = state, reporter
        self._began, self._first_step, self._last, self._tokens = 0.0, 0, 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = self._last = time.monotonic()
        self._first_step = state.global_step
        self._reporter.say(TRAINING, state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise UserError(
                FailureReason.DIVERGED,
                f"the loss is {logs['loss']} at step {state.global_step}; lower hyperparameters.learningRate, or warm up longer",
            )
        now, tokens = time.monotonic(), logs.get("num_tokens", 0.0)
        done = state.global_step - self._first_step
        left = (now - self._began) / done * (state.max_steps - state.global_step)
        metrics = {key: float(logs[key]) for key in METRICS if key in logs}
        metrics |= {"tokens_per_second": (tokens - self._tokens) / max(now - self._last, 1e-9), "seconds_left": left}
        self._last, self._tokens = now, tokens
        self._reporter.say(TRAINING, state.global_step, state.max_steps, seconds_left=left, metrics=metrics)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        checkpoint = ray.train.Checkpoint.from_directory(written) if state.is_world_process_zero else None
        ray.train.report(  # waits for all workers, so that each has written its part
            {"step": state.global_step},
            checkpoint,
            checkpoint_dir_name=f"step-{state.global_step}",
            checkpoint_upload_fn=self._move,
            delete_local_checkpoint_after_upload=False,
        )

    def _move(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        target = self._state.checkpoints / name
        shutil.rmtree(target, ignore_errors=True)
        Path(checkpoint.path).rename(target)
        return ray.train.Checkpoint.from_directory(target)
