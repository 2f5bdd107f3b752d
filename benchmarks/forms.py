"""What each form of checkpoint does to pictures: the bundled model's transformers stored in it, beside float32.

Run as `python -m benchmarks.forms`. The linear layers of the blocks are stored in the form, everything else in float32.
All is computed in float32, from the same captions and noise. The error of a layer is that of its output for normal
random input, relative to the output's norm. Bits are those of the file for each weight of these layers, scales and
header included. Q4_K's blocks come from a plain encoder: llama.cpp's, which searches, does better.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import TorchAoConfig
from safetensors.torch import load_file
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints import open_checkpoint
from tests.checkpoints.forms import Weights, float8_rows, float8_scaled, is_linear, load_transformer, write
from tests.checkpoints.forms_low_bit import blocks_only, comfy_int8, four_bits, note_tensor, nvfp4, write_gguf
from tools.sketch.score import held_out

from ._measure import target
from ._measure import write as write_report
from .precision import draw, psnr
from .step import machine

BRANCHES = ("transformer", "unconditional_transformer")
# How a file of each form is written.
WRITERS: dict[str, Callable[[Path, Weights], Path]] = {
    "bf16": lambda file, weights: write(file, in_bfloat16(weights)),
    "fp8, a scale a row": lambda file, weights: write(file, exact_rest(float8_rows(weights, blocks_only), weights)),
    "fp8, one scale": lambda file, weights: write(file, exact_rest(float8_scaled(weights, old=False), weights)),
    "ComfyUI int8, a scale a row": lambda file, weights: write(file, in_parts(weights, int8)),
    "ComfyUI int8, rotated": lambda file, weights: write(file, in_parts(weights, rotated_int8)),
    "NVFP4": lambda file, weights: write(file, in_parts(weights, comfy_nvfp4)),
    "nf4": lambda file, weights: write(file, four_bits(weights, dtype=torch.float32)),
    "nf4, nested scales": lambda file, weights: write(file, four_bits(weights, dtype=torch.float32, nested=True)),
    "GGUF Q8_0": lambda file, weights: write_gguf(file, weights, "Q8_0"),
    "GGUF Q4_K": lambda file, weights: write_gguf(file, weights, "Q4_K", reshape=True),
}
# What quantizes on the fly.
CONFIGS: dict[str, Callable[[], Any]] = {
    "torchao int8": Int8WeightOnlyConfig,
    "torchao fp8": Float8WeightOnlyConfig,
    "torchao int4, groups of 32": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
}
OUTSIDE = ["input_proj", "llm_cond_proj", "t_embedding", "adaln_proj", "final_layer"]
SIDES = (*WRITERS, *CONFIGS)
Model = Ideogram4Transformer2DModel


def is_stored(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is one that forms differ in."""
    return blocks_only(name) and is_linear(name, tensor)


def in_bfloat16(weights: Weights) -> Weights:
    """The blocks' weights in bfloat16."""
    return {name: one.to(torch.bfloat16) if is_stored(name, one) else one for name, one in weights.items()}


def in_parts(weights: Weights, parts_of: Callable[[torch.Tensor], Weights]) -> Weights:
    """The blocks' weights in several tensors each, and everything else as it was."""
    stored = {name: one for name, one in weights.items() if not is_stored(name, one)}
    for name in weights.keys() - stored.keys():
        layer = name.removesuffix(".weight")
        stored |= {f"{layer}.{part}": tensor for part, tensor in parts_of(weights[name]).items()}
    return stored


def int8(tensor: torch.Tensor) -> Weights:
    """ComfyUI's, as it is."""
    return comfy_int8(tensor, group=None, each_row=True)


def rotated_int8(tensor: torch.Tensor) -> Weights:
    """ComfyUI's, rotated in the largest groups that divide the width."""
    return comfy_int8(
        tensor, group=max(size for size in (4, 16, 64, 256) if tensor.shape[1] % size == 0), each_row=True
    )


def comfy_nvfp4(tensor: torch.Tensor) -> Weights:
    """In ComfyUI's order."""
    return nvfp4(tensor, comfy=True) | {"comfy_quant": note_tensor({"format": "nvfp4"})}


