"""LoRA files in every form that users have: each layer's adapter, checked, with its strength."""

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
from typing import Any

import torch
from torch import Tensor

from ..configuration import parameter_shapes
from ..dtypes import PLAIN, STORED_NAMES, name_of
from . import lycoris
from .errors import CheckpointError, some
from .lora_names import Form, sort_names
from .lora_strength import STRENGTH, HeaderEntries, PeftSettings, read_strengths
from .lycoris import Factored
from .names import ORIGINAL, targets
from .source import open_source
from .tensors import Source, TensorInfo

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
    weights: Source = _InMemory(source) if isinstance(source, Mapping) else open_source(source)
    origin = str(weights.path)
    if prefix is not None:
        weights = _BehindPrefix(weights, f"{prefix}.")
    if not weights.infos:
        named = "" if prefix is None else f" whose names begin with {prefix!r}"
        raise CheckpointError(f"{origin} holds no tensors{named}.")
    names, unknown, form = sort_names(origin, weights.infos)
    if config is not None:
        wanted = parameter_shapes(config)
        for layer in list(names):
            if why := _misfit(layer, names[layer], weights.infos, wanted):
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


class _InMemory:
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
        self.infos = {}
        for name, tensor in tensors.items():
            dtype = name_of(tensor.dtype)
            self.infos[name] = TensorInfo(name, STORED_NAMES.get(dtype, dtype), tuple(tensor.shape), self.path)

    def read(self, name: str) -> Tensor:
        return self.tensors[name].detach().to("cpu", copy=True).contiguous()

    map = read

    def note(self, name: str) -> bytes:
        return bytes(self.read(name).flatten().tolist())


class _BehindPrefix:
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


def _misfit(
    layer: str, parts: Mapping[str, str], infos: Mapping[str, TensorInfo], wanted: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Why an adapter that may be whole does not fit the model, whose parameters have the `wanted` shapes."""
    goals = [wanted.get(f"{goal}.weight") for goal in targets(layer, ORIGINAL)]
    if goals[0] is None:
        last = max(int(name.split(".")[1]) for name in wanted if name.startswith("layers."))
        return f"of a layer that the model has not: it has {last + 1}"
    shape = (len(goals) * goals[0][0], goals[0][1])
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
