"""The one folder that holds everything of a local installation, and where in it each thing lies."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llmops_operator.domain.workload import Owner

DEFAULT_HOME = Path(".llmops")


@dataclass(frozen=True)
class Home:
    """Paths below the folder `root`, which is absolute. Nothing is made by asking for a path, only by `create`."""

    root: Path

    @classmethod
    def at(cls, folder: str | os.PathLike[str] = DEFAULT_HOME) -> Home:
        """The home in `folder`, relative to the current folder; links are resolved, so that one folder has one name."""
        return cls(Path(folder).expanduser().resolve())

    @property
    def lock(self) -> Path:
        """Locked by the daemon for as long as it lives; says who it is."""
        return self.root / "lock"

    @property
    def objects(self) -> Path:
        """The SQLite file with the custom resources and their events."""
        return self.root / "objects.db"

    @property
    def workloads(self) -> Path:
        """The workloads of objects: `NAMESPACE/NAME/REPLICA/` each."""
        return self.root / "workloads"

    @property
    def platform(self) -> Path:
        """The MLflow server and the vector store, laid out as `workloads` is."""
        return self.root / "platform"

    @property
    def platform_file(self) -> Path:
        """The addresses of the MLflow server and the vector store, and the ports that they keep over restarts."""
        return self.root / "platform.json"

    @property
    def secrets(self) -> Path:
        """`NAME/KEY` files with the values of secrets."""
        return self.root / "secrets"

    @property
    def cache(self) -> Path:
        """Shared by all programs, for models; may be emptied while nothing runs. `LLMOPS_CACHE_DIR` names another, for several homes."""
        return Path(os.environ.get("LLMOPS_CACHE_DIR") or self.root / "cache").absolute()

    @property
    def mlflow(self) -> Path:
        """The MLflow server's database and artifacts."""
        return self.root / "mlflow"

    @property
    def qdrant(self) -> Path:
        """The vector store's collections."""
        return self.root / "qdrant"

    def secret(self, name: str, key: str) -> Path:
        """The file with the value of one entry of a secret."""
        return self.secrets / name / key

    def volumes(self, owner: Owner) -> Path:
        """The folder with the volumes of one object; an object made anew under the same name has another."""
        return self.root / "volumes" / f"{owner.kind}.{owner.namespace}.{owner.name}.{owner.uid[:8]}"

    def create(self) -> None:
        """Make the folder, for this user alone (secrets and documents lie in it) and out of the way of a git repository around it."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        ignore = self.root / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")
