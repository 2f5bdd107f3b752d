"""One guided step of the full 9.3 B model with random weights on a GPU: ours and the peer's, sizes and captions.

Run as `python -m benchmarks.full` where there is a GPU of 80 GB or more. Both sides share the same weights; they
alternate, and their velocities are compared first. Beside the seconds stand the FLOP/s achieved, of the products that
ours needs (`benchmarks.roofline`), over what this device reaches in one large product. `--tiny` runs the same on any
machine, with a model too small to mean anything.
"""

from __future__ import annotations

import copy
import gc
import json
import statistics
import time
from collections.abc import Callable

import diffusers
import torch
from torch import Tensor

from benchmarks._measure import machine, make_parser, write
from benchmarks.roofline import IMPLEMENTATIONS, Config, Sample, count, work_of
from benchmarks.step import OurStep, PeerStep
from ideoflow import Ideogram4Transformer2DModel
from ideoflow.model.transformer import Context

TINY = dict(
    in_channels=128,
    num_layers=2,
    attention_head_dim=32,
    num_attention_heads=2,
    intermediate_size=64,
    adaln_dim=16,
    llm_features_dim=26,
    mrope_section=(6, 5, 5),
)
CASES = ((512, 200, 1), (1024, 200, 1), (1024, 500, 1), (1024, 500, 4), (1024, 1500, 1), (2048, 500, 1))
TINY_CASES = ((64, 5, 1), (64, 7, 2))


class OurSteps(OurStep):
    """Ours for several equal requests in one stream."""

    def __init__(
        self, branches: list[Ideogram4Transformer2DModel], features: Tensor, grid: tuple[int, int], batch: int
    ):
        super().__init__(branches, features, grid)
        self.branches, self.batch = branches, batch
        self.packed = [Context.cat([context] * batch) for context in (self.conditional, self.unconditional) if context]

    def __call__(self, latents: Tensor) -> Tensor:
        """Guided velocities `(batch * tokens, channels)` of latents that all pictures share."""
        times = torch.full((self.batch,), 0.375, device=latents.device)
        many = latents.repeat(self.batch, 1)
        conditional, unconditional = (
            branch.velocity(many, times, context).float()
            for branch, context in zip(self.branches, self.packed, strict=True)
        )
        return 7.0 * conditional - 6.0 * unconditional


class PeerSteps(PeerStep):
    """The peer's for a batch of equal requests."""

    def __init__(self, branches: list[torch.nn.Module], features: Tensor, grid: tuple[int, int], text: int, batch: int):
        super().__init__(branches, features.cpu(), grid, text)
        self.batch = batch
        device = features.device
        names = ("features", "positions", "segments", "roles")
        for name in names:
            value = getattr(self, name).to(device)
            setattr(self, name, value.expand(batch, *value.shape[1:]))

    def __call__(self, latents: Tensor) -> Tensor:
        many = latents.expand(self.batch, *latents.shape)
        times = torch.full((self.batch,), 0.375, dtype=latents.dtype, device=latents.device)
        padded = torch.cat([many.new_zeros(self.batch, self.max_text, many.shape[2]), many], dim=1)
        layout = (self.positions, self.segments, self.roles)
        conditional = self.conditional(padded, times, self.features, *layout, return_dict=False)[0]
        image = tuple(x[:, self.max_text :] for x in layout)
        nothing = self.features.new_zeros(self.batch, latents.shape[0], self.features.shape[2])
        unconditional = self.unconditional(many, times, nothing, *image, return_dict=False)[0]
        velocity = 7.0 * conditional[:, self.max_text :].float() - 6.0 * unconditional.float()
        return velocity.flatten(0, 1)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def build(config: dict[str, object], device: str, dtype: torch.dtype) -> tuple[list, list]:
    """Ours and the peer's branches on the same weights, small random numbers."""
    ours, peers = [], []
    for seed in range(2):
        with torch.device("meta"):
            mine, theirs = Ideogram4Transformer2DModel(**config), diffusers.Ideogram4Transformer2DModel(**config)  # type: ignore[arg-type]
        mine = mine.to(dtype).to_empty(device=device).eval().requires_grad_(False)
        generator = torch.Generator(device).manual_seed(seed)
        for name, parameter in mine.named_parameters():
            if "norm" in name:
                torch.nn.init.ones_(parameter)
            else:
                parameter.normal_(0, 0.02, generator=generator)
        theirs.load_state_dict(mine.state_dict(), assign=True)
        # Its rotary frequencies are in no state dict, and have no values on the meta device: take a small twin's.
        small = dict(num_layers=1, num_attention_heads=1, intermediate_size=1, llm_features_dim=1)
        twin = diffusers.Ideogram4Transformer2DModel(**{**config, **small})  # type: ignore[arg-type]
        theirs.rotary_emb = twin.rotary_emb.to(device)
        ours.append(mine)
        peers.append(theirs.eval().requires_grad_(False))
    return ours, peers