def exact_rest(stored: Weights, weights: Weights) -> Weights:
    """What is stored in a form, with everything else as it was."""
    return stored | {name: one for name, one in weights.items() if not is_stored(name, one)}


def float32_weights(branch: str) -> Weights:
    """Of the bundled model."""
    file = next((sketch.path() / branch).glob("*.safetensors"))
    return {name: tensor.float() for name, tensor in load_file(file).items()}


def load(side: str, branch: str, folder: Path) -> tuple[Model, int]:
    """The bundled model's transformer in a form, and the bytes of its file."""
    original = sketch.path() / branch
    if side in CONFIGS:
        quantization = TorchAoConfig(CONFIGS[side](), modules_to_not_convert=list(OUTSIDE))
        model = load_transformer(open_checkpoint(original), quantization_config=quantization)
        model.save_pretrained(folder / branch)
        return model, sum(file.stat().st_size for file in (folder / branch).glob("*.safetensors"))
    weights = float32_weights(branch)
    file = WRITERS[side](folder / f"{branch}.file", weights)
    return load_transformer(open_checkpoint(file, config=original)), file.stat().st_size


@torch.no_grad()
def layer_errors(model: Model, reference: Model) -> list[float]:
    """Relative error of the output of each linear layer of the blocks."""
    generator = torch.Generator().manual_seed(0)
    errors = []
    for name, layer in reference.named_modules():
        if isinstance(layer, nn.Linear) and name.startswith("layers."):
            x = torch.randn(256, layer.in_features, generator=generator)
            wanted = layer(x)
            errors.append(float((model.get_submodule(name)(x) - wanted).norm() / wanted.norm()))
    return errors


def measure(sides: list[str], pictures: int, steps: int) -> list[dict[str, Any]]:
    """A row for each form."""
    samples = held_out(pictures)
    pipeline: Ideogram4Pipeline = sketch.load()
    pipeline.set_progress_bar_config(disable=True)
    reference = pipeline.transformer
    wanted = draw(pipeline, samples, 0, steps)
    weights = float32_weights("transformer")
    count = sum(one.numel() for name, one in weights.items() if is_stored(name, one))
    rest = sum(one.numel() * 4 for name, one in weights.items() if not is_stored(name, one))
    rows = []
    for side in sides:
        with tempfile.TemporaryDirectory() as folder:
            loaded = {branch: load(side, branch, Path(folder)) for branch in BRANCHES}
            pipeline.register_modules(**{branch: model for branch, (model, _) in loaded.items()})
            drawn = draw(pipeline, samples, 0, steps)
            errors = layer_errors(loaded["transformer"][0], reference)
        differences = [
            np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)) for a, b in zip(drawn, wanted, strict=True)
        ]
        ratios = [psnr(a, b) for a, b in zip(drawn, wanted, strict=True)]
        row = {
            "form": side,
            "file_bytes": loaded["transformer"][1],
            "bits_per_weight": (loaded["transformer"][1] - rest) * 8 / count,
            "layer_error_mean": float(np.mean(errors)),
            "layer_error_max": max(errors),
            "difference_mean": float(np.mean([one.mean() for one in differences])),
            "difference_max": float(max(one.max() for one in differences)),
            "psnr_mean": float(np.mean(ratios)),
            "psnr_lowest": min(ratios),
        }
        rows.append(row)
        print(
            f"{side:27} {row['file_bytes'] / 1e6:5.2f} MB, {row['bits_per_weight']:5.2f} bits, layers"
            f" {row['layer_error_mean']:.2e}, grey levels mean {row['difference_mean']:.3f}, largest"
            f" {row['difference_max']:.0f}, PSNR {row['psnr_mean']:.1f} dB (lowest {row['psnr_lowest']:.1f})",
            flush=True,
        )
    return rows


def main() -> None:
    """Measure, print, and keep the figures as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--pictures", type=int, default=8, help="held-out captions to draw")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=target, help="JSON file to write")
    options = parser.parse_args()
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # torchao works in float32 too, of which it warns
    print(json.dumps(machine()))
    rows = measure(options.sides, options.pictures, options.steps)
    report = {"machine": machine(), "pictures": options.pictures, "steps": options.steps, "rows": rows}
    write_report(report, options.out)


if __name__ == "__main__":
    main()
