"""How vLLM is started: its arguments and environment from an `EngineConfig`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from llmops_api.programs import TOKEN_PREFIX, EngineConfig
from llmops_api.v1alpha1.rag_service import Dtype

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for --max-lora-rank."""

LOADED_AT_ONCE = 2
"""Adapters that one batch may mix: while a new version takes over, answers of the old one are still under way."""


def max_lora_rank(rank: int) -> int:
    """The smallest --max-lora-rank that holds adapters of `rank`. Raises ValueError above 512."""
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise ValueError(
        f"an adapter of rank {rank} is more than vLLM serves ({LORA_RANKS[-1]}): train it with a lower rank"
    )


def arguments(
    config: EngineConfig, *, model: Path, host: str, port: int, lora_rank: int, on_gpu: bool, cpu_has_bf16: bool
) -> list[str]:
    """The whole command line. `extraArgs` come last, so that they win over the defaults of this function."""
    engine = config.engine
    emulated = engine.dtype is Dtype.AUTO and not on_gpu and not cpu_has_bf16
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", config.served_name, "--host", host, "--port", str(port)]
    command += ["--dtype", Dtype.FLOAT32 if emulated else engine.dtype]
    command += ["--tensor-parallel-size", str(engine.tensor_parallel_size)]
    if engine.max_model_len is not None:
        command += ["--max-model-len", str(engine.max_model_len)]
    if engine.gpu_memory_utilization is not None and on_gpu:
        command += ["--gpu-memory-utilization", engine.gpu_memory_utilization]
    if config.adapters:
        command += ["--enable-lora", "--max-loras", str(LOADED_AT_ONCE), "--max-cpu-loras", str(2 * LOADED_AT_ONCE)]
        command += ["--max-lora-rank", str(max_lora_rank(lora_rank))]
    if not on_gpu:
        command += ["--enforce-eager"]  # compiling takes minutes on a few cores and gains nothing for small models
    command += ["--disable-access-log-for-endpoints", "/health,/v1/models"]
    return command + list(engine.extra_args)


def environment(inherited: Mapping[str, str], *, adapters: bool, on_gpu: bool) -> dict[str, str]:
    """The environment of vLLM: what is inherited, without the secrets of others, with vLLM's own switches set."""
    secret = ("QDRANT_API_KEY", "LLMOPS_ENGINE_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    result = {key: value for key, value in inherited.items() if key not in secret and not key.startswith(TOKEN_PREFIX)}
    # The weights are local by now: a look at the hub could only slow the start down or fail.
    result |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if adapters:
        result["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if not on_gpu:
        result.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    return result


def gpu_present() -> bool:
    """Whether the kernel shows an NVIDIA GPU; asked without importing torch."""
    return any(Path("/dev").glob("nvidia[0-9]*"))
