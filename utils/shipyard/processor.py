"""Which processor this is, and how fast it multiplies: a speed means little without it."""

from __future__ import annotations

import os
import platform
import time

import torch

# What a reader calls the instructions → the names that torch and oneDNN know them by.
INSTRUCTIONS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512_f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "bf16": ("avx512_bf16", "bf16", "sve_bf16"),
    "AMX": ("amx_tile",),
    "NEON": ("neon",),
    "SVE": ("sve",),
}
# Variables that hold torch (ATen) or its convolutions (oneDNN) to older instructions.
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


def instructions() -> tuple[str, ...]:
    """The instructions for many numbers at once that this CPU has, of `INSTRUCTIONS`.

    AVX2, AVX-512 and NEON say how many numbers one instruction takes; VNNI multiplies bytes,
    bf16 multiplies bfloat16, and AMX multiplies small matrices of either.
    """
    has = torch.cpu.get_capabilities()
    return tuple(name for name, keys in INSTRUCTIONS.items() if any(has.get(k) for k in keys))


def describe() -> str:
    """The processor in words, as "AMD EPYC (AVX2)"; what is not known is said as unknown.

    Where a variable of `LIMITS` is set, it is named: the CPU then works like an older one.
    """
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    limits = [f"{key}={os.environ[key]}" for key in LIMITS if os.environ.get(key)]
    facts = [", ".join(instructions()) or "instructions unknown"]
    facts += [f"held to {', '.join(limits)}"] if limits else []
    return f"{name or platform.machine() or 'unknown processor'} ({'; '.join(facts)})"


def peak_gflops(side: int = 1024, repeats: int = 5) -> float:
    """GFLOP/s of a float32 matrix product: 2 · side³ operations, the fastest of ``repeats``."""
    a = torch.randn(side, side)  # (side, side)
    seconds = []
    for _ in range(repeats + 1):  # the first sets kernels up
        begin = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begin)
    return 2 * side**3 / min(seconds[1:]) / 1e9
