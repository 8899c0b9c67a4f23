"""How vLLM is started from an engine config."""

from pathlib import Path

import pytest

from llmops_api.programs import EngineConfig
from llmops_services.engine.command import arguments, environment, max_lora_rank
from llmops_services.number_formats import cpu_has_bf16


def config(adapters: bool = False, **engine: object) -> EngineConfig:
    return EngineConfig.model_validate(
        {
            "object": {"kind": "RagService", "namespace": "default", "name": "chat", "uid": "u"},
            "base": {"uri": "file:///models/base"},
            "servedName": "base",
            "engine": engine,
            "adapters": adapters,
        }
    )


def command(config: EngineConfig, *, rank: int = 16, on_gpu: bool = False, cpu_has_bf16: bool = True) -> str:
    argv = arguments(
        config, model=Path("/models/base"), host="127.0.0.1", port=8000, lora_rank=rank, on_gpu=on_gpu,
        cpu_has_bf16=cpu_has_bf16,
    )  # fmt: skip
    return " ".join(argv[1:]) + " "


def test_every_field_of_the_engine_reaches_vllm_under_its_own_name() -> None:
    said = command(
        config(
            maxModelLen=2048, dtype="bfloat16", gpuMemoryUtilization="0.8", tensorParallelSize=2, extraArgs=["--seed=3"]
        ),
        on_gpu=True,
    )
    for option in (
        "--model /models/base ",
        "--served-model-name base ",
        "--port 8000 ",
        "--max-model-len 2048 ",
        "--dtype bfloat16 ",
        "--gpu-memory-utilization 0.8 ",
        "--tensor-parallel-size 2 ",
        "--seed=3 ",
    ):
        assert option in said
    assert "--enforce-eager" not in said


def test_without_a_gpu_nothing_is_compiled_and_no_gpu_memory_is_asked_for() -> None:
    said = command(config(gpuMemoryUtilization="0.8"))
    assert "--enforce-eager" in said
    assert "--gpu-memory-utilization" not in said


def test_a_cpu_without_bf16_computes_in_float32_unless_it_is_told_otherwise() -> None:
    assert "--dtype auto " in command(config())
    assert "--dtype auto " in command(config(), on_gpu=True, cpu_has_bf16=False)
    assert "--dtype float32 " in command(config(), cpu_has_bf16=False)
    assert "--dtype bfloat16 " in command(config(dtype="bfloat16"), cpu_has_bf16=False)


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags : fpu avx avx2 fma", False),
        ("flags : avx2 avx512f avx512dq avx512bw avx512vl", True),
        ("Features : asimd bf16", True),
    ],
)
def test_what_a_cpu_computes_in_is_what_the_kernel_says(tmp_path: Path, flags: str, has: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    assert cpu_has_bf16(tmp_path / "cpuinfo") is has
    assert cpu_has_bf16(tmp_path / "nothing") is False


def test_adapters_are_switched_on_only_where_the_service_has_one() -> None:
    assert "--enable-lora" not in command(config())
    assert "--enable-lora --max-loras 2 --max-cpu-loras 4 --max-lora-rank 32" in command(config(adapters=True), rank=17)


@pytest.mark.parametrize(("rank", "allowed"), [(1, 8), (8, 8), (9, 16), (64, 64), (257, 320), (512, 512)])
def test_the_rank_is_rounded_up_to_one_that_vllm_takes(rank: int, allowed: int) -> None:
    assert max_lora_rank(rank) == allowed


def test_a_rank_that_vllm_does_not_serve_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="train it with a lower rank"):
        max_lora_rank(513)


def test_vllm_inherits_no_secret_of_other_services() -> None:
    env = environment(
        {"QDRANT_API_KEY": "k", "LLMOPS_ENGINE_API_KEY": "k", "PATH": "/bin"}, adapters=True, on_gpu=False
    )
    assert env["PATH"] == "/bin"
    assert "k" not in env.values()
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in environment({}, adapters=False, on_gpu=False)
