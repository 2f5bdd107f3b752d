"""Peak memory of encoding, two steps and decoding, beside what a plan of `ideoflow.fitting` estimates.

Run as `python -m benchmarks.memory`. Each case runs in a process of its own on a scaled-down pipeline with random
weights: two pictures, in float32, bfloat16 and int8, decoded whole and together after one pass a step, and in tiles
after two.

Compared are, for each phase, the plan's peak (weights and all that is alive beside them, without the reserve), and the
peak of the resident set (VmHWM, which is set back before each phase) less what was resident before the model was made,
when everything was imported and a small product and a small convolution had run. Beside it stands the peak of the bytes
that torch's operations gave out during the phase, counted operation by operation: what an operation takes for itself
inside is not in it, nor what the allocator keeps of freed memory. The C library's allocator keeps freed blocks below 32
MiB, as most here are, for which the plan has a term; in the full model most tensors are larger, and go back at once.

On a GPU, `--device cuda`, measured is the peak of what torch's allocator gave out; beside it, what it reserved for it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoTokenizer, Qwen3VLConfig

from benchmarks._gpu import wait
from benchmarks._measure import machine, target, write
from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.fitting import Plan, carry_out, plan
from ideoflow.pipeline.qwen3_vl import Qwen3VLModel
from ideoflow.presets import PRESETS

PICTURES, STEPS, CAPTION = 2, 2, "red heart " * 100
TEXT: dict[str, Any] = dict(
    vocab_size=32768,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=14,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=128,
    rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[24, 20, 20], mrope_interleaved=True),
)
TRANSFORMER: dict[str, Any] = dict(
    num_layers=8, num_attention_heads=4, intermediate_size=2736, adaln_dim=512, llm_features_dim=13 * 1024
)
AUTOENCODER: dict[str, Any] = dict(block_out_channels=(64, 128, 256, 256))
TAPS = tuple(range(13))


@dataclass(frozen=True)
class Case:
    """What is measured: the weights' type, whether blocks are in int8, and whether passes and decoding are split."""

    dtype: str
    quantize: str | None
    split: bool

    @property
    def name(self) -> str:
        split = "two passes, tiles" if self.split else "one pass, whole"
        return f"{self.dtype}{', int8' if self.quantize else ''}, {split}"


CASES = tuple(
    Case(dtype, quantize, split)
    for dtype, quantize in (("float32", None), ("bfloat16", None), ("bfloat16", "int8"))
    for split in (True, False)
)


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations give out, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _storage(tensor) not in self._known | given:
                storage = tensor.untyped_storage()
                self._known.add(key := _storage(tensor))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def make_pipeline(dtype: torch.dtype, small: bool = False) -> Ideogram4Pipeline:
    """A pipeline with random weights, made in its type so that nothing larger is ever there."""
    transformer, text = dict(TRANSFORMER), dict(TEXT)
    if small:
        transformer["num_layers"] = 2
        text["vocab_size"] = 4096
    kept, torch_default = torch.get_default_dtype(), torch.set_default_dtype
    torch_default(dtype)
    try:
        with torch.device("meta"):
            encoder = Qwen3VLModel(Qwen3VLConfig(text_config=text))
            branches = [Ideogram4Transformer2DModel(**transformer) for _ in range(2)]
            vae = AutoencoderKLFlux2(**AUTOENCODER)
    finally:
        torch_default(kept)
    for module in (encoder, *branches, vae):
        fill(module.to_empty(device="cpu").eval())
    tokenizer = AutoTokenizer.from_pretrained(sketch.path() / "tokenizer")
    scheduler = FlowMatchEulerDiscreteScheduler()
    return Ideogram4Pipeline(scheduler, vae, encoder, tokenizer, *branches, text_encoder_taps=TAPS)


