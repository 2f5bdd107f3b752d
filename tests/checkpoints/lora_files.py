"""Writers of every form of LoRA files, from random adapters of the bundled model's layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ideoflow import Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints.lora_strength import HEADER

CONFIG = dict(Ideogram4Transformer2DModel.load_config(sketch.path() / "transformer"))
HIDDEN, WIDE, LAYERS = CONFIG["attention_head_dim"] * CONFIG["num_attention_heads"], CONFIG["intermediate_size"], 7
Tensors = dict[str, Tensor]
Header = dict[str, str]


@dataclass(frozen=True)
class Part:
    """An adapter of one matrix of the original's names."""

    down: Tensor
    up: Tensor
    alpha: float | None


def draw(generator: torch.Generator, rows: int, columns: int, rank: int, alpha: float | None) -> Part:
    down = torch.randn(rank, columns, generator=generator) / columns**0.5
    return Part(down, torch.randn(rows, rank, generator=generator) / 2, alpha)


def original(seed: int = 0, alpha: float | None = 2.5, blocks: bool = False) -> dict[str, Part]:
    """Adapters of different ranks for the original's layers; with `blocks`, q, k and v have a `down` of their own."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in range(LAYERS):
        name = f"layers.{layer}"
        fused = draw(generator, 3 * HIDDEN, HIDDEN, 6, alpha)
        if blocks:
            mask = torch.block_diag(*[torch.ones(HIDDEN, 2)] * 3).bool()
            fused = replace(fused, up=torch.where(mask, fused.up, 0.0))
        found[f"{name}.attention.qkv"] = fused
        found[f"{name}.attention.o"] = draw(generator, HIDDEN, HIDDEN, 4, alpha)
        found[f"{name}.feed_forward.w2"] = draw(generator, HIDDEN, WIDE, 3, alpha)
        found[f"{name}.adaln_modulation"] = draw(generator, 4 * HIDDEN, CONFIG["adaln_dim"], 4, alpha)
    return found


def apart(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The same under diffusers' names."""
    found = {}
    for name, part in parts.items():
        if name.endswith("qkv"):
            for one, up in zip(("to_q", "to_k", "to_v"), part.up.chunk(3), strict=True):
                found[name.replace("qkv", one)] = Part(part.down, up, part.alpha)
        else:
            found[name.replace("attention.o", "attention.to_out.0")] = part
    return found


def spelled(parts: Mapping[str, Part], prefix: str, pair: str = "A B", alpha: bool = True) -> Tensors:
    """Tensors with `prefix` before their names."""
    down, up = (f"lora_{half}.weight" for half in pair.split())
    found: Tensors = {}
    for name, part in parts.items():
        start = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        found[f"{start}.{down}"], found[f"{start}.{up}"] = part.down.clone(), part.up.clone()
        if part.alpha is not None and alpha:
            found[f"{start}.alpha"] = torch.tensor(part.alpha)
    return found


def peft(parts: Mapping[str, Part], prefix: str = "") -> str:
    ranks = {name: len(part.down) for name, part in parts.items()}
    alphas = {name: ranks[name] if part.alpha is None else part.alpha for name, part in parts.items()}
    found: dict[str, Any] = {"r": 4, "lora_alpha": 4, "rank_pattern": ranks, "alpha_pattern": alphas}
    found["target_modules"] = sorted(parts)
    return json.dumps({prefix + key: value for key, value in found.items()})


# Each form's tensors and header, from adapters under the original's names. The first ones diffusers reads too.
FORMS: dict[str, Callable[[dict[str, Part]], tuple[Tensors, Header]]] = {
    "diffusers": lambda p: (
        spelled(apart(p), "transformer.", alpha=False),
        {HEADER: peft(apart(p), "transformer.")},
    ),
    "comfy": lambda p: (spelled(p, "diffusion_model."), {}),
    "kohya, dotted": lambda p: (spelled(p, "diffusion_model.", "down up"), {}),
    "conditional": lambda p: (spelled(p, "conditional_transformer."), {}),
    "bare, fused": lambda p: (spelled(p, ""), {}),
    # From here on ours alone.
    "single file": lambda p: (spelled(p, "model.diffusion_model."), {}),
    "kohya": lambda p: (spelled(p, "lora_unet_", "down up"), {"ss_network_dim": "6"}),
    "kohya, apart": lambda p: (spelled(apart(p), "lora_unet_", "down up"), {}),
    "lycoris": lambda p: (spelled(p, "lycoris_", "down up"), {}),
    "OneTrainer": lambda p: (spelled(apart(p), "transformer.", "down up"), {}),
    "comfy, apart": lambda p: (spelled(apart(p), "diffusion_model."), {}),
    "conditional, apart": lambda p: (spelled(apart(p), "conditional_transformer.", "down up"), {}),
    "a model's own": lambda p: (spelled(apart(p), "", alpha=False), {HEADER: peft(apart(p))}),
    "peft": lambda p: (spelled(apart(p), "base_model.model.", alpha=False), {}),
}
PEERS = list(FORMS)[:5]


def write(folder: Path, form: str, parts: dict[str, Part], name: str = "adapter.safetensors") -> Path:
    """A file of a form; its name says nothing of it."""
    folder.mkdir(exist_ok=True)
    tensors, header = FORMS[form](parts)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, {"format": "pt"} | header)
    if form == "peft":
        (folder / "adapter_config.json").write_text(peft(apart(parts)))
    return folder / name


def peer_tensors(**options: Any) -> Tensors:
    return FORMS["diffusers"](original(**{"alpha": None} | options))[0]
