"""One guided step of a scaled-down model: ours, the peer's as its pipeline takes it, and the peer's with less padding.

Run as `python -m benchmarks.step`. The sides alternate in one process; every side's velocities are compared first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from torch import Tensor

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.engine import Denoiser, Request
from ideoflow.packing import (
    IMAGE_POSITION_OFFSET,
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
)

GUIDANCE = 7.0
TIME = 0.375  # the same number in every type
CONFIG = dict(
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


def alternate(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, one call of each in turn, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            begun = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def machine() -> dict[str, object]:
    """Where a figure was measured."""
    model = [line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")]
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


@torch.no_grad()
def measure(dtype: torch.dtype, pixels: int, text: int, rounds: int) -> dict[str, object]:
    """Medians of one guided step of each side, their ratios to ours, and how far the velocities are apart."""
    torch.manual_seed(0)
    ours = [Ideogram4Transformer2DModel(**CONFIG).eval() for _ in range(2)]
    peers = [diffusers.Ideogram4Transformer2DModel(**CONFIG).eval() for _ in range(2)]
    for mine, theirs in zip(ours, peers, strict=True):
        theirs.load_state_dict(mine.state_dict())
        mine.to(dtype), theirs.to(dtype)
    grid = (pixels // 16, pixels // 16)
    features = torch.randn(text, CONFIG["llm_features_dim"]).to(dtype)  # type: ignore[call-overload]
    latents = torch.randn(grid[0] * grid[1], 128).to(dtype)
    steps: dict[str, Callable[[Tensor], Tensor]] = {
        "ideoflow": OurStep(ours, features, grid),
        "diffusers": PeerStep(peers, features, grid, max_text=2048),
        "diffusers, max_sequence_length=caption": PeerStep(peers, features, grid, max_text=text),
    }
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--pixels", type=int, default=512, help="side of the picture")
    parser.add_argument("--text", type=int, default=200, help="tokens of the caption")
    parser.add_argument("--rounds", type=int, default=7, help="counted calls of each side")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step-cpu.json"))
    options = parser.parse_args()
    results = [measure(getattr(torch, d), options.pixels, options.text, options.rounds) for d in options.dtype]
    report = {"benchmark": "step", "config": CONFIG, "machine": machine(), "results": results}
    text = json.dumps(report, indent=1)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
