"""Names in LoRA files: the layer of the model that a tensor is for, and its part of the adapter, in every spelling."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from . import lycoris
from .errors import CheckpointError
from .names import QKV

Form = Literal["diffusers", "comfy"]

# What stands before a layer's name: peft's own prefix, then that of diffusers, of ComfyUI, or of a trainer.
_COMFY = r"model\.diffusion_model\.|diffusion_model\.|conditional_transformer\."
_DOTTED = re.compile(rf"(?:base_model\.model\.)?(?:(?P<comfy>{_COMFY})|transformer\.|model\.)?(?P<layer>.+)")
_UNDERSCORED = re.compile(r"(?:lora_unet|lora_transformer|lycoris)_(?P<layer>.+)")

_PARTS = {
    "down": r"(?:lora_A(?:\.default)?|lora_down|lora\.down|lora_linear_layer\.down)(?:\.weight)?",
    "up": r"(?:lora_B(?:\.default)?|lora_up|lora\.up|lora_linear_layer\.up)(?:\.weight)?",
    "alpha": r"alpha",
    "magnitude": r"(?:lora_magnitude_vector(?:\.default)?(?:\.weight)?|dora_scale)",
    "bias": r"lora_B(?:\.default)?\.bias",
    **{part: rf"{part}(?:\.default)?(?:\.weight)?" for part in lycoris.PARTS},
}
_TENSOR = re.compile(r"(?P<owner>.+?)\.(?:" + "|".join(f"(?P<{part}>{names})" for part, names in _PARTS.items()) + ")")

# The model's linear layers, under diffusers' names and the original's (qkv, o).
_NUMBER = r"(?:0|[1-9][0-9]{0,3})"
_OF_BLOCK = (
    *(f"attention.{last}" for last in (*QKV, "to_out.0", "qkv", "o")),
    *(f"feed_forward.{last}" for last in ("w1", "w2", "w3")),
    "adaln_modulation",
)
_OUTSIDE = (
    *("input_proj", "llm_cond_proj", "t_embedding.mlp_in", "t_embedding.mlp_out", "adaln_proj"),
    *("final_layer.linear", "final_layer.adaln_modulation"),
)
_BLOCK = re.compile(rf"layers[._](?P<number>{_NUMBER})[._](?P<part>.+)")

# Why a tensor is not loaded, by its name; the first that fits.
_WHY = (
    (r"unconditional_transformer\.", "of the unconditional transformer: call its own `load_lora_adapter`"),
    (r".*(text_encoder|text_model|lora_te|lora_clip|language_model|self_attn|llm_adapter)", "of a text encoder"),
    (r".*\.(lokr|hada)_t", "LoKr or LoHa of a convolution"),
    (r".*\.(lokr|hada)_", "LoKr or LoHa of a layer that the model has not"),
    (r".*\.(oft_|boft_)", "OFT, which is not LoRA"),
    (r".*\.dora_scale", "DoRA of a layer that the model has not"),
    (r".*(\.diff(_b)?|\.[wb]_norm|\.set_weight|norm.*\.(weight|bias))$", "whole weights or differences, not LoRA"),
    (r".*lora_embedding", "LoRA of an embedding"),
)


def sort_names(origin: str, names: Iterable[str]) -> tuple[dict[str, dict[str, str]], dict[str, str], Form]:
    """Names of tensors by layer and part, those that are not known and why, and the form."""
    layers: dict[str, dict[str, str]] = {}
    unknown: dict[str, str] = {}
    form: Form = "diffusers"
    for name in names:
        tensor = _TENSOR.fullmatch(name)
        found = _layer(tensor["owner"]) if tensor else None
        if tensor is None or found is None:
            unknown[name] = next((why for pattern, why in _WHY if re.match(pattern, name)), "no known name")
            continue
        layer, comfy = found
        part = next(part for part in _PARTS if tensor[part] is not None)
        parts = layers.setdefault(layer, {})
        if part in parts:
            raise CheckpointError(f"{origin}: {parts[part]!r} and {name!r} are both for {layer}: keep one of them.")
        parts[part] = name
        form = "comfy" if comfy else form
    for layer in [layer for layer in layers if layer.endswith((".qkv", ".o"))]:
        attention = layer.rpartition(".")[0]
        for last in QKV if layer.endswith(".qkv") else ("to_out.0",):
            if f"{attention}.{last}" in layers:
                one, other = (next(iter(layers[key].values())) for key in (layer, f"{attention}.{last}"))
                raise CheckpointError(f"{origin}: {one!r} and {other!r} are both for {attention}: keep one of them.")
    return layers, unknown, form


def _layer(owner: str) -> tuple[str, bool] | None:
    """The layer that a name stands for, and whether in the form of ComfyUI; None where it is none of the model's."""
    underscored = _UNDERSCORED.fullmatch(owner)
    dotted = _DOTTED.fullmatch(owner)
    if underscored is None and dotted is None:
        return None
    name = (underscored or dotted)["layer"]  # type: ignore[index]
    block = _BLOCK.fullmatch(name)
    spelled = {part.replace(".", "_") if underscored else part: part for part in (_OF_BLOCK if block else _OUTSIDE)}
    part = spelled.get(block["part"] if block else name)
    if part is None or (block and not underscored and name != f"layers.{block['number']}.{block['part']}"):
        return None
    layer = f"layers.{block['number']}.{part}" if block else part
    original = layer.endswith((".qkv", ".o"))
    return layer, original or bool(underscored) or bool(dotted and dotted["comfy"])
