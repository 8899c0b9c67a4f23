"""An engine goes on serving the adapters that it has, whatever is wrong with one that it is to load."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmops_services.engine import __main__ as program
from llmops_services.engine.adapters import AdapterSync, RankTooHigh
from llmops_services.program import TryAgain

loaded: set[str] = set()


class Vllm(BaseHTTPRequestHandler):
    """As much of vLLM as loads adapters."""

    def do_GET(self) -> None:
        self._answer({"data": [{"id": name, "parent": "base"} for name in loaded]})

    def do_POST(self) -> None:
        loaded.add(json.loads(self.rfile.read(int(self.headers["content-length"])))["lora_name"])
        self._answer({})

    def _answer(self, value: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def vllm() -> Iterator[str]:
    loaded.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Vllm) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def adapter(folder: Path, rank: int) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return folder


FAULTS = {
    "a full disk": OSError(errno.ENOSPC, "No space left on device", "/cache/x"),
    "MLflow away": TryAgain("MLflowUnreachable", "MLflow does not answer"),
    "a bug": RuntimeError("a bug"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_an_adapter_that_cannot_be_had_holds_up_no_other(
    fault: Exception, vllm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, wanted = adapter(tmp_path / "good", 8), tmp_path / "adapters.json"

    def fetch(uri: str) -> Path:
        if uri.endswith("/1"):
            raise fault
        return good

    adapters = [{"name": f"tiny-v{number}", "uri": f"mlflow://tiny/{number}"} for number in (1, 2)]
    wanted.write_text(json.dumps({"adapters": adapters}))
    await AdapterSync(url=vllm, path=wanted, max_rank=16, fetch=fetch).round()
    assert loaded == {"tiny-v2"}
    assert f"adapter tiny-v1 (mlflow://tiny/1) cannot be loaded: {fault}" in caplog.text


@pytest.mark.parametrize(
    ("live", "rank"),
    [
        (None, 16),
        ({"adapters": [], "expectedRank": 64}, 64),
        ({"adapters": [], "expectedRank": 8}, 16),
        ({"adapters": [{"name": "tiny-v1", "uri": "mlflow://tiny/1"}], "expectedRank": 64}, 64),
    ],
    ids=["nothing known", "one in training", "a low one in training", "one that MLflow does not give"],
)
def test_vllm_starts_with_room_for_the_adapters_that_are_known_of(
    live: object, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    async def serve(*_: object, rank: int, **__: object) -> None:
        started.append(rank)

    monkeypatch.setattr(program, "_serve", serve)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    about = {"kind": "RagService", "namespace": "default", "name": "chat", "uid": "u"}
    config = {"object": about, "base": {"uri": tmp_path.as_uri()}, "servedName": "base", "engine": {}, "adapters": True}
    (tmp_path / "engine.json").write_text(json.dumps(config))
    if live is not None:
        (tmp_path / "adapters.json").write_text(json.dumps(live))
    program.main(str(tmp_path / "engine.json"))
    assert started == [rank]


async def test_a_rank_that_vllm_was_not_started_for_is_told(vllm: str, tmp_path: Path) -> None:
    wanted = tmp_path / "adapters.json"
    wanted.write_text(json.dumps({"adapters": [{"name": "tiny-v1", "uri": "mlflow://tiny/1"}]}))
    sync = AdapterSync(url=vllm, path=wanted, max_rank=16, fetch=lambda _: adapter(tmp_path / "high", 24))
    with pytest.raises(RankTooHigh):
        await sync.round()
