"""LoRA files in every form that users have: recognised by the names in them, each layer's adapter with its strength."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..dtypes import PLAIN, STORED_NAMES, name_of
from . import lycoris
from .errors import CheckpointError, some
from .lora_strength import STRENGTH, HeaderEntries, PeftSettings, read_strengths
from .lycoris import Factored
from .names import ORIGINAL, QKV, targets
from .source import open_source
from .tensors import Source, TensorInfo

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
_PAIR = {"down": "lora_A (or lora_down)", "up": "lora_B (or lora_up)"}
_DTYPES = {*PLAIN}
_EXPANDED = {"F8_E4M3", "F8_E5M2"}  # bfloat16 holds each of their values
_INTEGERS = {"I64", "I32", "I16", "I8", "U8"}  # that an alpha may be


class UnknownTensorsError(CheckpointError):
    """Tensors beside an adapter's that cannot be loaded; `told` names them and says why."""

    def __init__(self, told: str) -> None:
        super().__init__(f"{told} To load the rest without them, pass `ignore_unknown=True`.")
        self.told = told


@dataclass(frozen=True)
class Adapter:
    """What is added to one layer's weight: `up @ down * alpha / rank`.

    Attributes:
        down: `(rank, inputs)`, lora_A.
        up: `(outputs, rank)`, lora_B.
        alpha: one number; None for the rank.
        magnitude: `(outputs,)` with DoRA: what the rows of the sum are scaled to.
        bias: `(outputs,)` of `up`, scaled like it.
    """

    down: Tensor
    up: Tensor
    alpha: Tensor | None = None
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def strength(self) -> float:
        """`alpha` as a number: the rank where none is given."""
        return float(self.rank if self.alpha is None else self.alpha.item())

    @property
    def scale(self) -> float:
        """`alpha / rank`."""
        return self.strength / self.rank


@dataclass(frozen=True)
class Lora:
    """The adapters of one file.

    Attributes:
        origin: the file, for messages.
        form: "diffusers" has its names and keeps strengths in the header; "comfy" has the original's names, q, k and v
            as one, and a tensor `alpha` beside each layer whose strength is not 1.
        layers: LoRA and DoRA, by the layer's name.
        metadata: the file's header: trigger words, settings of the training. Strengths that stand there alone are in
            the adapters.
        unknown: tensors that are not loaded, and why.
        factored: LoKr and LoHa, by the model's own name of the layer: q, k and v apart.
    """

    origin: str
    form: Form
    layers: dict[str, Adapter]
    metadata: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    factored: dict[str, Factored] = field(default_factory=dict)

    @property
    def kinds(self) -> set[str]:
        """ "LoRA", "DoRA", "LoKr", "LoHa": what the layers have."""
        lora = {"LoRA" if adapter.magnitude is None else "DoRA" for adapter in self.layers.values()}
        return lora | {adapter.kind for adapter in self.factored.values()}

    @cached_property
    def ranks(self) -> Counter[int]:
        """How many layers have which rank."""
        return Counter(adapter.rank for adapter in self.layers.values())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a file in this form; strengths of diffusers' form are in `metadata`."""
        found: dict[str, Tensor] = {}
        for name, adapter in self.layers.items():
            start = f"transformer.{name}" if self.form == "diffusers" else f"diffusion_model.{name}"
            found[f"{start}.lora_A.weight"], found[f"{start}.lora_B.weight"] = adapter.down, adapter.up
            if adapter.alpha is not None and self.form == "comfy":
                found[f"{start}.alpha"] = adapter.alpha
            if adapter.magnitude is not None:
                found[f"{start}.lora_magnitude_vector.weight"] = adapter.magnitude
            if adapter.bias is not None:
                found[f"{start}.lora_B.bias"] = adapter.bias
        return found


