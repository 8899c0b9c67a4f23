"""`python -m llmops_services.engine config/engine.json`: run vLLM and keep its adapters, until it ends or SIGTERM comes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any

import httpx

from llmops_api.programs import AdaptersConfig, EngineConfig, Env
from llmops_api.reasons import FailureReason
from llmops_services.engine.adapters import AdapterSync, RankTooHigh, rank_of
from llmops_services.engine.command import arguments, environment, gpu_present, max_lora_rank
from llmops_services.engine.output import Output
from llmops_services.number_formats import cpu_has_bf16
from llmops_services.program import TryAgain, load_config, run_program
from llmops_services.uris import local_path

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
LAST_WORDS_SECONDS = 5.0
"""A process of vLLM's that outlives it may hold its output open."""
START_SECONDS = 1800.0
"""Large weights are read for minutes; an engine that does not answer after this is started anew."""


def main(config_path: str) -> None:
    """Resolve the base model, then run vLLM; started anew only where an adapter needs a higher rank than it was started with."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # two lines a second
    config = load_config(EngineConfig, config_path)
    adapters_path = Path(config_path).with_name("adapters.json")
    host, port = os.environ.get(Env.HOST, "127.0.0.1"), int(os.environ.get(Env.PORT, "8000"))
    model = local_path(config.base.uri)
    rank = max([16, *_ranks_wanted(adapters_path)]) if config.adapters else 16
    while True:
        try:
            asyncio.run(_serve(config, model=model, host=host, port=port, rank=rank, adapters_path=adapters_path))
        except RankTooHigh as error:
            log.warning("%s: starting vLLM anew with a higher --max-lora-rank", error)
            rank = error.rank
        else:
            return


def _ranks_wanted(path: Path) -> list[int]:
    """The ranks of the adapters that are already asked for or expected, so that vLLM is started once with the right one."""
    ranks: list[int] = []
    if not path.exists():
        return ranks
    try:
        config = load_config(AdaptersConfig, path)
        ranks.append(config.expected_rank or 0)
        ranks += [rank_of(local_path(adapter.uri)) for adapter in config.adapters]
    except Exception as error:  # the same is met again, and told, when they are loaded
        log.warning("starting without knowing the rank of all adapters: %s", error)
    return ranks


async def _serve(config: EngineConfig, *, model: Path, host: str, port: int, rank: int, adapters_path: Path) -> None:
    on_gpu = gpu_present()
    command = arguments(
        config, model=model, host=host, port=port, lora_rank=rank, on_gpu=on_gpu, cpu_has_bf16=cpu_has_bf16()
    )
    log.info("starting %s", " ".join(command))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    env = environment(os.environ, adapters=config.adapters, on_gpu=on_gpu)
    # A pipe of our own: asyncio counts a process as ended when its pipes are closed, and vLLM's children outlive it holding this one.
    reading, writing = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(*command, env=env, stdout=writing, stderr=writing)
    finally:
        os.close(writing)
    output, stream = Output(), asyncio.StreamReader()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reading, "rb", 0))
    passing_on = asyncio.create_task(output.pass_on(stream))
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())]
    if config.adapters:
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 compared, not bound
        tasks.append(asyncio.create_task(_keep_adapters(url, adapters_path, max_lora_rank(rank))))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0] in done and not stop.is_set():
            await asyncio.wait([passing_on], timeout=LAST_WORDS_SECONDS)
            why = output.cause()
            raise TryAgain(
                FailureReason.ENGINE_DIED,
                f"vLLM ended with exit code {process.returncode}"
                + (f": {why}" if why else "; the lines above say why"),
            )
        for task in done:
            task.result()
    finally:
        for task in tasks[1:]:
            task.cancel()
        await _end(process)
        passing_on.cancel()
        pipe.close()


async def _keep_adapters(url: str, path: Path, max_rank: int) -> None:
    async with asyncio.timeout(START_SECONDS), httpx.AsyncClient(timeout=2) as client:
        while True:
            try:
                if (await client.get(f"{url}/health")).is_success:
                    break
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.5)
    await AdapterSync(url=url, path=path, max_rank=max_rank, fetch=local_path).run()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask vLLM to stop; kill it when it does not within `STOP_SECONDS`."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


if __name__ == "__main__":
    run_program(main)
