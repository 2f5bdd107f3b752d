"""The full 9.3 B model with random weights on a GPU, ours and the peer's: sizes, captions, batches, steps and pictures.

Run as `python -m benchmarks.full` where there is a GPU of 80 GB or more. Pictures of 512, 1024 and 2048 pixels,
captions of 200, 500 and 1500 tokens, one and four at once: a guided step of each side in turn, and, where a round of
all sides takes two minutes at most, whole pictures of 20 steps, with what ours does once for a picture. The sides of a
phase share the weights and are compared first: in bf16 ours, the same compiled, the peer as it comes, with its captions
padded no longer than they are ("trimmed"), and that compiled; then ours in bf16 beside fp8, and beside int8. What a
GPU cannot do, or has no memory for, is told and left out.

Beside the seconds stand the peak of memory beyond weights and inputs, and the FLOP/s achieved, of the products that a
side computes (`benchmarks.roofline`), over what this GPU reaches in one large product just before. At the end stand the
bars, at 1024 pixels, one picture at once.

Figures are written after each case: a run that is stopped keeps what it has, and `--resume` goes on from there. The
cases of the bars come first. The exit status is 1 if a side failed, but for want of memory, 3 if time was short, and 4
if nothing was measured, because there is no GPU.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

import torch

from benchmarks._gpu import default_device, free
from benchmarks._measure import machine, make_parser
from benchmarks.full.bars import bars, table
from benchmarks.full.cases import (
    BAR_CASES,
    BAR_PIXELS,
    OTHER_CASES,
    TINY_BAR_CASES,
    TINY_OTHER_CASES,
    TINY_PIXELS,
    Case,
)
from benchmarks.full.measure import Effort, load, measure
from benchmarks.full.models import TINY, Models
from benchmarks.full.report import Report, broken
from benchmarks.full.sides import PHASES, sides_of
from benchmarks.roofline import Config
from ideoflow import Ideogram4Transformer2DModel

NOTHING = 4  # exit status where nothing was measured


def parse() -> tuple[Namespace, ArgumentParser]:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=20, help="of a picture (%(default)s)")
    parser.add_argument(
        "--case-seconds", type=float, default=120, help="fewer rounds where they would take longer (%(default)s)"
    )
    parser.add_argument(
        "--picture-seconds",
        type=float,
        default=120,
        help="whole pictures where a round of all sides takes less (%(default)s)",
    )
    parser.add_argument("--minutes", type=float, help="begin no case after so long")
    parser.add_argument("--resume", action="store_true", help="go on from what the file of --out holds")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled sides out")
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers, on any device")
    options = parser.parse_args()
    if options.rounds < 1 or options.steps < 1:
        parser.error("--rounds and --steps must be at least 1")
    return options, parser


def show(phase: str, case: Case, figures: dict[str, Any]) -> None:
    """Print one case."""
    rates = ", ".join(f"{p} {rate / 1e12:.4g}" for p, rate in figures["matrix_flops_per_second"].items())
    print(f"\n{phase}: {case.pixels} pixels, caption of {case.caption_tokens}, batch {case.batch}; TFLOP/s {rates}")
    for name, side in figures["sides"].items():
        if "seconds" not in side:
            print(f"  {name:29} {side.get('failed')}")
            continue
        picture = f"{side['picture_seconds']:9.3f} s" if "picture_seconds" in side else f"{'':11}"
        print(
            f"  {name:29}{1e3 * side['seconds']:10.2f} ms {side['times_first'] or 0:6.2f}x {picture}"
            f" {side['peak_bytes'] / 1e9:8.2f} GB {side['share_of_matrix_rate']:6.1%}  differs {side['difference']:.1e}"
            + (f"  {side['failed']}" if "failed" in side else ""),
            flush=True,
        )


def run(options: Namespace, report: Report, models: Models, sizes: Config) -> int:
    """Measure what the report does not have yet; how many cases were left for want of time."""
    chapters = (TINY_BAR_CASES, TINY_OTHER_CASES) if options.tiny else (BAR_CASES, OTHER_CASES)
    pixels = TINY_PIXELS if options.tiny else BAR_PIXELS
    effort = Effort(
        options.rounds, options.case_seconds, options.picture_seconds, options.steps, 64 if options.tiny else 8192
    )
    begun, left = time.perf_counter(), 0
    for cases in chapters:
        for phase in PHASES:
            sides = sides_of(phase, models.device, not options.no_compile)
            todo = [case for case in cases if not report.has(phase, case)]
            if len({side.precision for side in sides}) == 1 and phase != PHASES[0]:
                print(f"\n{phase}: this GPU has no such products")
                continue
            torch.compiler.reset()
            loaded = {side.name: load(side, models) for side in sides} if todo else {}
            for case in todo:
                if options.minutes is not None and time.perf_counter() - begun > 60 * options.minutes:
                    left += 1
                    continue
                figures = measure(sides, loaded, case, sizes, models.device, effort)
                report.add(phase, case, figures, pixels)
                show(phase, case, figures)
            loaded.clear()
            models.forget_quantized()
            free()
    print("\n" + table(bars(report.results, pixels)))
    return left


def main() -> None:
    """Measure all cases, print, and write after each."""
    options, parser = parse()
    device = default_device()
    if device == "cpu" and not options.tiny:
        print(
            "benchmarks.full: nothing was measured: there is no GPU here, and the full model needs one. Try --tiny, or"
            " python -m benchmarks.step.",
            file=sys.stderr,
        )
        raise SystemExit(NOTHING)
    config = TINY if options.tiny else {}
    with torch.device("meta"):
        sizes = Config.of(Ideogram4Transformer2DModel(**config).config)
    names = [side.name for phase in PHASES for side in sides_of(phase, device, not options.no_compile)]
    head = {
        "benchmark": "full",
        "machine": machine(),
        "config": asdict(sizes),
        "steps": options.steps,
        "sides": list(dict.fromkeys(names)),
    }
    report = Report(head, options.out, options.resume, parser)
    print(json.dumps(head["machine"]))
    torch._dynamo.config.recompile_limit = 64  # several models lie in this process, each with a few layouts
    left = run(options, report, Models(config, device), sizes)
    failed = broken(report.results)
    if failed:
        print("\n".join(["these sides failed:", *failed]))
    if left:
        print(f"{left} cases were left for want of time: --resume goes on")
    if left or failed:
        raise SystemExit(3 if left else 1)


if __name__ == "__main__":
    main()