def read_lora(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    ignore_unknown: bool = False,
    prefix: str | None = None,
) -> Lora:
    """Read the adapters of a file, whatever program wrote it.

    Known are diffusers' form, ComfyUI's and the trainers' (q, k and v as one or not), kohya's underscores, and peft's,
    with LoRA, DoRA, LoKr or LoHa; see docs/lora.md. Nothing is unpickled.

    Args:
        source: a safetensors file, or tensors by their names in one.
        config: the transformer's configuration, to check shapes; None to check that each adapter fits itself.
        ignore_unknown: warn of tensors that are no adapters of this model, and leave them out; False to refuse them.
        prefix: read only names that begin with it and a dot, without it; None for all.

    Raises:
        CheckpointError: a ValueError that names the file and the tensor that cannot be used, and says why.
        UnknownTensorsError: such an error, where the rest could be loaded without them.
    """
    weights: Source = _Given(source) if isinstance(source, Mapping) else open_source(source)
    origin = str(weights.path)
    if prefix is not None:
        weights = _After(weights, f"{prefix}.")
    if not weights.infos:
        named = "" if prefix is None else f" whose names begin with {prefix!r}"
        raise CheckpointError(f"{origin} holds no tensors{named}.")
    names, unknown, form = _sorted_out(origin, weights.infos)
    for layer in [layer for layer in names if config is not None]:
        if why := _misfit(layer, names[layer], weights.infos, config or {}):
            unknown |= dict.fromkeys(names.pop(layer).values(), why)
    if not names:
        raise CheckpointError(_nothing(origin, unknown))
    for layer, parts in names.items():
        _check_shapes(origin, layer, {part: weights.infos[name] for part, name in parts.items()})
    _check_whole(origin, names)
    if unknown:
        told = f"{origin} holds {_count(unknown)} that cannot be loaded: {_reasons(unknown)}."
        if not ignore_unknown:
            raise UnknownTensorsError(told)
        warnings.warn(f"{told} They are left out.", stacklevel=2)
    strengths = read_strengths(origin, weights, names)
    layers: dict[str, Adapter] = {}
    factored: dict[str, Factored] = {}
    for layer, parts in names.items():
        whole = {"lokr_w1", "lokr_w2"} <= parts.keys()  # its alpha has no meaning, and may be any number
        read = {part: _read(origin, weights, name) for part, name in parts.items() if not (whole and part == "alpha")}
        if lycoris.kind_of(parts) is not None:
            goals = targets(layer, ORIGINAL)
            given = strengths.scale(goals[0]) if isinstance(strengths, PeftSettings) else None
            product = lycoris.factored(read, given)
            if isinstance(strengths, HeaderEntries) and not whole:
                alpha = strengths.alpha_of(origin, layer, product.rank, product.alpha)
                product = replace(product, alpha=alpha)
            rows = product.shape[0] // len(goals)
            for number, goal in enumerate(goals):
                factored[goal] = product if len(goals) == 1 else product.part(number * rows, (number + 1) * rows)
            continue
        if "magnitude" in read:
            read["magnitude"] = read["magnitude"].flatten()
        adapter = Adapter(**read)
        if strengths is not None:
            adapter = replace(adapter, alpha=strengths.alpha_of(origin, layer, adapter.rank, adapter.alpha))
        layers[layer] = adapter
    metadata = {key: text for key, text in weights.metadata.items() if not STRENGTH.fullmatch(key)}
    return Lora(origin, form, layers, metadata, unknown, factored)


