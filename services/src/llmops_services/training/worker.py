"""What each Ray Train worker runs: load, measure, train with TRL, measure again, keep the model. Rank 0 speaks for all.

A worker raises `WorkerEnded` for the ends that have a meaning; the driver finds it in Ray's error and ends likewise.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmops_api.programs import ExitCode, TrainingConfig
from llmops_api.reasons import FailureReason
from llmops_api.v1alpha1.training_job import EvaluationStatus, ScoreTable
from llmops_services.chat_template import ChatTemplates, chat_templates
from llmops_services.evaluation.gate import decide_gate
from llmops_services.evaluation.measure import MAX_GENERATED, HeldOut, evenly_spaced, measure
from llmops_services.evaluation.scores import Measured, summarize
from llmops_services.program import TryAgain, UserError
from llmops_services.shortages import disk_full, memory_short
from llmops_services.training.data import read_examples
from llmops_services.training.journal import JournalWriter
from llmops_services.training.progress import AFTER, BEFORE, LOADING, Reporter
from llmops_services.training.state import DOMAIN, GENERAL, Finished, State
from llmops_services.training.tokens import check_tokens, samples_html, samples_text, tokenize
from llmops_services.uris import local_path

log = logging.getLogger(__name__)

SAMPLES = 3


class WorkerEnded(Exception):
    """An end with a meaning, in a shape that survives the way from worker to driver."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(code, reason, message)
        self.code, self.reason, self.message = ExitCode(code), FailureReason(reason), message


def train_worker(settings: dict[str, Any]) -> None:
    """Ray Train's function for each worker. `settings`: `config` (TrainingConfig as JSON types), `state` (folder), `threads`."""
    import ray.train
    import torch

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("ray").setLevel(logging.WARNING)
    quiet_libraries()
    if ray.train.get_context().get_world_size() == 1:
        for name in (
            "RANK",
            "LOCAL_RANK",
            "WORLD_SIZE",
        ):  # or accelerate puts a single worker into DistributedDataParallel
            os.environ.pop(name, None)
    torch.set_num_threads(settings["threads"])
    try:
        _Worker(TrainingConfig.model_validate(settings["config"]), State(Path(settings["state"]))).run()
    except UserError as error:
        raise WorkerEnded(ExitCode.USER_ERROR, error.reason, str(error)) from error
    except TryAgain as error:
        raise WorkerEnded(ExitCode.TRY_AGAIN, error.reason, str(error)) from error
    except Exception as error:
        if memory_short(error):
            raise WorkerEnded(ExitCode.OUT_OF_MEMORY, FailureReason.OUT_OF_MEMORY, OUT_OF_MEMORY) from error
        if disk_full(error):
            message = f"{settings['state']}: no space left on the disk; free some, it goes on by itself"
            raise WorkerEnded(ExitCode.TRY_AGAIN, FailureReason.DISK_FULL, message) from error
        raise


OUT_OF_MEMORY = (
    "not enough memory: lower hyperparameters.batchSize or data.maxLength, or give compute.resources.memory more"
)


def quiet_libraries() -> None:
    """No progress bars and no chatter from transformers in the log."""
    from datasets.utils.logging import disable_progress_bar  # type: ignore[import-untyped]
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    disable_progress_bar()


