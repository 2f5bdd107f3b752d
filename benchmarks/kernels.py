"""The element-wise parts of a block, ours against plain torch and against torch.compile, in turn.

Run as `python -m benchmarks.kernels`: on CUDA Triton's kernels at the shapes of the full model, on a CPU its own at the
shapes of the scaled-down one. Before anything is timed, the results of all sides are compared with float64. Bytes are
those that must be moved: every argument read once, the result written once.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._gpu import CALLS, alternate_kernels, default_device
from benchmarks._measure import machine, make_parser, publish
from benchmarks.step import CONFIG
from ideoflow.ops import kernels
from ideoflow.ops.kernels import cpu_kernels
from ideoflow.ops.kernels import torch_kernels as plain
from ideoflow.ops.rms_norm import RMSNorm

EPS = 1e-5
NAMES = ("norm_scale", "gate_norm_add", "norm_rotate", "swiglu")


@dataclass(frozen=True)
class Sizes:
    """Of a block, and how many distinct times its stream has."""

    heads: int
    head_dim: int
    inner: int
    times: int

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim


FULL = Sizes(heads=18, head_dim=256, inner=12288, times=4)
SMALL = Sizes(CONFIG["num_attention_heads"], CONFIG["attention_head_dim"], CONFIG["intermediate_size"], times=1)


def arguments(name: str, sizes: Sizes, tokens: int, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    """Random arguments, views of wider products where the model's are."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    def norm(width: int) -> RMSNorm:
        made = RMSNorm(width, EPS, device=device, dtype=dtype)
        made.weight = nn.Parameter(draw(width), requires_grad=False)
        return made

    channels, head_dim = sizes.channels, sizes.head_dim
    modulation = draw(sizes.times, channels)
    row = torch.arange(tokens, device=device) * sizes.times // tokens if sizes.times > 1 else None
    if name == "norm_scale":
        return norm(channels), draw(tokens, channels), modulation, row
    if name == "gate_norm_add":
        return norm(channels), draw(tokens, channels), draw(tokens, channels), modulation, row
    if name == "norm_rotate":
        query = draw(tokens, 3 * channels)[:, :channels].unflatten(-1, (sizes.heads, head_dim))
        return norm(head_dim), query, draw(tokens, head_dim), draw(tokens, head_dim)
    return draw(tokens, 2 * sizes.inner).chunk(2, dim=-1)


@torch.no_grad()
def measure(
    name: str, sizes: Sizes, tokens: int, dtype: torch.dtype, rounds: int, device: str, compiled: bool = True
) -> dict[str, Any]:
    """Medians of each side, the bytes that it moves in a second, and how far it is from float64."""
    torch.manual_seed(0)
    given = arguments(name, sizes, tokens, dtype, device)
    own, module = ("triton", kernels) if device == "cuda" else ("cpu_kernels", cpu_kernels)
    functions = _sides(own, module, name, compiled)
    results = {side: function(*given) for side, function in functions.items()}
    if name in kernels._broken:
        raise SystemExit(f"`{name}` fell back to plain torch: there is nothing to compare.")

    some = slice(0, min(tokens, 256))  # float64 of all tokens is slow
    wide = [_wide(a) for a in given]
    exact = getattr(plain, name)(*(a[some] if isinstance(a, Tensor) and len(a) == tokens else a for a in wide))
    errors = {side: float((r[some] - exact).abs().max() / exact.abs().max()) for side, r in results.items()}
    for side, error in errors.items():
        if not error <= 4 * torch.finfo(dtype).eps:
            raise SystemExit(f"`{name}` by {side} is {error:.3g} of the largest value away from float64.")

    calls: dict[str, Callable[[], object]] = {side: lambda f=f: f(*given) for side, f in functions.items()}  # type: ignore[misc]
    median = {side: statistics.median(values) for side, values in alternate_kernels(calls, rounds, device).items()}
    moved = sum(t.nbytes for t in (*map(_weight, given), results[own]) if isinstance(t, Tensor))
    return {
        "kernel": name,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": tokens,
        "rounds": rounds,
        "bytes": moved,
        "median_seconds": median,
        "gigabytes_per_second": {side: moved / value / 1e9 for side, value in median.items()},
        f"times_{own}": {side: value / median[own] for side, value in median.items() if side != own},
        "error_of_largest": errors,
    }


def _weight(argument: Any) -> Any:
    return argument.weight if isinstance(argument, RMSNorm) else argument


def _wide(argument: Any) -> Any:
    """The same in float64."""
    if isinstance(argument, RMSNorm):
        return copy.deepcopy(argument).double()
    return argument.double() if isinstance(argument, Tensor) and argument.is_floating_point() else argument


def _sides(own: str, module: ModuleType, name: str, compiled: bool) -> dict[str, Callable[..., Tensor]]:
    sides = {own: getattr(module, name), "plain": getattr(plain, name)}
    if compiled:
        sides["torch.compile"] = torch.compile(getattr(plain, name), dynamic=False)
    return sides


def main() -> None:
    """Measure, print, and keep the figures as JSON if asked to."""
    device = default_device()
    on_gpu = device == "cuda"
    parser = make_parser(__doc__)
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=["float32", "bfloat16", "float16"],
        default=["bfloat16"] if on_gpu else ["float32", "bfloat16"],
    )
    parser.add_argument(
        "--tokens", nargs="+", type=int, default=[1024, 8192, 32768] if on_gpu else [1224], help="of the stream"
    )
    parser.add_argument("--rounds", type=int, default=21, help=f"of each side; of {CALLS} calls each on a GPU")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    hardware = machine()
    if on_gpu:
        if not kernels.available(torch.empty(1, device="cuda")):
            raise SystemExit("Triton cannot be imported: pip install triton")
        import triton

        hardware["triton"] = triton.__version__
    results = [
        measure(
            name,
            FULL if on_gpu else SMALL,
            tokens,
            getattr(torch, dtype),
            options.rounds,
            device,
            compiled=not options.no_compile,
        )
        for dtype in options.dtype
        for tokens in options.tokens
        for name in NAMES
    ]
    publish({"benchmark": "kernels", "machine": hardware, "results": results}, options.out)


if __name__ == "__main__":
    main()