class _Given:
    """Tensors in memory, as a `Source`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.path: Path = Path("the given state dict")
        self.files: tuple[Path, ...] = ()
        self.metadata: dict[str, str] = {}
        self.tensors = tensors
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise CheckpointError(
                    f"{self.path} holds {name!r}: {type(tensor).__name__}; it may hold tensors by their names alone."
                )
        self.infos = {
            name: TensorInfo(name, _format_name(tensor.dtype), tuple(tensor.shape), self.path)
            for name, tensor in tensors.items()
        }

    def read(self, name: str) -> Tensor:
        return self.tensors[name].detach().to("cpu", copy=True).contiguous()

    map = read

    def note(self, name: str) -> bytes:
        return bytes(self.read(name).flatten().tolist())


class _After:
    """The tensors of a source whose names begin with a prefix, by what follows it."""

    def __init__(self, source: Source, prefix: str) -> None:
        self.path, self.files, self.metadata = source.path, source.files, source.metadata
        self.source, self.prefix = source, prefix
        self.infos = {n.removeprefix(prefix): info for n, info in source.infos.items() if n.startswith(prefix)}

    def note(self, name: str) -> bytes:
        return self.source.note(self.prefix + name)

    def read(self, name: str) -> Tensor:
        return self.source.read(self.prefix + name)

    map = read


def _format_name(dtype: torch.dtype) -> str:
    """A type as safetensors spells it; torch's name where it has none."""
    return STORED_NAMES.get(name_of(dtype), name_of(dtype))


def _sorted_out(origin: str, names: Mapping[str, Any]) -> tuple[dict[str, dict[str, str]], dict[str, str], Form]:
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


