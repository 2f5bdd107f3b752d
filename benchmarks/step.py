"""One guided step of a scaled-down model: ours and the peer's, as they come, with less padding, and compiled.

Run as `python -m benchmarks.step`. The sides alternate in one process; every side's velocities are compared first. The
memory of each is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks._measure import alternate, machine, make_parser, publish
from benchmarks.full.models import TINY
from ideoflow import Ideogram4Transformer2DModel
from ideoflow.engine import Denoiser, Request
from ideoflow.packing import (
    IMAGE_POSITION_OFFSET,
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
)

SIDES = ("ideoflow", "diffusers", "diffusers, max_sequence_length=caption")
Config = dict[str, Any]
GUIDANCE = 7.0
TIME = 0.375  # the same number in every type
CONFIG: Config = dict(
    num_layers=4,
    attention_head_dim=256,
    num_attention_heads=4,
    intermediate_size=2736,  # as wide beside 1024 as 12288 beside 4608, and like it a multiple of 16
    adaln_dim=512,
    llm_features_dim=13 * 1024,
)


class PeerStep:
    """The guided velocity as the peer's pipeline computes it, text padded on the left to `max_text` tokens."""

    def __init__(self, branches: list[torch.nn.Module], features: Tensor, grid: tuple[int, int], max_text: int) -> None:
        self.conditional, self.unconditional = branches
        rows, cols = grid
        text, image = len(features), rows * cols
        begin, total = max_text - text, max_text + image
        self.features = features.new_zeros(1, total, features.shape[1])
        self.features[0, begin:max_text] = features
        self.positions = torch.zeros(1, total, 3, dtype=torch.long)
        self.positions[0, begin:max_text] = torch.arange(text)[:, None]
        cells = torch.arange(image)
        self.positions[0, max_text:] = IMAGE_POSITION_OFFSET
        self.positions[0, max_text:, 1] += cells // cols
        self.positions[0, max_text:, 2] += cells % cols
        self.segments = torch.full((1, total), SEQUENCE_PADDING_INDICATOR)
        self.segments[0, begin:] = 1
        self.roles = torch.zeros(1, total, dtype=torch.long)
        self.roles[0, begin:max_text] = LLM_TOKEN_INDICATOR
        self.roles[0, max_text:] = OUTPUT_IMAGE_INDICATOR
        self.max_text = max_text

    def __call__(self, latents: Tensor) -> Tensor:
        time = torch.full((1,), TIME, dtype=latents.dtype)
        padded = torch.cat([latents.new_zeros(self.max_text, latents.shape[1]), latents])[None]
        layout = (self.positions, self.segments, self.roles)
        conditional = self.conditional(padded, time, self.features, *layout, return_dict=False)[0]
        image = tuple(x[:, self.max_text :] for x in layout)
        nothing = torch.zeros_like(self.features[:, self.max_text :])
        unconditional = self.unconditional(latents[None], time, nothing, *image, return_dict=False)[0]
        return GUIDANCE * conditional[0, self.max_text :].float() + (1 - GUIDANCE) * unconditional[0].float()


class OurStep:
    """The same through the engine, whose contexts are made once for a request, as they are in use."""

    def __init__(self, branches: list[Ideogram4Transformer2DModel], features: Tensor, grid: tuple[int, int]) -> None:
        self.denoiser = Denoiser(*branches)
        self.conditional = self.denoiser.prepare_conditional(features, grid)
        self.unconditional = self.denoiser.prepare_unconditional(grid)
        self.grid = grid

    def __call__(self, latents: Tensor) -> Tensor:
        request = Request(
            conditional=self.conditional,
            unconditional=self.unconditional,
            latents=latents.float(),
            sigmas=torch.tensor([1 - TIME, 0.0]),
            guidance=(GUIDANCE,),
            grid=self.grid,
            id="benchmark",
        )
        self.denoiser.step([request])
        return (request.latents - latents.float()) / (1 - TIME)  # the Euler step undone


