"""Trainings and indexings of tiny models in a cluster while parts of it are away: everything goes on, nothing is lost or done twice.

One namespace serves all tests of this module.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from training_job import lines
from waiting import wait_until

from harness.platform import NAMESPACE, RELEASE, Platform
from harness.single_node import SingleNode
from llmops_api.lineage import Tag

pytestmark = pytest.mark.timeout(900)

AWAY_SECONDS = 60
DOCUMENTS = 300
ALIKE = ("eta", "theta", "22", "37", "46", "91")
"""Words that make examples of the same length for the tiny model."""


@pytest.fixture
def mlflow(platform: Platform) -> Iterator[MlflowClient]:
    """A client of the release's MLflow."""
    with platform.forwarded(f"{RELEASE}-mlflow") as url:
        yield MlflowClient(url, url)


def job(folder: Path, name: str, model: Path, **spec: Any) -> dict[str, Any]:
    """A LoRA training of 20 steps on tiny data in `folder`."""
    (folder / "train.jsonl").write_text(lines(64, 1, ALIKE))
    made = {
        "baseModel": {"uri": f"file://{model}"},
        "data": {"train": {"uri": f"file://{folder}/train.jsonl"}, "maxLength": 64},
        "tuning": {"lora": {"rank": 4, "alpha": 8}},
        "hyperparameters": {"maxSteps": 20, "learningRate": "1e-2", "batchSize": 4, "precision": "FP32"},
        "checkpoint": {"everySteps": 5, "keep": 1},
        "output": {"model": name},
        **spec,
    }
    return {"apiVersion": "llmops.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name}, "spec": made}


def index(folder: Path, name: str, model: Path) -> dict[str, Any]:
    """An index of small documents in `folder`."""
    documents = folder / "documents"
    documents.mkdir(exist_ok=True)
    for number in range(DOCUMENTS):
        (documents / f"{number}.md").write_text(f"# Document {number}\n\n" + f"It is about the number {number}. " * 20)
    spec = {
        "sources": [{"name": "documents", "uri": f"file://{documents}"}],
        "chunking": {"maxTokens": 64, "overlapTokens": 8},
        "embedding": {"model": {"uri": f"file://{model}"}},
    }
    return {"apiVersion": "llmops.dev/v1alpha1", "kind": "EmbeddingIndex", "metadata": {"name": name}, "spec": spec}


def push(platform: Platform, folder: Path, team: str, *manifests: dict[str, Any]) -> None:
    """Store the files of manifests and apply what comes out."""
    path = folder / "manifests.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))
    platform.apply(platform.llmops("push", str(path)), team)


def doing(platform: Platform, what: str, team: str) -> bool:
    """Whether the program of an object is at work."""
    return bool(platform.status(what, team).get("progress"))


@contextmanager
def away(platform: Platform, what: str) -> Iterator[None]:
    """A part of the release scaled to nothing for a minute, and longer if the block takes longer."""
    begun = time.monotonic()
    platform.kubectl("scale", what, "-n", NAMESPACE, "--replicas=0")
    try:
        yield
        time.sleep(max(0.0, begun + AWAY_SECONDS - time.monotonic()))
    finally:
        platform.kubectl("scale", what, "-n", NAMESPACE, "--replicas=1")
    platform.rolled_out(what, NAMESPACE)


def steps(mlflow: MlflowClient, platform: Platform, what: str, team: str) -> list[int]:
    """The steps of a training that have a loss in its run, in their order."""
    history = mlflow.get_metric_history(the_run(mlflow, platform, what, team).info.run_id, "loss")
    return sorted(point.step for point in history)


def running(platform: Platform, name: str, team: str) -> list[str]:
    """The pods of an object that run."""
    pods = platform.kubectl.get("pods", "-n", team, "-l", f"llmops.dev/name={name}")["items"]
    return [one["metadata"]["name"] for one in pods if one["status"]["phase"] == "Running"]


def the_run(mlflow: MlflowClient, platform: Platform, what: str, team: str) -> Any:
    """The one run of an object; more or fewer are an error."""
    kind, name = what.split("/")
    uid = platform.kubectl.get(kind, name, "-n", team)["metadata"]["uid"]
    experiment = mlflow.get_experiment_by_name(f"llmops/{team}")
    assert experiment is not None
    [run] = mlflow.search_runs([experiment.experiment_id], f"tags.`{Tag.UID}` = '{uid}'")
    return run


@pytest.mark.parametrize("part", [f"deployment/{RELEASE}-mlflow", f"statefulset/{RELEASE}-qdrant"])
def test_what_is_away_for_a_minute_costs_nothing(
    part: str, platform: Platform, team: str, tiny_chat_model: Path, tiny_embedding_model: Path, tmp_path: Path,
    mlflow: MlflowClient,
) -> None:  # fmt: skip
    name = part.rsplit("-", 1)[1]
    push(
        platform, tmp_path, team,
        job(tmp_path, f"train-{name}", tiny_chat_model), index(tmp_path, f"index-{name}", tiny_embedding_model),
    )  # fmt: skip
    wait_until(
        lambda: doing(platform, f"tj/train-{name}", team) or doing(platform, f"ei/index-{name}", team),
        "a program that reports progress",
        seconds=240,
        pause=1,
    )
    with away(platform, part):
        pass
    platform.wait(f"tj/train-{name}", "Succeeded", team, seconds=400)
    platform.wait(f"ei/index-{name}", "Ready", team, seconds=300)
    status = platform.status(f"ei/index-{name}", team)
    assert status["documents"] == DOCUMENTS
    assert platform.status(f"tj/train-{name}", team)["model"]["version"] == "1"
    assert sorted(set(steps(mlflow, platform, f"tj/train-{name}", team))) == list(range(1, 21))
    platform.wait(f"tj/train-{name}", "LineageRecorded", team, seconds=120)


def test_the_api_server_may_be_restarted_under_it(
    platform: Platform, team: str, tiny_embedding_model: Path, tmp_path: Path
) -> None:
    if not isinstance(platform.cluster, SingleNode):
        pytest.skip("restarts the API server's process, which is this machine's only in a cluster of its own")
    push(platform, tmp_path, team, index(tmp_path, "restarted", tiny_embedding_model))
    wait_until(lambda: platform.status("ei/restarted", team), "a status", seconds=60)
    platform.cluster.processes.restart("kube-apiserver")
    wait_until(lambda: platform.kubectl.run("get", "--raw", "/readyz").returncode == 0, "the API server", seconds=60)
    platform.wait("ei/restarted", "Ready", team, seconds=300)
    jobs = platform.kubectl.get("jobs", "-n", team, "-l", "llmops.dev/name=restarted")["items"]
    assert len(jobs) <= 1, [one["metadata"]["name"] for one in jobs]
    [operator] = platform.kubectl.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator")["items"]
    assert operator["status"]["phase"] == "Running"


def test_a_training_suspended_amid_its_steps_goes_on_where_it_was_and_cannot_be_edited(
    platform: Platform, team: str, tiny_chat_model: Path, tmp_path: Path, mlflow: MlflowClient
) -> None:
    long = {"maxSteps": 200, "learningRate": "1e-3", "batchSize": 4, "precision": "FP32"}
    push(platform, tmp_path, team, job(tmp_path, "paused", tiny_chat_model, hyperparameters=long))
    wait_until(
        lambda: platform.status("tj/paused", team).get("progress", {}).get("loss"), "a loss", seconds=240, pause=0.5
    )
    refused = platform.kubectl.run(
        "patch", "tj/paused", "-n", team, "--type=merge", "-p", '{"spec": {"hyperparameters": {"maxSteps": 9}}}'
    )
    assert "hyperparameters of a TrainingJob cannot be changed" in refused.stderr
    platform.patch("tj/paused", team, {"suspend": True})
    wait_until(lambda: platform.status("tj/paused", team).get("phase") == "Suspended", "a suspended one", pause=1)
    before = steps(mlflow, platform, "tj/paused", team)
    assert 0 < len(before) < 200
    wait_until(lambda: not running(platform, "paused", team), "the end of its pods", pause=1)
    platform.patch("tj/paused", team, {"suspend": False})
    platform.wait("tj/paused", "Succeeded", team, seconds=400)
    assert sorted(set(steps(mlflow, platform, "tj/paused", team))) == list(range(1, 201))
    assert platform.status("tj/paused", team)["model"]["version"] == "1"


def test_an_index_edited_amid_its_sync_serves_what_was_asked_for_last(
    platform: Platform, team: str, tiny_embedding_model: Path, tmp_path: Path
) -> None:
    push(platform, tmp_path, team, index(tmp_path, "edited", tiny_embedding_model))
    wait_until(lambda: doing(platform, "ei/edited", team), "an indexing under way", seconds=240, pause=0.5)
    platform.patch("ei/edited", team, {"chunking": {"maxTokens": 32}})
    platform.wait("ei/edited", "Ready", team, seconds=400)
    status = platform.status("ei/edited", team)
    assert status["documents"] == DOCUMENTS
    with platform.qdrant() as qdrant:
        assert qdrant.count(status["alias"]).count == qdrant.count(status["version"]["collection"]).count
        assert qdrant.count(status["alias"]).count == status["chunks"]
        longest = max(len(one.payload["text"]) for one in qdrant.scroll(status["alias"], limit=1000)[0] if one.payload)
    assert longest < 48 * 8, "no chunk of the first spec is served"


def test_two_workers_of_a_rayjob_learn_what_one_learns_on_twice_the_batch(
    platform: Platform, team: str, tiny_chat_model: Path, tmp_path: Path, mlflow: MlflowClient
) -> None:
    """Every step sees all the data, so that its order and its shares make no difference; losses agree to 0.2 %."""
    common = {"maxSteps": 8, "learningRate": "1e-2", "precision": "FP32"}
    one = job(tmp_path, "one", tiny_chat_model, hyperparameters={**common, "batchSize": 64})
    two = job(
        tmp_path, "two", tiny_chat_model, hyperparameters={**common, "batchSize": 32}, compute={"workers": 2}
    )  # fmt: skip
    for made in (one, two):  # one after the other: a Ray node that gets no processor for half a minute begins anew
        push(platform, tmp_path, team, made)
        platform.wait(f"tj/{made['metadata']['name']}", "Succeeded", team, seconds=400)
    assert platform.kubectl.get("rayjobs", "-n", team)["items"][0]["status"]["jobStatus"] == "SUCCEEDED"
    losses = []
    for name in ("one", "two"):
        run = the_run(mlflow, platform, f"tj/{name}", team)
        losses.append([point.value for point in mlflow.get_metric_history(run.info.run_id, "loss")])
    assert len(losses[0]) == 8
    assert losses[0][-1] < losses[0][0] - 0.5, "or any two trainings would look alike"
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