def fill(module: nn.Module) -> None:
    """Random weights that keep signals finite."""
    drawn = 0.02 * torch.randn(
        2**16 - 1, generator=torch.Generator().manual_seed(0)
    )  # repeated: drawing all takes long
    for parameter in module.parameters():
        if parameter.ndim > 1:
            flat = parameter.data.view(-1)
            for begin in range(0, len(flat), len(drawn)):
                part = flat[begin : begin + len(drawn)]
                part.copy_(drawn[: len(part)])
        else:
            parameter.data.fill_(1.0)
    for buffer in module.buffers():
        buffer.fill_(1)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def _begin(device: str) -> None:
    """Give freed memory back, and let the peak start anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _now(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


@torch.no_grad()
def measure(case: Case, pixels: int, small: bool, device: str) -> dict[str, Any]:
    """Estimated and measured bytes of each phase of one case, in this process."""
    warnings.simplefilter("ignore")
    with torch.device(device):
        F.linear(torch.ones(64, 64), torch.ones(64, 64)), F.conv2d(torch.ones(1, 16, 8, 8), torch.ones(16, 16, 3, 3))
    _begin(device)
    baseline = _now(device)
    pipe = make_pipeline(getattr(torch, case.dtype), small)
    tokens = len(pipe.prompt_features(CAPTION)[0])
    made: Plan = plan(
        pipe, "1TB", (pixels, pixels), tokens, PICTURES, device, quantize=case.quantize, allow=(), steps=STEPS
    )
    if case.split:
        made = replace(made, per_pass=1, per_decode=1, tile=pixels // 2)
    carry_out(pipe, made, device)
    pipe.text_cache.clear()

    figures: dict[str, Any] = {}

    def phase(name: str, run: Callable[[], Any]) -> Any:
        _begin(device)
        with Alive() as alive:
            begun = time.perf_counter()
            result = run()
            wait(device)
        peak = made.peaks[name]
        figures[name] = {
            "estimated": peak.bytes,
            "measured": _peak(device) - baseline,
            **({"reserved": torch.cuda.max_memory_reserved()} if device == "cuda" else {}),
            "beyond_weights": sum(peak.others.values()),
            "given_out": alive.peak,
            "seconds": time.perf_counter() - begun,
        }
        return result

    generators = [torch.Generator().manual_seed(seed) for seed in range(PICTURES)]
    preset = PRESETS["V4_TURBO_12"].with_steps(STEPS)
    options = dict(size=(pixels, pixels), preset=preset, num_images_per_prompt=PICTURES, generator=generators)
    requests = phase("encode", lambda: pipe.make_requests(CAPTION, **options))
    engine = pipe.engine()
    phase("denoise", lambda: [engine.advance(requests) for _ in range(STEPS)])
    phase("decode", lambda: pipe.decode_requests(requests, "pil"))
    estimated, measured = (max(one[key] for one in figures.values()) for key in ("estimated", "measured"))
    return {
        "case": case.name,
        **asdict(case),
        "pixels": pixels,
        "caption_tokens": tokens,
        "weights": sum(made.weights.values()),
        "baseline": baseline,
        "phases": figures,
        "estimated": estimated,
        "measured": measured,
        "off": estimated / measured - 1,
    }


def measure_apart(case: Case, pixels: int, small: bool = False, device: str = "cpu") -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(asdict(case)), "--pixels", str(pixels)]
    command += ["--device", device]
    done = subprocess.run(command + ["--small"] * small, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print, and keep the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=512, help="side of the pictures, a multiple of 32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small", action="store_true", help="fewer layers and words, for a quick look")
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many of the cases, in order")
    parser.add_argument("--out", type=target, help="also write the figures as JSON")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(Case(**json.loads(options.case)), options.pixels, options.small, options.device)))
        return
    if options.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        parser.error("the peak of the resident set is read from /proc, which this system does not have")
    print(json.dumps(machine()))
    print(f"{'MB':36}{'weights':>8} | estimated, measured, off by | beyond the weights: estimated, given out by torch")
    results = []
    for case in CASES[: options.cases]:
        row = measure_apart(case, options.pixels, options.small, options.device)
        results.append(row)
        phases = row["phases"]
        beyond = ", ".join(
            f"{name} {one['beyond_weights'] / 1e6:.0f} {one['given_out'] / 1e6:.0f}" for name, one in phases.items()
        )
        ratios = ", ".join(f"{name} {one['estimated'] / one['measured'] - 1:+.1%}" for name, one in phases.items())
        print(
            f"{case.name:36}{row['weights'] / 1e6:8.0f} | {row['estimated'] / 1e6:.0f} {row['measured'] / 1e6:.0f}"
            f" {row['off']:+.1%} ({ratios}) | {beyond}",
            flush=True,
        )
        write({"benchmark": "memory", "machine": machine(), "device": options.device, "results": results}, options.out)


if __name__ == "__main__":
    main()
