"""LoRA files from diffusers' form into ComfyUI's and back: the same change of weights, by matrices of the same rank.

The two differ in q, k and v, which ComfyUI has as one matrix, and in where an adapter's strength stands.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, promote_types

from .atomic_replace import in_place
from .errors import CheckpointError
from .lora import Adapter, Lora, read_lora
from .lora_strength import HEADER, as_alpha, peft_header
from .names import ORIGINAL, current_form, original_name, targets

FORMS = ("comfy-lora", "diffusers-lora")


def to_diffusers(lora: Lora) -> Lora:
    """The adapters under diffusers' names, q, k and v apart, their strengths in the header.

    An adapter of qkv whose `up` is a block diagonal becomes one small adapter for each of the three; any other becomes
    three with the same `down`.
    """
    layers: dict[str, Adapter] = {}
    for name, adapter in lora.layers.items():
        goals = targets(name, ORIGINAL)
        pieces = [adapter] if len(goals) == 1 else _split(adapter)
        layers |= {goal: piece for goal, piece in zip(goals, pieces, strict=True) if piece is not None}
    metadata = {key: text for key, text in lora.metadata.items() if key != HEADER}
    if any(adapter.scale != 1 for adapter in layers.values()):
        metadata[HEADER] = json.dumps(_header(layers), indent=2, sort_keys=True)
    return replace(lora, form="diffusers", layers=layers, metadata=metadata, factored={})


def to_comfy(lora: Lora) -> Lora:
    """The adapters under the original's names, as ComfyUI and trainers know them: q, k and v as one.

    Where q, k and v share their `down`, so does the one; otherwise its rank is the sum of theirs, their `down` one
    below the other and their `up` blocks of a diagonal. All layers keep their own rank: a tensor `alpha` stands beside
    those whose strength is not 1.

    Raises:
        CheckpointError: DoRA and biases, for which programs that read this form have no common place.
    """
    groups: dict[str, dict[str, Adapter]] = {}
    for name, adapter in lora.layers.items():
        if adapter.magnitude is not None or adapter.bias is not None:
            what = "DoRA" if adapter.magnitude is not None else "biases"
            raise CheckpointError(
                f"{lora.origin}: {name} has {what}, for which ComfyUI's form has no place that all programs read alike:"
                " keep it in diffusers' form, or train without."
            )
        comfy = re.sub(r"(layers\.\d+\.attention\.)to_[qkv]", r"\1qkv", original_name(name))
        groups.setdefault(comfy, {})[name] = adapter
    layers: dict[str, Adapter] = {}
    for comfy, members in groups.items():
        goals = targets(comfy, ORIGINAL)
        if comfy in members or len(goals) == 1:
            (layers[comfy],) = members.values()
            continue
        try:
            layers[comfy] = _fused([members.get(goal) for goal in goals])
        except ValueError as error:
            raise CheckpointError(f"{lora.origin}: {comfy}: {error}") from None
    layers = {
        name: replace(adapter, alpha=None if adapter.scale == 1 else as_alpha(adapter.strength))
        for name, adapter in layers.items()
    }
    metadata = {key: text for key, text in lora.metadata.items() if key != HEADER}
    return replace(lora, form="comfy", layers=layers, metadata=metadata, factored={})


def loadable(lora: Lora) -> dict[str, Tensor]:
    """Tensors under diffusers' names, both matrices of an adapter of one type: they are multiplied as they are."""
    layers = {}
    for name, adapter in lora.layers.items():
        dtype = promote_types(adapter.down.dtype, adapter.up.dtype)
        layers[name] = replace(adapter, down=adapter.down.to(dtype), up=adapter.up.to(dtype))
    return replace(lora, layers=layers).tensors()


def peft_settings(lora: Lora) -> dict[str, Any]:
    """peft's configuration of adapters under diffusers' names, as its loaders take it.

    Its patterns match names of layers, and of their tensors too: peft looks these up when it swaps an adapter, and
    takes the commonest strength for all layers where they do not match.
    """
    found = _header(lora.layers)
    for key in ("transformer.rank_pattern", "transformer.alpha_pattern"):
        found[key] = {rf"{re.escape(name)}(\.lora_.*)?": value for name, value in found[key].items()}
    return found