def inputs(config: Config, dtype: torch.dtype, pixels: int, text: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Random text features and latents, and the grid."""
    grid = (pixels // 16, pixels // 16)
    features = torch.randn(text, config["llm_features_dim"]).to(dtype)
    return features, torch.randn(grid[0] * grid[1], 128).to(dtype), grid


@torch.no_grad()
def memory(side: str, config: Config, dtype: torch.dtype, pixels: int, text: int) -> int:
    """Bytes that a step of one side takes beyond the weights and inputs: growth of the peak resident memory."""
    torch.manual_seed(0)
    kind = Ideogram4Transformer2DModel if side == "ideoflow" else diffusers.Ideogram4Transformer2DModel
    branches = [kind(**config).eval().to(dtype) for _ in range(2)]
    features, latents, grid = inputs(config, dtype, pixels, text)
    if side != "ideoflow":
        step: Callable[[Tensor], Tensor] = PeerStep(branches, features, grid, 2048 if side == "diffusers" else text)
    else:
        step = OurStep(branches, features, grid)  # type: ignore[arg-type]
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what making the models took and let go would hide what the step takes
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step(latents)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 - resident


def memory_apart(side: str, options: argparse.Namespace, dtype: str) -> int:
    """`memory` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step", "--memory-of", side, "--dtype", dtype]
    command += ["--pixels", str(options.pixels), "--text", str(options.text), *["--tiny"] * options.tiny]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


@torch.no_grad()
def measure(
    config: Config, dtype: torch.dtype, pixels: int, text: int, rounds: int, compiled: bool
) -> dict[str, object]:
    """Medians of one guided step of each side, their ratios to ours, and how far the velocities are apart."""
    torch.manual_seed(0)
    ours = [Ideogram4Transformer2DModel(**config).eval() for _ in range(2)]
    peers = [diffusers.Ideogram4Transformer2DModel(**config).eval() for _ in range(2)]
    for mine, theirs in zip(ours, peers, strict=True):
        theirs.load_state_dict(mine.state_dict())
        mine.to(dtype), theirs.to(dtype)
    features, latents, grid = inputs(config, dtype, pixels, text)
    steps: dict[str, Callable[[Tensor], Tensor]] = {
        "ideoflow": OurStep(ours, features, grid),
        "diffusers": PeerStep(peers, features, grid, max_text=2048),
        "diffusers, max_sequence_length=caption": PeerStep(peers, features, grid, max_text=text),
    }
    if compiled:
        ours_fused, ours_compiled, peers_compiled = copy.deepcopy(ours), copy.deepcopy(ours), copy.deepcopy(peers)
        steps["ideoflow, fused"] = OurStep(ours_fused, features, grid)
        for fused, mine, theirs in zip(ours_fused, ours_compiled, peers_compiled, strict=True):
            fused.fuse_projections()
            mine.fuse_projections()
            mine.compile_blocks()  # what `pipe.compile` does
            theirs.compile_repeated_blocks()
        steps["ideoflow, compiled"] = OurStep(ours_compiled, features, grid)
        steps["diffusers, max_sequence_length=caption, compile_repeated_blocks"] = PeerStep(
            peers_compiled, features, grid, max_text=text
        )
    velocities = {name: step(latents) for name, step in steps.items()}
    largest = velocities["diffusers"].abs().max()
    seconds = alternate({name: lambda s=step: s(latents) for name, step in steps.items()}, rounds)  # type: ignore[misc]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "pixels": pixels,
        "caption_tokens": text,
        "rounds": rounds,
        "median_seconds": median,
        "times_ours": {name: value / median["ideoflow"] for name, value in median.items() if name != "ideoflow"},
        "relative_difference": {
            name: float((v - velocities["diffusers"]).abs().max() / largest) for name, v in velocities.items()
        },
    }


def main() -> None:
    """Measure, print, and keep the figures as JSON."""
    parser = make_parser(__doc__, rounds=7)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--pixels", type=int, default=512, help="side of the picture")
    parser.add_argument("--text", type=int, default=200, help="tokens of the caption")
    parser.add_argument("--tiny", action="store_true", help="a model of next to nothing, to see that it runs")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled sides out")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out, of each side in its own process")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = TINY if options.tiny else CONFIG
    if options.memory_of:
        print(memory(options.memory_of, config, getattr(torch, options.dtype[0]), options.pixels, options.text))
        return
    results = []
    for dtype in options.dtype:
        sizes = options.pixels, options.text, options.rounds
        figures = measure(config, getattr(torch, dtype), *sizes, compiled=not options.no_compile)
        if Path("/proc/self/clear_refs").exists() and not options.no_memory:
            figures["bytes_beyond_weights"] = {side: memory_apart(side, options, dtype) for side in SIDES}
        results.append(figures)
    report = {"benchmark": "step", "config": config, "machine": machine(), "results": results}
    publish(report, options.out)


if __name__ == "__main__":
    main()
