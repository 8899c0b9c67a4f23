"""The training program on a folder of data, as a backend runs it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmops_api.lineage import Tag
from llmops_api.programs import TrainingConfig
from llmops_services.training.state import State

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")


@dataclass
class Job:
    """A TrainingJob's folder, and the program run in it. `extra` is environment for the program."""

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

    def start(self, before: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
        """Start the program; `before` is called in its process first."""
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
                preexec_fn=before,
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


def lines(count: int, seed: int, words: tuple[str, ...] = WORDS) -> str:
    """`count` conversations about words, as JSON lines."""
    chosen = random.Random(seed).choices(words, k=count)
    return "".join(
        json.dumps({"messages": [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": f"It is {word}."}]})
        + "\n"
        for word in chosen
    )  # fmt: skip


def the_run(client: Any, job: Job) -> Any:
    """The one run of a job; more or fewer are an error."""
    experiment = client.get_experiment_by_name("llmops/tests")
    [run] = client.search_runs([experiment.experiment_id], f"tags.`{Tag.UID}` = '{job.uid}'")
    return client.get_run(run.info.run_id)  # a search leaves the models out