def ceiling(device: str, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of one large product on this device."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        wait(device)
        begun = time.perf_counter()
        a @ b
        wait(device)
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(seconds[2:])


@torch.no_grad()
def measure(sides: dict[str, Callable[[Tensor], Tensor]], latents: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds and peak bytes beyond what was there, of each side in turn."""
    device = latents.device.type
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, float] = {}
    for number in range(rounds + 2):
        for name, call in sides.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            wait(device)
            begun = time.perf_counter()
            call(latents)
            wait(device)
            if number >= 2:
                seconds[name].append(time.perf_counter() - begun)
            if device == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated() - before
    return {
        name: {"seconds": statistics.median(values), "peak_bytes": peaks.get(name, 0.0)}
        for name, values in seconds.items()
    }


def main() -> None:
    """Measure all cases, print, and write after each."""
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers, on any device")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled sides out")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        print("There is no GPU here, and the full model needs one: try --tiny, or python -m benchmarks.step.")
        return
    config = TINY if options.tiny else {}
    dtype = torch.bfloat16
    ours, peers = build(config, device, dtype)
    sizes = Config.of(ours[0].config)
    peak = ceiling(device, dtype, 64 if options.tiny else 8192)
    hardware = machine() | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})
    report: dict[str, object] = {"benchmark": "full", "machine": hardware, "matrix_flops_per_second": peak}
    results: list[dict[str, object]] = []
    report["results"] = results
    if not options.no_compile:
        ours_compiled, peers_compiled = ([copy.copy(branch) for branch in side] for side in (ours, peers))
    for pixels, text, batch in TINY_CASES if options.tiny else CASES:
        side = pixels // 16
        features = torch.randn(text, sizes.llm_features_dim, device=device, dtype=dtype)
        latents = torch.randn(side * side, sizes.in_channels, device=device, dtype=dtype)
        padded = 16 if options.tiny else 2048
        sides: dict[str, Callable[[Tensor], Tensor]] = {
            "ideoflow": OurSteps(ours, features, (side, side), batch),
            "diffusers": PeerSteps(peers, features, (side, side), padded, batch),
            "diffusers, trimmed": PeerSteps(peers, features, (side, side), text, batch),
        }
        with torch.no_grad():
            velocities = {name: call(latents) for name, call in sides.items()}
        largest = velocities["diffusers"].abs().max()
        apart = {name: float((v - velocities["diffusers"]).abs().max() / largest) for name, v in velocities.items()}
        if not max(apart.values()) < 0.1:
            raise SystemExit(f"the sides do not agree: {apart}")
        figures = measure(sides, latents, options.rounds)
        samples = [Sample(text, side, side)] * batch
        by_name = {implementation.name: implementation for implementation in IMPLEMENTATIONS}
        flops = work_of(count(sizes, samples, by_name["ideoflow"], "bfloat16", device)).matrix_flops
        figures["ideoflow"]["share_of_matrix_rate"] = flops / figures["ideoflow"]["seconds"] / peak
        results.append(
            {"pixels": pixels, "caption_tokens": text, "batch": batch, "sides": figures, "relative_difference": apart}
        )
        print(json.dumps(results[-1]), flush=True)
        write(report, options.out)
        del sides, velocities
        gc.collect()
    if not options.no_compile:
        # Compiled last, since compiling a block changes it in place.
        for mine, theirs in zip(ours_compiled, peers_compiled, strict=True):
            mine.compile_blocks()
            theirs.compile_repeated_blocks()
        for pixels, text, batch in TINY_CASES[:1] if options.tiny else CASES[1:4]:
            side = pixels // 16
            features = torch.randn(text, sizes.llm_features_dim, device=device, dtype=dtype)
            latents = torch.randn(side * side, sizes.in_channels, device=device, dtype=dtype)
            sides = {
                "ideoflow, compiled": OurSteps(ours_compiled, features, (side, side), batch),
                "diffusers, trimmed, compile_repeated_blocks": PeerSteps(
                    peers_compiled, features, (side, side), text, batch
                ),
            }
            figures = measure(sides, latents, options.rounds)
            results.append({"pixels": pixels, "caption_tokens": text, "batch": batch, "sides": figures})
            print(json.dumps(results[-1]), flush=True)
            write(report, options.out)


if __name__ == "__main__":
    main()