def convert_lora(
    source: Path,
    destination: Path,
    to: Literal["comfy-lora", "diffusers-lora"] | str,
    *,
    overwrite: bool = False,
    ignore_unknown: bool = False,
) -> Lora:
    """Write the adapters of a file, whatever its form, in another form; the header's other entries are kept.

    The new file is whole or not there: it is written beside its place, read again and compared, and only then given
    its name.

    Args:
        source: a safetensors file of any known form.
        destination: the new one, ending in `.safetensors`.
        to: "comfy-lora" or "diffusers-lora".
        overwrite: replace a file of that name.
        ignore_unknown: warn of tensors that are no LoRA adapters of this model, and leave them out.

    Returns:
        What was written.

    Raises:
        CheckpointError: what cannot be read, converted, or written there.
    """
    to = current_form(to)
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    if to not in FORMS:
        raise CheckpointError(f"`to` is {to!r}: choose {' or '.join(FORMS)}.")
    if destination.suffix != ".safetensors":
        raise CheckpointError(f"{destination}: give a name that ends in .safetensors, which readers look for.")
    if destination.is_dir() or not destination.parent.is_dir():
        raise CheckpointError(f"{destination}: this is a folder, or its folder is not there.")
    with in_place(destination, overwrite) as temporary:
        read = read_lora(source, ignore_unknown=ignore_unknown)
        if read.factored:
            raise CheckpointError(
                f"{source} holds {' and '.join(sorted(read.kinds))}, which matrices of LoRA cannot say exactly: it is"
                " loaded as it is, and not converted."
            )
        made = to_comfy(read) if to == "comfy-lora" else to_diffusers(read)
        tensors = {name: tensor.contiguous() for name, tensor in made.tensors().items()}
        save_file(tensors, temporary, metadata={"format": "pt"} | made.metadata)
        again = read_lora(temporary)
        for name, adapter in made.layers.items():
            if name not in again.layers or not _is_same(again.layers[name], adapter):
                raise CheckpointError(f"{source}: the adapter of {name} does not come back from the disk as written.")
    return made


def _is_same(one: Adapter, other: Adapter) -> bool:
    pairs = ((one.down, other.down), (one.up, other.up), (one.magnitude, other.magnitude), (one.bias, other.bias))
    return one.strength == other.strength and all(_is_equal(*pair) for pair in pairs)


def _is_equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


def _header(layers: dict[str, Adapter]) -> dict[str, Any]:
    return peft_header(
        {name: adapter.rank for name, adapter in layers.items()},
        {name: adapter.strength for name, adapter in layers.items()},
        use_dora=any(adapter.magnitude is not None for adapter in layers.values()),
        lora_bias=any(adapter.bias is not None for adapter in layers.values()),
    )


# q, k and v as one matrix, and apart


def _fused(pieces: Sequence[Adapter | None]) -> Adapter:
    """One adapter of q, k and v, from theirs; None for those that have none."""
    present = [piece for piece in pieces if piece is not None]
    first = present[0]
    if len({piece.up.shape[0] for piece in present}) > 1 or len({piece.down.shape[1] for piece in present}) > 1:
        raise ValueError("q, k and v have adapters for different numbers of inputs or outputs.")
    scale = max((piece.scale for piece in present), key=abs)
    ups = [_times(piece.up, piece.scale / scale if scale else 1) for piece in present]
    dtype = _widest(ups)
    if len(present) == len(pieces) and all(_is_equal(piece.down, first.down) for piece in present):
        down, up = first.down, torch.cat([up.to(dtype) for up in ups])
    else:
        downs = [piece.down for piece in present]
        down = torch.cat([one.to(_widest(downs)) for one in downs])
        rows = len(ups[0])
        up = torch.zeros(rows * len(pieces), len(down), dtype=dtype)
        column, left = 0, iter(ups)
        for third, piece in enumerate(pieces):
            if piece is not None:
                up[third * rows : (third + 1) * rows, column : column + piece.rank] = next(left)
                column += piece.rank
    return Adapter(down, up, as_alpha(scale * len(down)))


def _split(adapter: Adapter) -> list[Adapter | None]:
    """The adapters of q, k and v, from that of all three; None for those that a block diagonal has no block for."""
    owners = _owners(adapter)
    pieces: list[Adapter | None] = []
    for third in range(3):
        up, magnitude, bias = (
            None if whole is None else whole.chunk(3)[third].clone()
            for whole in (adapter.up, adapter.magnitude, adapter.bias)
        )
        assert up is not None
        if owners is None:
            pieces.append(Adapter(adapter.down.clone(), up, adapter.alpha, magnitude, bias))
            continue
        own = (owners == third).nonzero()[:, 0]
        alpha = None if adapter.alpha is None else as_alpha(adapter.scale * len(own))
        pieces.append(Adapter(adapter.down[own], up[:, own].contiguous(), alpha) if len(own) else None)
    return pieces


def _owners(adapter: Adapter) -> Tensor | None:
    """Which of q, k and v each component of a fused adapter is for, (rank,); None where one is for several.

    The zeros of `up` tell. A component that is zero for all three (a new adapter has nothing else) belongs to the third
    of the components that it lies in, where that is true of all others, and else with its neighbour.
    """
    if adapter.magnitude is not None or adapter.bias is not None:
        return None
    used = (adapter.up != 0).reshape(3, -1, adapter.rank).any(1)  # (3, rank)
    known, number = used.any(0), torch.arange(adapter.rank)
    if (used.sum(0) > 1).any():
        return None
    thirds = number * 3 // adapter.rank
    if adapter.rank % 3 == 0 and bool((used[thirds, number] == known).all()):
        return thirds
    if not known.any():
        return None
    neighbour = torch.where(known, number, int(known.int().argmax())).cummax(0).values
    return used.int().argmax(0)[neighbour]


def _times(tensor: Tensor, factor: float) -> Tensor:
    """`tensor * factor`, in float32 or more where that is no 1."""
    if math.isclose(factor, 1, rel_tol=1e-9):
        return tensor
    return (tensor.double() * factor).to(torch.promote_types(tensor.dtype, torch.float32))


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    """The type that holds the values of all."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
