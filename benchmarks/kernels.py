"""The element-wise kernels of a block on CUDA: Triton against plain torch and against torch.compile, in turn.

Run as `python -m benchmarks.kernels`; without a CUDA device it says so and measures nothing. Shapes are those of the
full model. Before anything is timed, the results of all sides are compared with float64. Bytes are those that must be
moved: every argument read once, the result written once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks._gpu import CALLS, alternate_kernels
from benchmarks._measure import machine, make_parser, publish
from ideoflow.model import kernels
from ideoflow.model.kernels import plain

CHANNELS, HEADS, HEAD_DIM, HIDDEN = 4608, 18, 256, 12288
EPS = 1e-5
TIMES = 4  # distinct times in the stream, so rows of modulation
NAMES = ("norm_scale", "gate_norm_add", "norm_rotate", "swiglu")


def arguments(name: str, tokens: int, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    """Random arguments, views of wider products where the model's are."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    modulation, row = draw(TIMES, CHANNELS), torch.arange(tokens, device=device) * TIMES // tokens
    if name == "norm_scale":
        return draw(tokens, CHANNELS), draw(CHANNELS), EPS, modulation, row
    if name == "gate_norm_add":
        return draw(tokens, CHANNELS), draw(tokens, CHANNELS), draw(CHANNELS), EPS, modulation, row
    if name == "norm_rotate":
        query = draw(tokens, 3 * CHANNELS)[:, :CHANNELS].unflatten(-1, (HEADS, HEAD_DIM))
        return query, draw(HEAD_DIM), EPS, draw(tokens, HEAD_DIM), draw(tokens, HEAD_DIM)
    return draw(tokens, 2 * HIDDEN).chunk(2, dim=-1)


@torch.no_grad()
def measure(name: str, tokens: int, dtype: torch.dtype, rounds: int, device: str = "cuda") -> dict[str, object]:
    """Medians of each side, the bytes that it moves in a second, and how far it is from float64."""
    torch.manual_seed(0)
    given = arguments(name, tokens, dtype, device)
    functions: dict[str, Callable[..., Tensor]] = {
        "triton": getattr(kernels, name),
        "plain": getattr(plain, name),
        "torch.compile": torch.compile(getattr(plain, name), dynamic=False),
    }
    results = {side: function(*given) for side, function in functions.items()}
    if name in kernels._broken:
        raise SystemExit(f"`{name}` fell back to plain torch: there is nothing to compare.")

    some = slice(0, min(tokens, 256))  # float64 of all tokens is slow
    wide = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in given]
    exact = getattr(plain, name)(*(a[some] if isinstance(a, Tensor) and len(a) == tokens else a for a in wide))
    errors = {side: float((r[some] - exact).abs().max() / exact.abs().max()) for side, r in results.items()}
    for side, error in errors.items():
        if not error <= 4 * torch.finfo(dtype).eps:
            raise SystemExit(f"`{name}` by {side} is {error:.3g} of the largest value away from float64.")

    seconds = alternate_kernels({side: lambda f=f: f(*given) for side, f in functions.items()}, rounds)  # type: ignore[misc]
    median = {side: statistics.median(values) for side, values in seconds.items()}
    moved = sum(t.numel() * t.element_size() for t in (*given, results["triton"]) if isinstance(t, Tensor))
    return {
        "kernel": name,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": tokens,
        "rounds": rounds,
        "bytes": moved,
        "median_seconds": median,
        "gigabytes_per_second": {side: moved / value / 1e9 for side, value in median.items()},
        "times_triton": {side: value / median["triton"] for side, value in median.items() if side != "triton"},
        "error_of_largest": errors,
    }


def main() -> None:
    """Measure, print, and keep the figures as JSON if asked to."""
    parser = make_parser(__doc__)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], default=["bfloat16"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 8192, 32768], help="lengths of the stream")
    parser.add_argument("--rounds", type=int, default=21, help=f"counted rounds of {CALLS} calls of each side")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("No CUDA device: the Triton kernels are not compiled here, and there is nothing to measure.")
        return
    dtypes = [getattr(torch, dtype) for dtype in options.dtype]
    if not kernels.available(torch.empty(1, device="cuda")):
        raise SystemExit("Triton cannot be imported: pip install triton")
    import triton

    report = {
        "benchmark": "kernels",
        "machine": {**machine(), "triton": triton.__version__},
        "results": [
            measure(name, tokens, dtype, options.rounds)
            for dtype in dtypes
            for tokens in options.tokens
            for name in NAMES
        ],
    }
    publish(report, options.out)


if __name__ == "__main__":
    main()
