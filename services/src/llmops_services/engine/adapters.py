"""Keeps the adapters of a running vLLM what the live file asks for.

Level-triggered: each round reads the file, asks vLLM what it has, and loads or unloads the difference. So it makes no
difference whether the file changed, vLLM was started anew and forgot them, or a load failed the last time.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path

import httpx

from llmops_api.programs import AdaptersConfig, AdapterToLoad
from llmops_api.reasons import FailureReason
from llmops_services.engine.command import max_lora_rank
from llmops_services.program import UserError, load_config

log = logging.getLogger(__name__)

ROUND_SECONDS = 0.5
RETRY_SECONDS = 10.0


class RankTooHigh(Exception):
    """An adapter needs vLLM to be started anew with a higher --max-lora-rank."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"an adapter of rank {rank} is wanted")
        self.rank = rank


def rank_of(folder: Path) -> int:
    """The rank of the adapter in `folder` (its highest, where modules differ). Raises `UserError` when it holds none."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return max([int(config["r"]), *map(int, config.get("rank_pattern", {}).values())])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            FailureReason.NOT_AN_ADAPTER,
            f"{folder}: no adapter_config.json with a rank ({error}); register a LoRA adapter",
        ) from error


class AdapterSync:
    """Loads and unloads adapters of the vLLM at `url`. `fetch` turns an `mlflow://` URI into a local folder; it may block."""

    def __init__(self, *, url: str, path: Path, max_rank: int, fetch: Callable[[str], Path]) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=60)
        self._path, self._max_rank, self._fetch = path, max_rank, fetch
        self._last_good = AdaptersConfig()
        self._retry_at: dict[str, float] = {}

    async def run(self) -> None:
        """Go round until cancelled. Raises `RankTooHigh`; every other failure is logged and tried again."""
        while True:
            try:
                await self.round()
            except httpx.HTTPError as error:
                log.warning("vLLM does not answer (%s); trying again", error)
            await asyncio.sleep(
                ROUND_SECONDS
            )  # the file may be replaced by rename or by a mount: looking is what always works

    async def round(self) -> None:
        """Load what is wanted and missing, then unload what is there and no longer wanted."""
        wanted = {adapter.name: adapter for adapter in self._wanted().adapters}
        loaded = await self.loaded()
        now = asyncio.get_running_loop().time()
        for name in wanted.keys() - loaded:
            if now >= self._retry_at.get(name, 0):
                self._retry_at[name] = now + RETRY_SECONDS
                await self._load(wanted[name])
        self._retry_at = {name: at for name, at in self._retry_at.items() if name in wanted}
        for name in loaded - wanted.keys():
            await self._client.post("/v1/unload_lora_adapter", json={"lora_name": name})
            log.info("adapter %s unloaded", name)

    async def loaded(self) -> set[str]:
        """The names of the adapters that vLLM serves at the moment."""
        answer = (await self._client.get("/v1/models")).raise_for_status().json()
        return {card["id"] for card in answer["data"] if card.get("parent")}

    def _wanted(self) -> AdaptersConfig:
        if self._path.exists():
            try:
                self._last_good = load_config(AdaptersConfig, self._path)
            except UserError as error:
                log.error("%s; keeping the adapters as they were", error)
        return self._last_good

    async def _load(self, adapter: AdapterToLoad) -> None:
        try:
            folder = await asyncio.to_thread(self._fetch, adapter.uri)
            rank = rank_of(folder)
            needed = max_lora_rank(rank)
        except Exception as error:  # a full disk too: what is loaded goes on answering
            log.error("adapter %s (%s) cannot be loaded: %s", adapter.name, adapter.uri, error)
            return
        if needed > self._max_rank:
            raise RankTooHigh(rank)
        answer = await self._client.post(
            "/v1/load_lora_adapter", json={"lora_name": adapter.name, "lora_path": str(folder)}
        )
        if answer.is_success and adapter.name in await self.loaded():
            log.info("adapter %s loaded from %s", adapter.name, adapter.uri)
        else:
            log.error("vLLM refused adapter %s: %s", adapter.name, answer.text[:500])
