"""The matrix products of a scaled-down block on this processor: torch's own float32 product against oneDNN's.

Run as `python -m benchmarks.products`. Both are compared with float64 first, then timed in turn, forward and backward.
"""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._measure import alternate, machine, make_parser, publish
from ideoflow.ops.linear import ONEDNN_IS_FASTER, _OneDnnProduct

TOKENS = 1224
SHAPES = {"query": (1024, 1024), "feed-forward in": (1024, 2736), "feed-forward out": (2736, 1024)}


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    return _OneDnnProduct.apply(x, weight, None)


def measure(rows: int, inner: int, outer: int, rounds: int) -> dict[str, object]:
    """GFLOP/s of each side, forward and backward together, and their largest errors relative to the largest value."""
    torch.manual_seed(0)
    x, weight = torch.randn(rows, inner, requires_grad=True), torch.randn(outer, inner, requires_grad=True)
    upstream = torch.randn(rows, outer)
    exact = F.linear(x.double(), weight.double())
    sides = {"torch": F.linear, "oneDNN": onednn}
    errors = {
        name: float((side(x, weight) - exact).detach().abs().max() / exact.detach().abs().max())
        for name, side in sides.items()
    }

    def forward(side) -> None:
        with torch.no_grad():
            side(x, weight)

    def both(side) -> None:
        torch.autograd.grad(side(x, weight), (x, weight), upstream)

    figures: dict[str, object] = {"relative_error": errors}
    for name, call, products in (("forward", forward, 1), ("forward and backward", both, 3)):
        seconds = alternate({key: lambda s=side, c=call: c(s) for key, side in sides.items()}, rounds)  # type: ignore[misc]
        flops = products * 2 * rows * inner * outer
        figures[name] = {key: flops / statistics.median(values) / 1e9 for key, values in seconds.items()}
    return figures


def main() -> None:
    """Measure, print, and write the figures."""
    parser = make_parser(__doc__, rounds=15)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="rows of the products (%(default)s)")
    options = parser.parse_args()
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not torch.backends.mkldnn.is_available():
        print("this build of torch has no oneDNN: nothing to compare")
        return
    results = {name: measure(options.tokens, *shape, rounds=options.rounds) for name, shape in SHAPES.items()}
    report = {"benchmark": "products", "machine": machine(), "onednn_is_used": ONEDNN_IS_FASTER, "gflops": results}
    publish(report, options.out)


if __name__ == "__main__":
    main()