def layer_shape(layer: str, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """`(outputs, inputs)` of a layer; None where the model has no such layer."""
    hidden = config["attention_head_dim"] * config["num_attention_heads"]
    wide, conditioning, channels = config["intermediate_size"], config["adaln_dim"], config["in_channels"]
    block = _BLOCK.fullmatch(layer)
    if block and int(block["number"]) >= config["num_layers"]:
        return None
    return {
        "input_proj": (hidden, channels),
        "llm_cond_proj": (hidden, config["llm_features_dim"]),
        "t_embedding.mlp_in": (hidden, hidden),
        "t_embedding.mlp_out": (hidden, hidden),
        "adaln_proj": (conditioning, hidden),
        "final_layer.linear": (channels, hidden),
        "final_layer.adaln_modulation": (hidden, conditioning),
        "attention.qkv": (3 * hidden, hidden),
        "feed_forward.w1": (wide, hidden),
        "feed_forward.w2": (hidden, wide),
        "feed_forward.w3": (wide, hidden),
        "adaln_modulation": (4 * hidden, conditioning),
    }.get(block["part"] if block else layer, (hidden, hidden))


def _misfit(
    layer: str, parts: Mapping[str, str], infos: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> str | None:
    """Why an adapter that may be whole does not fit the model."""
    shape = layer_shape(layer, config)
    if shape is None:
        return f"of a layer that the model has not: it has {config['num_layers']}"
    if lycoris.kind_of(parts) is not None:
        found = lycoris.shape_of({part: infos[name] for part, name in parts.items()})
        fits = 0 in found or found == shape
        return None if fits else f"of shape {list(found)}, for a layer of {shape[1]} inputs and {shape[0]} outputs"
    for part, axis in (("up", 0), ("down", 1)):
        stored = infos[parts[part]].shape if part in parts else ()
        if len(stored) == 2 and stored[axis] != shape[axis]:
            return f"of shape {list(stored)}, for a layer of {shape[1]} inputs and {shape[0]} outputs"
    return None


def _check_shapes(origin: str, layer: str, infos: Mapping[str, TensorInfo]) -> None:
    """Raise unless the parts of an adapter fit each other."""
    if lycoris.kind_of(infos) is not None:
        lycoris.check(origin, layer, infos)
        return
    for part, other in (("down", "up"), ("up", "down")):
        if part not in infos:
            there = infos.get(other, next(iter(infos.values()))).name
            missing = [
                f"lora_{'A' if one == 'down' else 'B'} (or lora_{one})" for one in (part, other) if one not in infos
            ]
            raise CheckpointError(
                f"{origin}: {there!r} has no partner: {' and '.join(missing)} of {layer} is not there. The file is not"
                " whole: fetch or save it again."
            )
    down, up = infos["down"], infos["up"]
    for info in (down, up):
        if len(info.shape) != 2 or 0 in info.shape:
            raise CheckpointError(f"{origin}: {info.name!r} has shape {list(info.shape)}; it must be a matrix.")
    if down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{origin}: {down.name!r} has rank {down.shape[0]} (shape {list(down.shape)}), {up.name!r} rank"
            f" {up.shape[1]} (shape {list(up.shape)}): they must be equal."
        )
    if layer.endswith(".qkv") and up.shape[0] % 3:
        raise CheckpointError(
            f"{origin}: {up.name!r} has {up.shape[0]} rows, which should be queries, keys and values in equal parts."
        )
    if "alpha" in infos and math.prod(infos["alpha"].shape) != 1:
        raise CheckpointError(
            f"{origin}: {infos['alpha'].name!r} has shape {list(infos['alpha'].shape)}; it must be one number."
        )
    if "magnitude" in infos and infos["magnitude"].shape == (1, down.shape[1]):
        raise CheckpointError(
            f"{origin}: {infos['magnitude'].name!r} has shape {list(infos['magnitude'].shape)}: DoRA with a magnitude"
            f" for each input, as older trainers have it, is not supported; it must be [{up.shape[0]}, 1]."
        )
    for part in ("magnitude", "bias"):
        column = part == "magnitude" and part in infos and infos[part].shape == (up.shape[0], 1)
        if part in infos and infos[part].shape != (up.shape[0],) and not column:
            raise CheckpointError(
                f"{origin}: {infos[part].name!r} has shape {list(infos[part].shape)}; it must be [{up.shape[0]}], one"
                " number for each output."
            )


def _check_whole(origin: str, names: Mapping[str, Mapping[str, str]]) -> None:
    """Raise where some layers have magnitudes or biases and others have none: peft has them for all or for none."""
    names = {layer: parts for layer, parts in names.items() if lycoris.kind_of(parts) is None}
    for part in ("magnitude", "bias"):
        without = [layer for layer, parts in names.items() if part not in parts]
        if without and len(without) < len(names):
            raise CheckpointError(
                f"{origin}: {some(without)} have no {part}, while other layers have one: all must, or none."
            )


def _read(origin: str, weights: Source, name: str) -> Tensor:
    """A tensor's values, checked."""
    dtype = weights.infos[name].dtype
    allowed = _DTYPES | _EXPANDED | (_INTEGERS if name.endswith(".alpha") else set())
    if dtype not in allowed:
        raise CheckpointError(
            f"{origin}: {name!r} is stored as {dtype}; adapters may be in {', '.join(sorted(_DTYPES | _EXPANDED))}."
        )
    tensor = weights.read(name)
    if dtype in _EXPANDED:
        tensor = tensor.to(torch.bfloat16)
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{origin}: {name!r} holds values that are not finite: the training went wrong there.")
    return tensor


def _count(unknown: Mapping[str, str]) -> str:
    return f"{len(unknown)} tensor{'s' * (len(unknown) != 1)}"


def _reasons(unknown: Mapping[str, str], most: int = 12) -> str:
    """The names by reason, a dozen in all."""
    by_reason: dict[str, list[str]] = {}
    for name, why in unknown.items():
        by_reason.setdefault(why, []).append(name)
    share = max(1, most // len(by_reason))
    told = [f"{some(names, share)} ({why})" for why, names in list(by_reason.items())[:most]]
    return "; ".join(told) + (f"; and {len(by_reason) - most} other reasons" if len(by_reason) > most else "")


def _nothing(origin: str, unknown: Mapping[str, str]) -> str:
    hint = ""
    if any(re.fullmatch(r"(.*\.)?attention\.(to_q|qkv)\.weight", name) for name in unknown):
        hint = " It looks like a transformer's checkpoint: load it with `from_single_file`, or `--model`."
    return f"{origin} holds no LoRA adapter of this model. It holds {_count(unknown)}: {_reasons(unknown)}.{hint}"
