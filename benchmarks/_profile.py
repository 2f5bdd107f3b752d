"""Where a step's time goes on a CPU: products, attention, element-wise work, and the rate of the products."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest import mock

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from ideoflow.ops import cpu_attention

ATTENTION = "attention as products"
PRODUCTS = ("mm", "addmm", "bmm", "_linear_pointwise", "mkldnn_linear", "onednn_linear")


def shares(call: Callable[[], object], rounds: int = 3) -> dict[str, float]:
    """Shares of the time of `call` by part, and GFLOP/s of its products outside attention.

    Args:
        call: Is warmed up by one call, then profiled.
        rounds: Calls to profile.
    """
    plain = cpu_attention.attend

    def attend(*args: torch.Tensor) -> torch.Tensor:
        with record_function(ATTENTION):
            return plain(*args)

    with mock.patch.object(cpu_attention, "attend", attend):
        call()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            for _ in range(rounds):
                call()
    seconds = {"products": 0.0, "attention": 0.0, "element-wise and the rest": 0.0}
    flops = 0
    for event in profiler.events():
        part = _part(event)
        seconds[part] += event.self_cpu_time_total / 1e6
        if part == "products":
            flops += _flops(event)
    total = sum(seconds.values())
    found = {part: value / total for part, value in seconds.items()}
    return {**found, "products, GFLOP/s": flops / seconds["products"] / 1e9 if seconds["products"] else 0.0}


def _part(event: FunctionEvent) -> str:
    names = []
    at: FunctionEvent | None = event
    while at is not None:
        names.append(at.name)
        at = at.cpu_parent
    if any(name == ATTENTION or "scaled_dot_product" in name for name in names):
        return "attention"
    return "products" if names[0].split("::")[-1] in PRODUCTS else "element-wise and the rest"


def _flops(event: FunctionEvent) -> int:
    """Of a product that computes by itself; those that call another one have their work counted there."""
    name, shapes = event.name.split("::")[-1], [shape for shape in event.input_shapes if shape]
    if name in ("mm", "bmm"):
        return 2 * math.prod(shapes[0]) * shapes[1][-1]
    if name == "addmm":
        return 2 * math.prod(shapes[1]) * shapes[2][-1]
    if name == "_linear_pointwise":
        return 2 * math.prod(shapes[0]) * shapes[1][0]
    return 0
