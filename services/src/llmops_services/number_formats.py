"""Which number formats this machine computes in. Where bf16 is emulated, it takes many times as long as fp32."""

from __future__ import annotations

from pathlib import Path

CPU_FLAGS = ({"avx512bw", "avx512dq", "avx512vl"}, {"avx_ne_convert"}, {"bf16"})
"""What the kernel says of a CPU for which oneDNN, and so PyTorch and vLLM, has bf16 (one of these sets)."""


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU computes in bf16. Without the kernel's word: no."""
    try:
        known = set(cpuinfo.read_text("utf-8").split())
    except OSError:
        return False
    return any(flags <= known for flags in CPU_FLAGS)