class _Worker:
    def __init__(self, config: TrainingConfig, state: State) -> None:
        import ray.train

        self.spec, self.state = config.spec, state
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.reporter = Reporter(JournalWriter(state.journal) if self.rank == 0 else None)

    def run(self) -> None:
        self.reporter.say(LOADING)
        started = time.monotonic()
        model, tokenizer = self.load()
        templates = chat_templates(tokenizer)
        stops = _stops(model, tokenizer)
        rows = self.tokens(tokenizer, templates, stops)
        held_out = self.held_out(tokenizer, templates)
        log.info("model and data loaded in %.1f s", time.monotonic() - started)

        before = self.evaluate(BEFORE, model, tokenizer, held_out, stops)
        from llmops_services.training.sft import train

        model, steps = train(self.spec, self.state, self.reporter, model, tokenizer, rows)
        after = self.evaluate(AFTER, model, tokenizer, held_out, stops)
        if self.rank == 0:
            self.keep(model, tokenizer, templates)
            status = _status(self.spec, before, after)
            finished = Finished(steps=steps, evaluation=status, time=int(time.time() * 1000))
            self.state.write("finished.json", finished.model_dump_json())

    def load(self) -> tuple[Any, Any]:
        """The base model in the dtype that it is trained in, on this worker's device, and its tokenizer."""
        import torch
        from ray.train.torch import get_device
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from llmops_services.training.sft import in_bf16

        source = self.spec.base_model
        path = local_path(source.uri, revision=source.revision)
        if (path / "adapter_config.json").exists():
            raise UserError(
                FailureReason.MODEL_UNREADABLE,
                f"{source.uri} is an adapter, not a whole model; name a full model as baseModel",
            )
        # frozen weights can be bf16; weights that learn stay fp32 and are computed with in bf16, or small steps would be lost
        half = in_bf16(self.spec.hyperparameters.precision) and self.spec.tuning.lora is not None
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16 if half else torch.float32)
        except (OSError, ValueError) as error:
            raise UserError(
                FailureReason.MODEL_UNREADABLE,
                f"{source.uri}: {path} cannot be loaded as a chat model ({str(error).splitlines()[0]}); "
                "give a folder with config.json, tokenizer and safetensors weights",
            ) from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model.to(get_device()), tokenizer

    def tokens(self, tokenizer: Any, templates: ChatTemplates, stops: Sequence[int]) -> list[dict[str, list[int]]]:
        """The training data as rows of the trainer's data set; rank 0 keeps three for people to look at, then checks all of them."""
        data = self.spec.data
        path = local_path(data.train.uri)
        examples = read_examples(path, data.format, data.system_prompt)
        rows = tokenize(tokenizer, templates, examples, data.max_length)
        if cut := sum(row.cut for row in rows):
            log.warning("%d of %d examples are cut at maxLength (%d tokens)", cut, len(rows), data.max_length)
        if self.rank == 0:  # alone, or another's error would end it before the samples are written
            shown = sorted(rows, key=lambda row: row.learned > 0)[:SAMPLES]
            for sample, render in zip(self.state.samples, (samples_text, samples_html), strict=True):
                self.state.write(sample.name, render(tokenizer, shown))
            try:
                check_tokens(path, rows, stops, data.max_length)
            except UserError as error:
                where = f"{self.state.samples[0].name} of its MLflow run (here {self.state.samples[0]})"
                raise UserError(
                    error.reason, f"{error}; what is learned of {len(shown)} examples stands in {where}"
                ) from error
        return [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]

    def held_out(self, tokenizer: Any, templates: ChatTemplates) -> dict[str, list[HeldOut]]:
        """The evaluation's data sets as tokens. The general set is asked without the job's system prompt."""
        data, evaluation = self.spec.data, self.spec.evaluation
        if evaluation is None:
            return {}
        sets = {DOMAIN: (evaluation.domain.uri, data.system_prompt)}
        if evaluation.general is not None:
            sets[GENERAL] = (evaluation.general.uri, None)
        result = {}
        for name, (uri, system_prompt) in sets.items():
            path = local_path(uri)
            examples = read_examples(path, data.format, system_prompt)
            rows = tokenize(tokenizer, templates, examples, data.max_length)
            check_tokens(path, rows, [label for row in rows for label in row.labels], data.max_length)
            generated = evenly_spaced(len(examples), MAX_GENERATED)
            result[name] = [
                HeldOut(
                    index=index,
                    input_ids=row.input_ids,
                    labels=[-100, *row.labels[1:]],
                    prompt_ids=_prompt_ids(tokenizer, templates, example.prompt, data.max_length),
                    reference=example.answer,
                    generate=index in generated,
                )
                for index, (example, row) in enumerate(zip(examples, rows, strict=True))
            ]
        return result

    def evaluate(
        self, doing: str, model: Any, tokenizer: Any, held_out: dict[str, list[HeldOut]], stops: Sequence[int]
    ) -> dict[str, list[Measured]]:
        """Measure, each worker a share; what an earlier attempt measured is taken over."""
        if not held_out:
            return {}
        if (known := self.state.measured(doing)) is not None:
            return known
        total = sum(len(rows) + sum(row.generate for row in rows) for rows in held_out.values())
        done, started = 0, time.monotonic()

        def step(count: int) -> None:
            nonlocal done
            done = min(total, done + count * self.world)
            left = (time.monotonic() - started) / done * (total - done)
            self.reporter.say(doing, done, total, seconds_left=left)

        self.reporter.say(doing, 0, total)
        found = {}
        for name, rows in held_out.items():
            mine = measure(model, tokenizer, rows[self.rank :: self.world], stops, step)
            found[name] = sorted(self.gather(mine), key=lambda row: row.index)
        if self.rank == 0:
            self.state.keep_measured(doing, found)
        log.info("%s took %.1f s", doing, time.monotonic() - started)
        return found

    def gather(self, mine: list[Measured]) -> list[Measured]:
        if self.world == 1:
            return mine
        import torch.distributed as dist

        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, mine)
        return [row for part in parts for row in part]

    def keep(self, model: Any, tokenizer: Any, templates: ChatTemplates) -> None:
        """The adapter or model beside its tokenizer, whose template is the one that serves."""
        aside = self.state.folder / "model.new"
        shutil.rmtree(aside, ignore_errors=True)
        model.save_pretrained(aside)
        tokenizer.chat_template = templates.serving
        tokenizer.save_pretrained(aside)
        (aside / "README.md").unlink(missing_ok=True)  # PEFT's form, with nothing filled in
        shutil.rmtree(self.state.model, ignore_errors=True)
        aside.rename(self.state.model)


def _prompt_ids(tokenizer: Any, templates: ChatTemplates, prompt: Sequence[dict[str, str]], limit: int) -> list[int]:
    coded = tokenizer.apply_chat_template(
        list(prompt), chat_template=templates.serving, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    return list(coded["input_ids"])[-limit:]


def _stops(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a turn: the tokenizer's and those that the model's generation stops at."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*ids, tokenizer.eos_token_id] if token is not None})


def _status(spec: Any, before: dict[str, list[Measured]], after: dict[str, list[Measured]]) -> EvaluationStatus | None:
    if not after:
        return None
    try:
        tables = [
            ScoreTable(domain=summarize(rows[DOMAIN]), general=summarize(rows[GENERAL]) if GENERAL in rows else None)
            for rows in (before, after)
        ]
    except ValueError as error:
        raise UserError(
            FailureReason.DIVERGED,
            "the trained model's loss is not a number; lower hyperparameters.learningRate, or warm up longer",
        ) from error
    passed, message = decide_gate(spec.evaluation.gate, *tables)
    return EvaluationStatus(before=tables[0], after=tables[1], gate_passed=passed, gate_message=message)
