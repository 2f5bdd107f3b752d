"""Writers of every form of checkpoint that users have, from a transformer's state dict, and small random models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ideoflow import Ideogram4Transformer2DModel, checkpoints, sketch

Weights = dict[str, Tensor]
SMALL: dict[str, Any] = dict(
    in_channels=8,
    num_layers=2,
    attention_head_dim=16,
    num_attention_heads=4,
    intermediate_size=128,
    adaln_dim=32,
    llm_features_dim=64,
    rope_theta=100,
    mrope_section=(4, 2, 2),
)


def random_model(seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Ideogram4Transformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Ideogram4Transformer2DModel(**{**SMALL, **config})
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def load_transformer(checkpoint: checkpoints.Checkpoint, **options: Any) -> Ideogram4Transformer2DModel:
    return checkpoints.load_transformer(checkpoint, Ideogram4Transformer2DModel, **options)


def original_weights(weights: Mapping[str, Tensor]) -> Weights:
    """The original checkpoint's names: q, k and v one below the other, `o` for the output."""
    found: Weights = {}
    for name, tensor in weights.items():
        if ".to_q." in name:
            three = [weights[name.replace("to_q", one)] for one in ("to_q", "to_k", "to_v")]
            found[name.replace("to_q", "qkv")] = torch.cat(three)
        elif ".to_k." not in name and ".to_v." not in name:
            found[name.replace("to_out.0", "o")] = tensor
    return found


def original_config(config: Mapping[str, Any]) -> dict[str, Any]:
    same = ("num_layers", "intermediate_size", "in_channels", "llm_features_dim", "rope_theta", "norm_eps")
    return {
        "emb_dim": config["attention_head_dim"] * config["num_attention_heads"],
        "num_heads": config["num_attention_heads"],
        "adanln_dim": config["adaln_dim"],
        "mrope_section": list(config["mrope_section"]),
        **{key: config[key] for key in same},
    }


def is_linear(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.ndim == 2 and "embed_image" not in name


def float8_rows(weights: Mapping[str, Tensor], only: Callable[[str], bool] = lambda name: True) -> Weights:
    """float8_e4m3fn with a float32 scale for each row, beside plain bfloat16 tensors: the published fp8 form."""
    found: Weights = {}
    for name, tensor in weights.items():
        if is_linear(name, tensor) and only(name):
            scale = tensor.float().abs().amax(1).clamp(min=1e-12) / 448
            found[name] = (tensor.float() / scale[:, None]).to(torch.float8_e4m3fn)
            found[name.replace(".weight", ".weight_scale")] = scale
        else:
            found[name] = tensor.to(torch.bfloat16)
    return found


def float8_scaled(weights: Mapping[str, Tensor], *, old: bool) -> Weights:
    """ComfyUI's: one scale for a weight; `scale_weight` and a marker in old files, `weight_scale` and notes in new."""
    found: Weights = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)} if old else {}
    for name, tensor in weights.items():
        if is_linear(name, tensor) and name.startswith("layers."):
            layer = name.removesuffix("weight")
            scale = tensor.float().abs().amax().clamp(min=1e-12) / 448
            found[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            if old:
                found[layer + "scale_weight"] = scale.reshape(1)
            else:
                found[layer + "weight_scale"] = scale
                found[layer + "input_scale"] = torch.tensor(0.5)
                note = json.dumps({"format": "float8_e4m3fn"}).encode()
                found[layer + "comfy_quant"] = torch.frombuffer(bytearray(note), dtype=torch.uint8)
        else:
            found[name] = tensor.to(torch.bfloat16)
    return found


def expanded(stored: Mapping[str, Tensor]) -> Weights:
    """What float8 weights with their scales stand for, in float64."""
    found: Weights = {}
    for name, tensor in stored.items():
        if not name.endswith((".weight", ".bias")):
            continue
        layer = name.removesuffix("weight")
        scale = stored.get(layer + "weight_scale", stored.get(layer + "scale_weight"))
        value = tensor.double()
        if scale is not None:
            value = value * (scale.double()[:, None] if scale.ndim == 1 and len(scale) > 1 else scale.double())
        found[name] = value
    return found


def write(path: Path, weights: Mapping[str, Tensor], prefix: str = "", metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({prefix + name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata)
    return path


def small_folder(target: Path, layers: int = 2) -> Path:
    """The bundled model's folder with the first layers of its text encoder: quick to load, too few to draw."""
    shutil.copytree(sketch.path(), target)
    place = target / "text_encoder"
    kept = tuple(f"language_model.layers.{number}." for number in range(layers))
    stored = load_file(place / "model.safetensors")
    write(place / "model.safetensors", {n: t for n, t in stored.items() if ".layers." not in n or n.startswith(kept)})
    config = json.loads((place / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = layers
    write_config(place, config)
    return target


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))


def write_shards(folder: Path, weights: Mapping[str, Tensor], count: int = 3, stem: str = "model") -> Path:
    """Shards and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(weights)
    weight_map = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: weights[name] for name in names[number::count]}
        write(folder / file, part)
        weight_map |= {name: file for name in part}
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index
