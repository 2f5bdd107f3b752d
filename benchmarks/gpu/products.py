"""The matrix products of the model's blocks alone: bf16, fp8 and int8, bare, and as layers that round their inputs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks._gpu import alternate_kernels, multiplies, why
from benchmarks.gpu.scene import Scene
from ideoflow.ops.quantized_linear import Float8Linear, Int8Linear
from ideoflow.ops.rows import quantize_rows

TOKENS = (1224, 4096, 4596)


@torch.no_grad()
def products(scene: Scene) -> None:
    """TFLOP/s of each product at the tokens of pictures of 512 and 1024 pixels."""
    sizes = scene.sizes()
    width, inner = sizes.hidden, sizes.intermediate_size
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "w1 and w3": (width, 2 * inner), "w2": (inner, width)}
    results: list[dict[str, Any]] = []
    pairs = [(tokens, name) for tokens in ((64,) if scene.tiny else TOKENS) for name in shapes]
    for tokens, name in scene.in_time(pairs):
        rows, columns = shapes[name]
        calls = sides(tokens, rows, columns, scene.device)
        medians, failed = {}, {}
        for side, call in calls.items():
            try:
                seconds = alternate_kernels({side: call}, 2 if scene.tiny else 7, scene.device)[side]
                medians[side] = statistics.median(seconds)
            except Exception as error:
                failed[side] = why(error)
        flops = 2 * tokens * rows * columns
        rates = {side: flops / value for side, value in medians.items()}
        results.append({"product": name, "tokens": tokens, "flops_per_second": rates, "failed": failed})
        scene.tell({"results": results}, summed(results))


def sides(tokens: int, rows: int, columns: int, device: str) -> dict[str, Callable[[], object]]:
    """The ways to compute one product that this device has."""
    x = torch.randn(tokens, rows, device=device, dtype=torch.bfloat16)
    linear = nn.Linear(rows, columns, bias=False, device=device, dtype=torch.bfloat16)
    made: dict[str, Callable[[], object]] = {"bf16": partial(F.linear, x, linear.weight)}
    for kind, layer, storage in (("fp8", Float8Linear, torch.float8_e4m3fn), ("int8", Int8Linear, torch.int8)):
        if not multiplies(kind, device):
            continue
        made[f"{kind}, layer"] = partial(layer.from_linear(linear), x)
        if device == "cuda":
            (left, left_scale), (right, right_scale) = (quantize_rows(one, storage) for one in (x, linear.weight))
            if kind == "fp8":
                scales = {"scale_a": left_scale.view(-1, 1), "scale_b": right_scale.view(1, -1)}
                made["fp8, bare"] = partial(torch._scaled_mm, left, right.t(), **scales, out_dtype=torch.bfloat16)
            else:
                made["int8, bare, int32 out"] = partial(torch._int_mm, left, right.t())
    return made


def summed(results: list[dict[str, Any]]) -> list[str]:
    """A line for each number of tokens."""
    lines = []
    for tokens in dict.fromkeys(one["tokens"] for one in results):
        own = [one["flops_per_second"] for one in results if one["tokens"] == tokens]
        names = dict.fromkeys(side for rates in own for side in rates)
        mean = {side: statistics.harmonic_mean([rates[side] for rates in own if side in rates]) for side in names}
        lines.append(
            f"{tokens} tokens, TFLOP/s: " + ", ".join(f"{side} {rate / 1e12:.4g}" for side, rate in mean.items())
        )
    return lines
