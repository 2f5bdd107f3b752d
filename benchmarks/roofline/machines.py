"""The two rates of a machine: vendors' figures, or those of the present one, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .sizes import Config


@dataclass(frozen=True)
class Machine:
    """What bounds a step.

    Attributes:
        name: how tables call it.
        matrix: FLOP/s of dense matrix products, by data type.
        bandwidth: bytes/s of the memory that holds weights and activations.
        device: "cuda" or "cpu": PyTorch has an RMS norm in one kernel for the first only.
        source: where the figures come from.
    """

    name: str
    matrix: dict[str, float]
    bandwidth: float
    device: str = "cuda"
    source: str = "given on the command line"


# Dense figures: vendors' headlines count structured sparsity and are twice as high.
MACHINES = {
    "h200": Machine("H200 SXM", {"bfloat16": 989.5e12}, 4.8e12, source="NVIDIA H200 data sheet, dense"),
    "h100": Machine("H100 SXM", {"bfloat16": 989.5e12}, 3.35e12, source="NVIDIA H100 data sheet, dense"),
    "rtx4090": Machine(
        "RTX 4090",
        {"bfloat16": 165.2e12},
        1.008e12,
        source="NVIDIA Ada architecture paper, dense, float32 accumulation",
    ),
    "rtx3090": Machine(
        "RTX 3090",
        {"bfloat16": 71e12},
        0.936e12,
        source="NVIDIA GA102 architecture paper, dense, float32 accumulation",
    ),
}


def measure(config: Config, rounds: int = 5) -> Machine:
    """Rates of the present machine: products of the sizes of the config, and copies of a large tensor."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, copied = (4096, 2**31) if device == "cuda" else (512, 2**28)
    hidden, fed = config.hidden, config.intermediate_size
    matrix = {}
    for dtype in (torch.float32, torch.bfloat16):
        elapsed = 0.0
        for inner, outer in ((hidden, hidden), (hidden, fed), (fed, hidden)):
            x = torch.randn(rows, inner, device=device).to(dtype)
            weight = torch.randn(outer, inner, device=device).to(dtype)
            elapsed += _median_seconds(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight), device, rounds)
        flops = 2 * rows * hidden * (hidden + 2 * fed)
        matrix[str(dtype).removeprefix("torch.")] = flops / elapsed
    source, target = (torch.ones(copied, dtype=torch.uint8, device=device) for _ in range(2))
    bandwidth = 2 * copied / _median_seconds(lambda: target.copy_(source), device, rounds)
    name = torch.cuda.get_device_name() if device == "cuda" else f"this machine, {torch.get_num_threads()} threads"
    how = f"measured: products of {rows} rows at the sizes of the config, copies of {copied >> 20} MiB"
    return Machine(name, matrix, bandwidth, device, f"{how}, torch {torch.__version__}")


def _median_seconds(call: Callable[[], object], device: str, rounds: int) -> float:
    taken = []
    for number in range(rounds + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if number:  # the first one warms up
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken)
