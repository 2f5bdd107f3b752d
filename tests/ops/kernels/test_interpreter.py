"""The Triton kernels without a GPU: what they compute, in Triton's interpreter, and that they compile as launched."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from ideoflow.ops.rms_norm import RMSNorm
from tests.thinned import thinned

pytest.importorskip("triton", reason="triton is not installed")

interpreting = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets in this process")


@interpreting
@pytest.mark.slow
@pytest.mark.parametrize(
    "file, chosen",
    [
        ("test_kernels.py", ["-k", "triton"]),
        ("test_rows.py", ["-k", "(finite and int8) or numbers_of_two"]),
        pytest.param("test_rows.py", [], marks=pytest.mark.long),
    ],
    ids=["kernels", "rows, some", "rows"],
)
def test_the_kernels_are_right_in_the_interpreter(file, chosen):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    run = subprocess.run(
        [*command, str(Path(__file__).with_name(file))],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


class Gpu:
    """Stands for Triton's driver, so that the host's code runs up to the launch."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it compiled for each device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@interpreting
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    "dtype, capability",
    thinned(
        product([torch.float32, torch.bfloat16, torch.float16], [80, 89, 90]),
        kept=[(torch.bfloat16, 80), (torch.float32, 89), (torch.bfloat16, 90)],
    ),
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_the_kernels_compile_for_the_full_model_and_move_16_bytes_at_a_time(dtype, capability, monkeypatch, tmp_path):
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from ideoflow.ops.kernels import triton_kernels

    made = []
    launch = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        made.append(launch(self, *arguments, grid=grid, warmup=True, **options))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", Gpu(capability))
    x, y, _ = torch.empty(4, 3 * 4608, dtype=dtype).chunk(3, dim=-1)
    norm, scale = RMSNorm(4608, eps=1e-5, dtype=dtype), torch.empty(2, 4608, dtype=dtype)
    row = torch.zeros(4, dtype=torch.long)
    triton_kernels.norm_scale(norm, x, scale[:1])
    triton_kernels.norm_scale(norm, x, scale, row)
    triton_kernels.gate_norm_add(norm, x, y, scale, row)
    table = torch.empty(4, 256, dtype=dtype)
    head, (query, key) = RMSNorm(256, eps=1e-5, dtype=dtype), (each.unflatten(-1, (18, 256)) for each in (x, y))
    triton_kernels.norm_rotate(head, query, table, table)
    triton_kernels.norm_rotate_pair(head, query, head, key, table, table)
    triton_kernels.gate_norm_add_norm_scale(norm, x, y, scale, norm, scale, row)
    fed = torch.empty(4, 2 * 12288, dtype=dtype).chunk(2, dim=-1)
    triton_kernels.swiglu(*fed)
    rows = [torch.int8] if capability < 89 else [torch.int8, torch.float8_e4m3fn]
    for into in rows:
        triton_kernels.norm_scale(norm, x, scale, row, into)
        triton_kernels.gate_norm_add_norm_scale(norm, x, y, scale, norm, scale, row, into)
        triton_kernels.swiglu(*fed, into)
        triton_kernels.round_rows(x, into)
    assert len(made) == 7 + 4 * len(rows)  # each call is one launch
    for number, kernel in enumerate(made):
        assert kernel.asm["cubin"]
        assert "ld.global.v4.b32" in kernel.asm["ptx"] and "st.global.v4.b32" in kernel.asm["ptx"]
        if number >= 11:  # rows in float8: to the nearest, and never beyond the largest
            assert "cvt.rn.satfinite.e4m3x2.f32" in kernel.asm["ptx"]
        if number < 7 and dtype == torch.bfloat16:
            assert "cvt.rn.bf16" in kernel.asm["ptx"]  # rounds to the nearest, which the interpreter does not show
