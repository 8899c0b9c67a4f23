"""The operator's configuration: what is wrong is said by file and field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llmops_operator.backends.kubernetes.config import ConfigError, load

LEAST = {
    "images": {"services": "services:1", "engine": "engine:1"},
    "qdrant": {"url": "http://qdrant:6333"},
    "leaderElection": {"namespace": "llmops-system"},
}


def write(folder: Path, config: object) -> Path:
    path = folder / "operator.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_what_is_not_said_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOPS_OPERATOR_CONFIG", str(write(tmp_path, LEAST)))
    config = load()
    assert config.cache.empty_dir is not None
    assert config.leader_election.lease_seconds == 15
    assert config.watch_namespaces == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": {"services": "services:1"}}, "images.engine: is required"),
        ({"worker": 3}, "worker: there is no such field"),
        ({"workers": 0}, "workers: Input should be greater than or equal to 1"),
        ({"cache": {}}, "cache: write either emptyDir or persistentVolumeClaim"),
        ({"state": {"size": "20 GB"}}, "state.size: String should match"),
        (
            {"leaderElection": {"namespace": "a", "leaseSeconds": 4, "renewSeconds": 2}},
            "leaderElection: renewSeconds must",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = write(tmp_path, LEAST | change)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert str(path) in str(refused.value)
    assert said in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        load(tmp_path / "none.yaml")
    monkeypatch.delenv("LLMOPS_OPERATOR_CONFIG", raising=False)
    with pytest.raises(ConfigError, match="--config"):
        load()
