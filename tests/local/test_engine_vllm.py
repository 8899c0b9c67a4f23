"""The engine program with real vLLM, and adapters from a real MLflow server. One engine serves all tests, in their order."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow_server import MlflowServer
from waiting import wait_until

from llmops_services.gateway.chat import TOO_LONG

pytestmark = pytest.mark.timeout(600)

BENCH = Path(__file__).parents[2] / "bench" / "gateway"

PEFT = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
base, out, ranks = sys.argv[1], sys.argv[2], sys.argv[3:]
for rank in ranks:
    torch.manual_seed(int(rank))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=int(rank), target_modules="all-linear", init_lora_weights=False))
    model.save_pretrained(f"{out}/rank{rank}")
"""


@dataclass
class Engine:
    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    registered: dict[int, str]

    def want(self, *adapters: tuple[str, str]) -> None:
        """Write the live file as a backend does: aside, then renamed."""
        aside = self.folder / "config" / "adapters.new"
        aside.write_text(json.dumps({"adapters": [{"name": name, "uri": uri} for name, uri in adapters]}))
        aside.replace(self.folder / "config" / "adapters.json")

    def models(self) -> set[str]:
        try:
            return {card["id"] for card in httpx.get(f"{self.url}/v1/models", timeout=5).json()["data"]}
        except httpx.HTTPError:
            return set()

    def vllm(self) -> int:
        """The pid of vLLM's API server, the one child of the engine program."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def answer(self, model: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": "leave?"}], "temperature": 0, "max_tokens": 12}
        return str(
            httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)
            .raise_for_status()
            .json()["choices"][0]["message"]["content"]
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shape(value: object) -> object:
    """The names and types of a JSON value; of a list those of its first entry."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shape(entry) for entry in value[:1]]
    return type(value).__name__


