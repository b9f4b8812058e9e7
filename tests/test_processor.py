"""The processor's name, its instructions and its measured peak."""

import platform

import pytest
import torch

from shipyard import processor


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"avx2": True, "avx512_f": False}, ("AVX2",)),
        ({"avx2": True, "avx_vnni": True}, ("AVX2", "VNNI")),
        (
            dict.fromkeys(["avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile"], True),
            ("AVX2", "AVX-512", "VNNI", "bf16", "AMX"),
        ),
        ({"neon": True, "bf16": True}, ("bf16", "NEON")),
        ({}, ()),
    ],
)
def test_the_class_of_a_processor_is_read_from_what_torch_found(monkeypatch, has, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert processor.instructions() == expected


def test_what_is_not_known_is_said_as_unknown(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "")
    for name in processor.LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert processor.describe() == "unknown processor (instructions unknown)"


def test_a_processor_that_is_held_back_says_so(monkeypatch):
    capabilities = {"cpu_name": "Some CPU", "avx2": True, "avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert processor.describe() == "Some CPU (AVX2, AVX-512; held to ATEN_CPU_CAPABILITY=avx2)"


def test_the_peak_is_a_speed_that_machines_have():
    assert 0.1 < processor.peak_gflops(side=128, repeats=2) < 1e6
