"""Attention at the full model's shapes by every exact backend that this machine has, one segment and ragged streams."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _check_attention_backend_requirements,
    dispatch_attention_fn,
)
from torch import Tensor

from benchmarks._gpu import alternate_kernels, free, why
from ideoflow.ops.attention_backends import CANDIDATES, FARTHEST, distance, exact
from ideoflow.ops.ragged_attention import attend as ours
from ideoflow.packing import Bounds

HEADS, HEAD_DIM = 18, 256

Attend = Callable[[Tensor, Tensor, Tensor, Bounds], Tensor]  # thrice (tokens, heads, head_dim), to the same

RAGGED = (
    ("torch varlen", "torch.nn.attention.varlen", "varlen_attn"),
    ("flash-attn varlen", "flash_attn", "flash_attn_varlen_func"),
    ("flash-attn 3 varlen", "flash_attn_interface", "flash_attn_varlen_func"),
)


@dataclass(frozen=True)
class Shape:
    """A stream: the text and image tokens of each of its segments."""

    name: str
    samples: tuple[tuple[int, int], ...]

    def bounds(self, device: str) -> Bounds:
        """Where its segments begin and end."""
        lengths = tuple(sum(sample) for sample in self.samples)
        begins = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return Bounds.of(lengths, begins.to(device))

    @property
    def tokens(self) -> int:
        return sum(sum(sample) for sample in self.samples)

    @property
    def scores(self) -> int:
        """Pairs of a query and a key."""
        return sum(sum(sample) ** 2 for sample in self.samples)


SHAPES = (
    Shape("512 pixels", ((200, 1024),)),
    Shape("1024 pixels", ((500, 4096),)),
    Shape("2048 pixels", ((500, 16384),)),
    Shape("four alike", ((500, 4096),) * 4),
    Shape("ragged", ((120, 1024), (300, 2304), (500, 4096), (1500, 4096), (80, 9216))),
)
TINY_SHAPES = (Shape("one", ((3, 16),)), Shape("ragged", ((3, 16), (5, 24), (5, 24))))


def backends(shape: Shape) -> dict[str, Attend]:
    """Ways to attend in such a stream; whether this machine has them shows when they are called."""
    made: dict[str, Attend] = {"ideoflow": ours}
    for name in CANDIDATES:
        made[name] = _dispatched(name)
    made["flex, compiled"] = _compiled_flex()
    if len(shape.samples) > 1:
        for name, module, function in RAGGED:
            made[name] = _ragged(module, function)
    return made


def _dispatched(name: str) -> Attend:
    """A backend of diffusers by its name."""
    backend = AttentionBackendName(name)

    def attend(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds) -> Tensor:
        _check_attention_backend_requirements(backend)  # says what to install
        return _by_run(partial(dispatch_attention_fn, backend=backend), query, key, value, bounds)

    return attend


def _compiled_flex() -> Attend:
    """Torch's flex attention compiled, which diffusers calls uncompiled."""
    call = torch.compile(lambda *parts: dispatch_attention_fn(*parts, backend=AttentionBackendName.FLEX))
    return partial(_by_run, call)


def _by_run(call: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, bounds: Bounds) -> Tensor:
    """One call for segments of equal length that lie side by side, as our processor makes them."""
    attended, tokens = [], [run.segments * run.length for run in bounds.runs]
    for run, *parts in zip(bounds.runs, *(x.split(tokens) for x in (query, key, value)), strict=True):
        attended.append(call(*(x.unflatten(0, (run.segments, -1)) for x in parts)).flatten(0, 1))
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def _ragged(module: str, name: str) -> Attend:
    def attend(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds) -> Tensor:
        function = getattr(import_module(module), name)
        lengths = (bounds.cu_queries, bounds.cu_seqlens, bounds.most_queries, bounds.longest)
        out = function(query, key, value, *lengths)
        return out[0] if isinstance(out, tuple) else out

    return attend


@torch.no_grad()
def measure(shape: Shape, heads: int, head_dim: int, rounds: int, device: str) -> dict[str, Any]:
    """Milliseconds, TFLOP/s and error of each backend that runs and is right; of the others, what they failed from."""
    generator = torch.Generator(device).manual_seed(0)
    size, dtype = (shape.tokens, heads, head_dim), torch.bfloat16
    inputs = [torch.randn(size, generator=generator, device=device).to(dtype) for _ in range(3)]
    bounds = shape.bounds(device)
    expected = exact(*inputs, bounds)
    figures: dict[str, dict[str, Any]] = {}
    right: dict[str, Callable[[], object]] = {}
    for name, attend in backends(shape).items():
        try:
            out = attend(*inputs, bounds)
            error = distance(out, expected)
        except Exception as failure:
            figures[name] = {"failed": why(failure)}
        else:
            figures[name] = {"error": error}
            if error <= FARTHEST[dtype]:
                right[name] = lambda attend=attend: attend(*inputs, bounds)  # type: ignore[misc]
            else:
                figures[name]["failed"] = f"it is {error:.3g} of the largest value away from float64"
        out = None
        free()
    flops = 4 * shape.scores * heads * head_dim
    for name, values in alternate_kernels(right, rounds, device).items():
        seconds = statistics.median(values)
        figures[name] |= {"milliseconds": 1e3 * seconds, "tflops_per_second": flops / seconds / 1e12}
    return {"shape": shape.name, "samples": shape.samples, "flops": flops, "backends": figures}


def show(figures: dict[str, Any]) -> None:
    """Print one shape."""
    print(f"\n{figures['shape']}: {', '.join(f'{text} + {image}' for text, image in figures['samples'])} tokens")
    for name, one in figures["backends"].items():
        if "milliseconds" in one:
            print(
                f"  {name:20}{one['milliseconds']:10.3f} ms {one['tflops_per_second']:8.1f} TFLOP/s"
                f"  error {one['error']:.1e}"
            )
        else:
            print(f"  {name:20}{one['failed']}", flush=True)


def fastest(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The name of the fastest backend at each shape."""
    return {
        one["shape"]: min(
            (name for name, figures in one["backends"].items() if "milliseconds" in figures),
            key=lambda name, backends=one["backends"]: backends[name]["milliseconds"],  # type: ignore[misc]
        )
        for one in results
    }