def shapes(text: str) -> list[object]:
    """The shape of an answer, or of each event of a stream; events of the same shape behind each other count as one."""
    if not text.startswith("data: "):
        return [shape(json.loads(text))]
    events = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    found = [event if event == "[DONE]" else shape(json.loads(event)) for event in events]
    return [one for one, _ in itertools.groupby(found)]


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the stub engine that the gateway is tested and measured with."""
    spec = importlib.util.spec_from_file_location("gateway_stack", BENCH / "stack.py")
    assert spec is not None
    assert spec.loader is not None
    stack = sys.modules["gateway_stack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stack)
    with stack.stub_engine(tmp_path_factory.mktemp("stub"), models=("base",), max_model_len=512, tokens=3) as running:
        yield running.url


def start(folder: Path, model: Path, mlflow: str, **engine: Any) -> tuple[subprocess.Popen[bytes], str]:
    """The engine program in `folder`, and its address."""
    (folder / "config").mkdir()
    config = {
        "object": {"kind": "RagService", "namespace": "default", "name": "chat", "uid": "u"},
        "base": {"uri": f"file://{model}"},
        "servedName": "base",
        "engine": engine,
        "adapters": True,
    }
    (folder / "config" / "engine.json").write_text(json.dumps(config))
    port = free_port()
    env = os.environ | {"LLMOPS_PORT": str(port), "LLMOPS_HOST": "127.0.0.1", "MLFLOW_TRACKING_URI": mlflow}
    env |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    env |= {"LLMOPS_CACHE_DIR": str(folder / "cache"), "LLMOPS_RESULT_FILE": str(folder / "result.json")}
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "llmops_services.engine", "config/engine.json"]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    return process, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def engine(
    tmp_path_factory: pytest.TempPathFactory, tiny_chat_model: Path, mlflow_server: MlflowServer
) -> Iterator[Engine]:
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("engine")
    subprocess.run([sys.executable, "-c", PEFT, str(tiny_chat_model), str(folder), "4", "24"], check=True, timeout=300)
    client, registered = MlflowClient(tracking_uri=mlflow_server.url), {}
    run = client.create_run(client.create_experiment("adapters"))
    client.create_registered_model("tiny")
    for rank in (4, 24):
        model = client.create_logged_model(run.info.experiment_id, name=f"rank{rank}", source_run_id=run.info.run_id)
        client.log_model_artifacts(model.model_id, str(folder / f"rank{rank}"))
        client.finalize_logged_model(model.model_id, "READY")
        version = client.create_model_version(
            "tiny", source=f"models:/{model.model_id}", run_id=run.info.run_id, model_id=model.model_id
        )
        registered[rank] = f"mlflow://tiny/{version.version}"
    process, url = start(folder, tiny_chat_model, mlflow_server.url, maxModelLen=512)
    started = Engine(process, url, folder, registered)
    try:
        wait_until(lambda: "base" in started.models() or process.poll() is not None, "vLLM", seconds=400)
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


CHAT = {"model": "base", "messages": [{"role": "user", "content": "leave?"}], "max_tokens": 3, "ignore_eos": True}


@pytest.mark.parametrize(
    "body",
    [
        CHAT,
        {**CHAT, "stream": True},
        {**CHAT, "stream": True, "stream_options": {"include_usage": True}},
        {**CHAT, "model": "nope"},
        {**CHAT, "messages": [{"role": "user", "content": "leave? " * 400}]},
        {**CHAT, "messages": [{"role": "user", "content": "leave? " * 2000}], "stream": True},
    ],
    ids=["whole", "streamed", "with usage", "no such model", "too many tokens", "too many characters"],
)
def test_the_stub_engine_answers_as_vllm_does(engine: Engine, stub: str, body: dict[str, Any]) -> None:
    real, faked = (httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60) for url in (engine.url, stub))
    assert (faked.status_code, faked.headers["content-type"]) == (real.status_code, real.headers["content-type"])
    assert shapes(faked.text) == shapes(real.text)
    too_long = "leave? leave?" in body["messages"][0]["content"]
    assert [TOO_LONG in answer.content for answer in (real, faked)] == [too_long] * 2, "the gateway looks for it"


def test_the_stub_engine_lists_models_as_vllm_does(engine: Engine, stub: str) -> None:
    real, faked = (httpx.get(f"{url}/v1/models", timeout=60).json() for url in (engine.url, stub))
    assert shape(faked) == shape(real)


def test_an_adapter_that_is_asked_for_is_served_without_a_restart(engine: Engine) -> None:
    vllm = engine.vllm()
    engine.want(("tiny-v1", engine.registered[4]))
    wait_until(lambda: "tiny-v1" in engine.models(), "the adapter", seconds=30)
    assert engine.vllm() == vllm
    assert engine.answer("tiny-v1") != engine.answer("base")


def test_a_wrong_live_file_and_a_missing_version_leave_what_is_served_as_it_is(engine: Engine) -> None:
    (engine.folder / "config" / "adapters.json").write_text("{half a fil")
    time.sleep(1.5)
    assert engine.models() == {"base", "tiny-v1"}
    engine.want(("tiny-v1", engine.registered[4]), ("tiny-v99", "mlflow://tiny/99"))
    wait_until(lambda: "tiny/99" in (engine.folder / "log").read_text(), "a word about version 99", seconds=20)
    assert engine.models() == {"base", "tiny-v1"}


def test_an_adapter_that_is_no_longer_asked_for_is_unloaded(engine: Engine) -> None:
    engine.want()
    wait_until(lambda: engine.models() == {"base"}, "the adapter to go", seconds=10)


def test_an_adapter_that_mlflow_does_not_give_comes_when_it_answers_again(
    engine: Engine, mlflow_server: MlflowServer
) -> None:
    mlflow_server.pause()
    try:
        engine.want(("tiny-v1", engine.registered[4]))
        away = f"MLflow at {mlflow_server.url} does not answer"
        wait_until(lambda: away in (engine.folder / "log").read_text(), "a word about MLflow", seconds=30)
        assert engine.answer("base"), "it serves what it has"
    finally:
        mlflow_server.resume()
    wait_until(lambda: "tiny-v1" in engine.models(), "the adapter", seconds=60)


def test_an_adapter_of_a_higher_rank_makes_vllm_start_anew_with_room_for_it(engine: Engine) -> None:
    vllm = engine.vllm()
    engine.want(("tiny-v1", engine.registered[4]), ("tiny-v2", engine.registered[24]))
    wait_until(lambda: engine.models() >= {"base", "tiny-v1", "tiny-v2"}, "both adapters after a restart", seconds=300)
    assert engine.vllm() != vllm
    assert "--max-lora-rank 32" in (engine.folder / "log").read_text()


def test_when_vllm_dies_the_engine_says_so_and_leaves_to_be_started_again(engine: Engine) -> None:
    os.kill(engine.vllm(), signal.SIGKILL)
    assert engine.process.wait(30) == 75
    assert json.loads((engine.folder / "result.json").read_text())["reason"] == "EngineDied"


def test_what_vllm_itself_says_of_its_end_is_told(tiny_chat_model: Path, tmp_path: Path) -> None:
    process, _ = start(tmp_path, tiny_chat_model, "http://127.0.0.1:1", maxModelLen=99999)
    try:
        assert process.wait(200) == 75
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    told = json.loads((tmp_path / "result.json").read_text())["message"]
    assert told.startswith("vLLM ended with exit code 1: ")
    assert "max_model_len (99999)" in told
