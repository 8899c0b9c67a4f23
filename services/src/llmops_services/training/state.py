"""What a training has reached, in the job's state folder: everything that the next attempt needs to go on.

samples.txt, samples.html   what is learned, for people
evaluating-before.json      what was measured (`Measured` rows by data set); evaluating-after.json likewise
checkpoints/step-N/         Trainer checkpoints, complete by their name (written aside and renamed)
model/                      the trained adapter or model, complete by its name
finished.json               the evaluation and the number of steps: only registering is left
journal.jsonl               see `journal`
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from llmops_api.programs import Env
from llmops_api.v1alpha1.meta import Model
from llmops_api.v1alpha1.training_job import EvaluationStatus
from llmops_services.evaluation.scores import Measured

DOMAIN = "domain"
GENERAL = "general"


class Finished(Model):
    """The training is done; `time` is in milliseconds since 1970 and the same in every attempt to register."""

    steps: int
    evaluation: EvaluationStatus | None = None
    time: int


class State:
    """The state folder of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.checkpoints = self.folder / "checkpoints"
        self.model = self.folder / "model"
        self.journal = self.folder / "journal.jsonl"
        self.samples = (self.folder / "samples.txt", self.folder / "samples.html")

    @classmethod
    def of_environment(cls) -> State:
        """The folder that the environment names; `./state` for a program that is run by hand."""
        state = cls(Path(os.environ.get(Env.STATE_DIR) or "state"))
        state.folder.mkdir(parents=True, exist_ok=True)
        return state

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint with the highest step."""
        steps = self._steps()
        return steps[-1] if steps else None

    def prune(self, keep: int) -> None:
        """Throw away what killed attempts left: half-written checkpoints, those beyond `keep`, and Ray's own index of them
        (it may be torn, and is of another Ray version after an upgrade; the folders say the same).
        """
        if not self.checkpoints.exists():
            return
        kept = set(self._steps()[-keep:])
        for entry in self.checkpoints.iterdir():
            if entry in kept:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def _steps(self) -> list[Path]:
        found = self.checkpoints.glob("step-*")
        return sorted((path for path in found if path.name[5:].isdigit()), key=lambda path: int(path.name[5:]))

    def measured(self, doing: str) -> dict[str, list[Measured]] | None:
        """Rows by data set of "evaluating before" or "evaluating after"; None if that has not been measured."""
        path = self.folder / _file_of(doing)
        if not path.exists():
            return None
        return {
            key: [Measured(**row) for row in rows] for key, rows in json.loads(path.read_text(encoding="utf-8")).items()
        }

    def keep_measured(self, doing: str, rows: dict[str, list[Measured]]) -> None:
        """Keep what was measured."""
        self.write(_file_of(doing), json.dumps({key: [asdict(row) for row in value] for key, value in rows.items()}))

    def finished(self) -> Finished | None:
        """What is left when only registering is."""
        path = self.folder / "finished.json"
        return Finished.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, aside and renamed."""
        target = self.folder / name
        aside = target.with_name(f"{name}.{os.getpid()}.new")
        aside.write_text(text, encoding="utf-8")
        aside.replace(target)


def _file_of(doing: str) -> str:
    return f"{doing.replace(' ', '-')}.json"
