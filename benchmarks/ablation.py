"""What each part of the step's speed is worth on this processor: the step of `benchmarks.step`, parts added one by one.

Run as `python -m benchmarks.ablation`. The stages alternate in one process; all velocities are compared first.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from benchmarks.step import CONFIG, OurStep, alternate, inputs, machine
from ideoflow import Ideogram4Transformer2DModel
from ideoflow.model import cpu_attention, linear
from ideoflow.packing import Layout

STAGES = (
    "no padding, nothing twice",
    "+ oneDNN products",
    "+ attention as products",
    "+ short last block",
    "+ compiled",
)


@contextlib.contextmanager
def stage(number: int) -> Iterator[None]:
    """Leave out the parts that come after a stage."""
    with contextlib.ExitStack() as stack:
        if number < 1:
            stack.enter_context(mock.patch.object(linear, "ONEDNN_IS_FASTER", False))
        if number < 2:
            stack.enter_context(mock.patch.object(cpu_attention, "FASTER", {}))
        if number < 3:
            stack.enter_context(mock.patch.object(Layout, "image_bounds", property(lambda layout: layout.bounds)))
        yield


class WholeLastBlock(OurStep):
    """Ours, with the last block computing text tokens too: they are dropped before the final layer."""

    def __init__(self, branches: list[Ideogram4Transformer2DModel], *inputs: object) -> None:
        super().__init__(branches, *inputs)  # type: ignore[arg-type]
        for branch in branches:
            plain = branch.final_layer.forward

            def forward(states: Tensor, *rest: object, plain=plain) -> Tensor:
                image = self.conditional.layout.image
                return plain(states if len(states) == len(image) else states.index_select(0, image), *rest)

            branch.final_layer.forward = forward


@torch.no_grad()
def measure(dtype: torch.dtype, pixels: int, text: int, rounds: int) -> dict[str, object]:
    """Median seconds of each stage, and how far its velocities are from the first's."""
    torch.manual_seed(0)
    branches = [Ideogram4Transformer2DModel(**CONFIG).eval().to(dtype) for _ in range(2)]
    features, latents, grid = inputs(dtype, pixels, text)
    whole, short, compiled = (copy.deepcopy(branches) for _ in range(3))
    for branch in compiled:
        branch.compile_blocks()
    steps = [WholeLastBlock(whole, features, grid)] * 3
    steps += [OurStep(short, features, grid), OurStep(compiled, features, grid)]  # type: ignore[list-item]

    def call(number: int) -> Tensor:
        with stage(number):
            return steps[number](latents)

    velocities = [call(number) for number in range(len(STAGES))]
    largest = velocities[0].abs().max()
    sides: dict[str, Callable[[], object]] = {name: lambda i=i: call(i) for i, name in enumerate(STAGES)}  # type: ignore[misc]
    median = {name: statistics.median(values) for name, values in alternate(sides, rounds).items()}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "median_seconds": median,
        "relative_difference": {
            name: float((v - velocities[0]).abs().max() / largest) for name, v in zip(STAGES, velocities, strict=True)
        },
    }


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--pixels", type=int, default=512, help="side of the picture")
    parser.add_argument("--text", type=int, default=200, help="tokens of the caption")
    parser.add_argument("--rounds", type=int, default=5, help="counted calls of each stage")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    results = [measure(getattr(torch, d), options.pixels, options.text, options.rounds) for d in options.dtype]
    report = {"benchmark": "ablation", "config": CONFIG, "machine": machine(), "results": results}
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
