"""What the processor can do, for tests that would take minutes without it."""

from pathlib import Path

import pytest

CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
BFLOAT16 = pytest.mark.skipif(
    "avx512_bf16" not in CPU and "amx_bf16" not in CPU, reason="the chip has no products in bfloat16"
)
