"""Attention alone: on a GPU every backend at the full model's shapes, on a CPU torch's kernel against plain products.

Run as `python -m benchmarks.attention`. All results are compared with float64 first. On a CPU, where the plain products
win decides the limits in `ideoflow.ops.cpu_attention`. On a GPU, and on a CPU with `--backends`, the backends are
those that `diffusers` has by name, called once for segments of equal length, and kernels for ragged streams; one that
cannot run, or is wrong, is told with its reason. "ideoflow" is what our processor takes when nothing is set.
"""

from __future__ import annotations

from benchmarks._gpu import default_device
from benchmarks._measure import machine, make_parser, write
from benchmarks.attention import backends, cpu


def main() -> None:
    """Measure, print, and write the figures."""
    parser = make_parser(__doc__, rounds=9)
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096], help="tokens of the segment, on a CPU"
    )
    parser.add_argument("--backends", action="store_true", help="compare the backends on a CPU too")
    parser.add_argument("--tiny", action="store_true", help="a few short heads, to see that the backends are called")
    options = parser.parse_args()
    device = default_device()
    report: dict[str, object] = {"benchmark": "attention", "machine": machine()}
    if device == "cpu" and not options.backends:
        report["results"] = cpu.compare(options.lengths, options.rounds)
        write(report, options.out)
        return
    heads, head_dim = (2, 32) if options.tiny else (backends.HEADS, backends.HEAD_DIM)
    results: list[dict[str, object]] = []
    report |= {"heads": heads, "head_dim": head_dim, "results": results}
    for shape in backends.TINY_SHAPES if options.tiny else backends.SHAPES:
        figures = backends.measure(shape, heads, head_dim, options.rounds, device)
        results.append(figures)
        backends.show(figures)
        report["fastest"] = backends.fastest(results)
        write(report, options.out)


if __name__ == "__main__":
    main()
