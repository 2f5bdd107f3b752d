"""Attention on this processor, at several lengths and widths of heads: torch's fused kernel against plain products."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._measure import alternate
from ideoflow.ops import cpu_attention

HEADS = ((4, 256), (4, 128), (4, 64))


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    parts = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*parts).transpose(1, 2)


@torch.no_grad()
def measure(dtype: torch.dtype, heads: int, head_dim: int, length: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of both sides and their largest errors."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, length, heads, head_dim).to(dtype) for _ in range(3))
    sides = {"fused": fused, "products": cpu_attention.attend}
    exact = fused(query.double(), key.double(), value.double())
    errors = {name: float((side(query, key, value) - exact).abs().max()) for name, side in sides.items()}
    calls = {name: lambda s=side: s(query, key, value) for name, side in sides.items()}  # type: ignore[misc]
    seconds = alternate(calls, rounds)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "heads": heads,
        "head_dim": head_dim,
        "length": length,
        "milliseconds": {name: statistics.median(values) * 1e3 for name, values in seconds.items()},
        "error": errors,
    }


def compare(lengths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Both sides at all lengths, printed one by one."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        for heads, head_dim in HEADS:
            for length in lengths:
                figures = measure(dtype, heads, head_dim, length, rounds)
                results.append(figures)
                times = "  ".join(f"{name} {value:8.2f} ms" for name, value in figures["milliseconds"].items())
                print(f"{figures['dtype']:8} {heads} x {head_dim:3} {length:5} tokens  {times}", flush=True)
    return results
