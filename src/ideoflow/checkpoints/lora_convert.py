"""LoRA files from diffusers' form into ComfyUI's and back, bit for bit.

The two differ in q, k and v, which ComfyUI has as one matrix, and in where an adapter's strength stands. Most adapters
say by themselves how to go back. What one form cannot say is noted in the header of the other; a note is believed only
where it leads back to the weights that it stands beside.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError
from .lora import HEADER, Adapter, Lora, as_alpha, each_bit, parse_settings, read_lora
from .names import ORIGINAL, original_name, targets
from .write import in_place

PEER_NOTE = "ideoflow.peer_form"  # in a comfy file: what its peer form had that it cannot say
PEER_HEADER = "ideoflow.peer_header"
COMFY_NOTE = "ideoflow.comfy_form"  # in a peer file: the same of its comfy form
DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
DTYPES |= {str(t).removeprefix("torch."): t for t in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)}

Pieces = list[Adapter | None]


def to_peer(lora: Lora) -> Lora:
    """The adapters under diffusers' names, q, k and v apart, their strengths in the header.

    An adapter of qkv whose `up` is a block diagonal becomes one small adapter for each of the three; any other becomes
    three with the same `down`. Components that are zero on both sides are left out.
    """
    metadata = dict(lora.metadata)
    how = _note(metadata.pop(PEER_NOTE, None))
    header = metadata.pop(PEER_HEADER, None) if lora.form == "comfy" else metadata.get(HEADER)
    metadata.pop(HEADER, None)
    if lora.form == "comfy":
        metadata.pop(COMFY_NOTE, None)
    layers: dict[str, Adapter] = {}
    notes: dict[str, Any] = {}
    for name, adapter in lora.layers.items():
        goals = [target.layer for target in targets(name, ORIGINAL)]
        if lora.form == "peer" or re.search(r"\.attention\.to_", name):
            layers[name] = _peer_alpha(adapter)
            continue
        pieces, note = _split(adapter, len(goals), how.get(name))
        layers |= {goal: piece for goal, piece in zip(goals, pieces, strict=True) if piece is not None}
        if note:
            notes[name] = note
    if notes:
        metadata[COMFY_NOTE] = json.dumps(notes, separators=(",", ":"))
    made = _header(layers)
    if header is not None and _says(header, layers):
        metadata[HEADER] = header
    elif made is not None:
        metadata[HEADER] = json.dumps(made, indent=2, sort_keys=True)
    return Lora(lora.origin, "peer", layers, metadata, lora.unknown)


def to_comfy(lora: Lora) -> Lora:
    """The adapters under the original's names, as ComfyUI and trainers know them: q, k and v as one.

    Where q, k and v share their `down`, so does the one; otherwise its rank is the sum of theirs, their `down` one
    below the other and their `up` blocks of a diagonal. All layers keep their own rank: a tensor `alpha` stands beside
    those whose strength is not 1.

    Raises:
        CheckpointError: DoRA and biases, for which programs that read this form have no common place, or q, k and v
            whose strengths one alpha cannot hold exactly.
    """
    metadata = dict(lora.metadata)
    how = _note(metadata.pop(COMFY_NOTE, None))
    header, old = metadata.pop(HEADER, None), metadata.pop(PEER_NOTE, None)
    notes = _note(old) if lora.form == "comfy" else {}
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
        if comfy in members and lora.form == "comfy":
            layers[comfy] = members[comfy]
            continue
        pieces: Pieces = [members.get(target.layer) for target in targets(comfy, ORIGINAL)]
        pieces = [_peer_alpha(piece) if piece is not None else None for piece in pieces]
        try:
            layers[comfy] = _comfy_again(pieces, how.get(comfy)) or _fuse(pieces)
        except CheckpointError as error:
            raise CheckpointError(f"{lora.origin}: {comfy}: {error}") from None
        if not _all_same(_split(layers[comfy], len(pieces), None)[0], pieces):
            notes[comfy] = _note_of(pieces)
    if notes:
        metadata[PEER_NOTE] = json.dumps(notes, separators=(",", ":"))
    if lora.form == "peer":
        metadata.pop(PEER_HEADER, None)
        made = _header({name: _peer_alpha(adapter) for name, adapter in lora.layers.items()})
        if header is not None and header != (made and json.dumps(made, indent=2, sort_keys=True)):
            metadata[PEER_HEADER] = header
    return Lora(lora.origin, "comfy", layers, metadata, lora.unknown)


def peft_settings(lora: Lora) -> dict[str, Any]:
    """peft's configuration of adapters in the peer's form, as diffusers' loaders take it.

    Its patterns match names of layers, and of their tensors too: peft looks these up when it swaps an adapter, and
    takes the commonest strength for all layers where they do not match.
    """
    found = _header(lora.layers, always=True)
    assert found is not None
    for key in ("transformer.rank_pattern", "transformer.alpha_pattern"):
        found[key] = {rf"{re.escape(name)}(\.lora_.*)?": value for name, value in found[key].items()}
    return found


def convert_lora(
    source: Path,
    destination: Path,
    to: Literal["comfy-lora", "peer-lora"] | str,
    *,
    overwrite: bool = False,
    ignore_unknown: bool = False,
) -> Lora:
    """Write the adapters of a file, whatever its form, in another form; the header's entries are kept.

    The new file is whole or not there: it is written beside its place, read again, converted back and compared bit
    for bit, and only then given its name.

    Args:
        source: A safetensors file of any known form.
        destination: Of the new one, ending in `.safetensors`.
        to: "comfy-lora" or "peer-lora".
        overwrite: Replace a file of that name.
        ignore_unknown: Warn of tensors that are no LoRA adapters of this model, and leave them out.

    Returns:
        What was written.

    Raises:
        CheckpointError: what cannot be read, converted, or written there.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    if to not in ("comfy-lora", "peer-lora"):
        raise CheckpointError(f"`to` is {to!r}: choose comfy-lora or peer-lora.")
    if destination.suffix != ".safetensors":
        raise CheckpointError(f"{destination}: give a name that ends in .safetensors, which readers look for.")
    if destination.is_dir() or not destination.parent.is_dir():
        raise CheckpointError(f"{destination}: this is a folder, or its folder is not there.")
    if destination.exists() and not overwrite:
        raise CheckpointError(
            f"{destination} exists: name another destination, or allow it to be replaced (--overwrite)."
        )
    read = read_lora(source, ignore_unknown=ignore_unknown)
    if read.factored:
        raise CheckpointError(
            f"{source} holds {' and '.join(sorted(read.kinds))}, which matrices of LoRA cannot say exactly: it is"
            " loaded as it is, and not converted."
        )
    peer, comfy = to_peer(read), None
    try:
        comfy = to_comfy(read)
    except CheckpointError:
        if to == "comfy-lora":
            raise
    made = comfy if to == "comfy-lora" else peer
    assert made is not None
    with in_place(destination, overwrite) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in made.tensors().items()},
            temporary,
            metadata={"format": "pt"} | made.metadata,
        )
        again = read_lora(temporary)
        back = to_peer(again) if to == "comfy-lora" else to_comfy(again) if comfy is not None else None
        for found, expected in ((again, made), (back, peer if to == "comfy-lora" else comfy)):
            if found is not None and expected is not None and (what := _difference(found, expected)):
                raise CheckpointError(f"{source}: {what} does not come back from the new form, which was not kept.")
    return made


def _difference(found: Lora, expected: Lora) -> str | None:
    """What is not the same in two sets of adapters, to the last bit."""
    if found.layers.keys() != expected.layers.keys():
        return ", ".join(sorted(found.layers.keys() ^ expected.layers.keys())[:6])
    for name, adapter in found.layers.items():
        other = expected.layers[name]
        if not _same(adapter, other) or (expected.form == "comfy" and not _same_tensor(adapter.alpha, other.alpha)):
            return f"the adapter of {name}"
    for key in (found.metadata.keys() | expected.metadata.keys()) - {"format", PEER_NOTE, PEER_HEADER, COMFY_NOTE}:
        if found.metadata.get(key) != expected.metadata.get(key):
            return f"the header's {key}"
    return None


# One adapter of several layers, and several of one


def _fuse(pieces: Pieces) -> Adapter:
    """One adapter for layers that are one matrix, their outputs one below the other; None for those without."""
    present = [piece for piece in pieces if piece is not None]
    first = present[0]
    if len(pieces) == 1:
        return Adapter(first.down, first.up, None if first.scale == 1 else as_alpha(_float(first.scale * first.rank)))
    if len({piece.up.shape[0] for piece in present}) > 1 or len({piece.down.shape[1] for piece in present}) > 1:
        raise CheckpointError("q, k and v have adapters for different numbers of inputs or outputs.")
    scale, times = _common([piece.scale for piece in present])
    ups = [_times(piece.up, factor) for piece, factor in zip(present, times, strict=True)]
    dtype = _widest(ups)
    ups = [up.to(dtype) for up in ups]
    if len(present) == len(pieces) and all(_same_tensor(piece.down, first.down) for piece in present):
        down, up = first.down, torch.cat(ups)
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
    return Adapter(down, up, None if scale == 1 else as_alpha(_float(scale * len(down))))


def _split(adapter: Adapter, number: int, note: Any) -> tuple[Pieces, Any]:
    """The adapters of `number` layers that are one matrix in the other form, and a note of the way back."""
    noted = _peer_again(adapter, number, note)
    if noted is not None:
        return noted, _comfy_note(adapter, noted)
    small, kept = _without_zeros(adapter)
    pieces: Pieces | None = None
    if number == 1:
        pieces = [_peer_alpha(small)]
    elif (ranks := _blocks(small, number)) is not None:
        pieces = _cut(small, ranks)
        try:
            fused = _fuse(pieces)
        except CheckpointError:
            fused = None
        if fused is None or not (_same_tensor(fused.down, small.down) and _same_tensor(fused.up, small.up)):
            pieces = None
    if pieces is None:
        pieces = _thirds(small, number)
    return pieces, _comfy_note(adapter, pieces, kept)


def _thirds(adapter: Adapter, number: int) -> Pieces:
    """The rows of `up`, and of what else goes by rows, in equal parts; all with the same `down`."""

    def part(tensor: Tensor | None, index: int) -> Tensor | None:
        return None if tensor is None else tensor.chunk(number)[index].clone()

    return [
        _peer_alpha(
            Adapter(
                adapter.down.clone(),
                adapter.up.chunk(number)[i].clone(),
                adapter.alpha,
                part(adapter.magnitude, i),
                part(adapter.bias, i),
            )
        )
        for i in range(number)
    ]


def _blocks(adapter: Adapter, number: int) -> list[int] | None:
    """The ranks of the blocks if `up` is a block diagonal; None where a component is of several layers, or of none."""
    if adapter.magnitude is not None or adapter.bias is not None:
        return None
    used = (each_bit(adapter.up) != 0).reshape(number, -1, adapter.rank).any(1)  # (layers, rank)
    if (used.sum(0) != 1).any():
        return None
    ranks: list[int] = used.sum(1).tolist()
    return ranks


def _cut(adapter: Adapter, ranks: Sequence[int]) -> Pieces:
    """The blocks of a block diagonal, each with its strength."""
    pieces: Pieces = []
    rows, column = len(adapter.up) // len(ranks), 0
    for third, rank in enumerate(ranks):
        columns = slice(column, column + rank)
        up = adapter.up[third * rows : (third + 1) * rows, columns]
        alpha = None if adapter.scale == 1 else _double(adapter.scale * rank)
        pieces.append(Adapter(adapter.down[columns].clone(), up.clone(), alpha) if rank else None)
        column += rank
    return pieces


def _without_zeros(adapter: Adapter) -> tuple[Adapter, list[int] | None]:
    """The adapter without components that are zero on both sides, and which are left; None where all are."""
    used = (each_bit(adapter.down) != 0).any(1) | (each_bit(adapter.up) != 0).any(0)
    if used.all() or not used.any():
        return adapter, None
    kept = used.nonzero()[:, 0]
    alpha = None if adapter.scale == 1 else _double(adapter.scale * len(kept))
    small = Adapter(adapter.down[kept], adapter.up[:, kept].contiguous(), alpha, adapter.magnitude, adapter.bias)
    return small, kept.tolist()


# Notes


def _note(text: str | None) -> dict[str, Any]:
    """A note of ours, or nothing where it cannot be read: it only spares a detour."""
    try:
        found = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _note_of(pieces: Pieces) -> dict[str, Any]:
    """What makes `_peer_again` give these pieces."""
    return {
        "ranks": [piece.rank if piece is not None else 0 for piece in pieces],
        "alphas": [None if piece is None or piece.alpha is None else piece.alpha.item() for piece in pieces],
        "types": [_types(piece) if piece is not None else None for piece in pieces],
    }


def _types(piece: Adapter) -> list[str]:
    return [str(tensor.dtype).removeprefix("torch.") for tensor in (piece.down, piece.up)]


def _peer_again(adapter: Adapter, number: int, note: Any) -> Pieces | None:
    """The pieces that were fused into an adapter, by the note; None where it does not lead back to the adapter."""
    try:
        ranks, alphas, types = note["ranks"], note["alphas"], note["types"]
        rows, column = len(adapter.up) // number, 0
        present = [i for i in range(number) if ranks[i]]
        together = number > 1 and len(present) == number and all(rank == adapter.rank for rank in ranks)
        if not (len(ranks) == len(alphas) == len(types) == number and present):
            return None
        if any(not 0 <= rank <= adapter.rank for rank in ranks):
            return None
        scales = [Fraction(1) if alphas[i] is None else Fraction(alphas[i]) / ranks[i] for i in present]
        _, times = _common(scales)
        pieces: Pieces = [None] * number
        for factor, i in zip(times, present, strict=True):
            columns = slice(0, None) if together else slice(column, column + ranks[i])
            down, up = (DTYPES[kind] for kind in types[i])
            block = adapter.up[i * rows : (i + 1) * rows, columns]
            block = (block.double() / factor).to(up) if factor not in (0, 1) else block.to(up)
            alpha = None if alphas[i] is None else torch.tensor(float(alphas[i]), dtype=torch.float64)
            pieces[i] = _peer_alpha(Adapter(adapter.down[columns].to(down).clone(), block.clone().contiguous(), alpha))
            column += ranks[i]
        fused = _fuse(pieces)
        return pieces if _same(fused, adapter) else None
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, OverflowError, ZeroDivisionError):
        return None


def _comfy_note(adapter: Adapter, pieces: Pieces, kept: list[int] | None = None) -> dict[str, Any]:
    """What makes `_comfy_again` give this adapter; empty where the pieces say it by themselves."""
    if adapter.magnitude is not None or adapter.bias is not None:
        return {}
    note: dict[str, Any] = {}
    if kept is not None:
        note |= {"rank": adapter.rank, "kept": kept}
    fused = _fuse(pieces)
    if kept is not None or not _same_tensor(fused.alpha, adapter.alpha):
        alpha = adapter.alpha
        note["alpha"] = None
        if alpha is not None:
            note["alpha"] = [str(alpha.dtype).removeprefix("torch."), list(alpha.shape), alpha.item()]
    return note


def _comfy_again(pieces: Pieces, note: Any) -> Adapter | None:
    """The adapter that was split into the pieces, by the note; None where it does not lead back to the pieces."""
    try:
        fused = _fuse(pieces)
        down, up, alpha, rank = fused.down, fused.up, None, fused.rank
        if "kept" in note:
            rank, kept = note["rank"], torch.tensor(note["kept"], dtype=torch.int64)
            if len(kept) != fused.rank or not rank <= 4096 or not bool((kept.diff() > 0).all()):
                return None
            down = torch.zeros(rank, down.shape[1], dtype=down.dtype).index_copy(0, kept, down)
            up = torch.zeros(len(up), rank, dtype=up.dtype).index_copy(1, kept, up)
        if note["alpha"] is not None:
            kind, shape, value = note["alpha"]
            if math.prod(shape) != 1 or len(shape) > 4:
                return None
            alpha = torch.full(shape, value, dtype=DTYPES[kind])
        adapter = Adapter(down, up, alpha)
        return adapter if math.isclose(adapter.scale, fused.scale, rel_tol=1e-12) else None
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, OverflowError, ZeroDivisionError):
        return None


# Strengths


def _common(scales: Sequence[Fraction]) -> tuple[Fraction, list[int]]:
    """One scale, and the whole number of times that each of `scales` is of it.

    Scales are the same where they differ in the rounding of a float64 alone, which no product can show.
    """
    if all(math.isclose(scale, scales[0], rel_tol=1e-15) for scale in scales):
        return scales[0], [1] * len(scales)
    common = Fraction(0)
    for scale in scales:
        common = Fraction(
            math.gcd(common.numerator * scale.denominator, scale.numerator * common.denominator),
            common.denominator * scale.denominator,
        )
    return common, [int(scale / common) for scale in scales]


def _times(tensor: Tensor, factor: int) -> Tensor:
    """`tensor * factor` without rounding: in its own type, or in the first wider one that can hold it.

    Raises:
        CheckpointError: where none can.
    """
    if factor == 1:
        return tensor
    exact = abs(factor) < 2**29 and tensor.dtype != torch.float64  # in float64
    if factor and (exact or abs(factor).bit_count() == 1):
        product = tensor.double() * factor
        for dtype in (tensor.dtype, torch.float32, torch.float64):
            cast = product.to(dtype)
            if _same_tensor(cast.double(), product) and torch.isfinite(cast).all():
                return cast
    raise CheckpointError("q, k and v have different strengths, which one alpha cannot hold exactly.")


def _peer_alpha(adapter: Adapter) -> Adapter:
    """With its strength as the header can say it: a float, none where it is 1."""
    alpha = None if adapter.scale == 1 else _double(adapter.scale * adapter.rank)
    return Adapter(adapter.down, adapter.up, alpha, adapter.magnitude, adapter.bias)


def _double(value: Fraction) -> Tensor:
    return torch.tensor(_float(value), dtype=torch.float64)


def _float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        raise CheckpointError("the strength is too large for a number.") from None


def _header(layers: Mapping[str, Adapter], *, always: bool = False) -> dict[str, Any] | None:
    """peft's configuration, each key after `transformer.`; None where it would say nothing that the tensors do not."""
    if not always and all(adapter.scale == 1 for adapter in layers.values()):
        return None
    ranks = {name: adapter.rank for name, adapter in layers.items()}
    alphas = {name: ranks[name] if a.alpha is None else a.alpha.item() for name, a in layers.items()}
    alphas = {name: int(value) if value == int(value) else value for name, value in alphas.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    found = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(layers),
        "use_dora": any(adapter.magnitude is not None for adapter in layers.values()),
        "lora_bias": any(adapter.bias is not None for adapter in layers.values()),
    }
    return {f"transformer.{key}": value for key, value in found.items()}


def _commonest(values: Mapping[str, Any]) -> Any:
    counts = Counter(values.values())
    return min(counts, key=lambda value: (-counts[value], value))


def _says(header: str, layers: Mapping[str, Adapter]) -> bool:
    """Whether a header gives the layers the ranks and strengths that they have."""
    try:
        settings = parse_settings(header, "", {name: {"magnitude": a.magnitude} for name, a in layers.items()})
    except CheckpointError:
        return False
    told = {name: settings.of(name) for name in layers}
    return all(
        told[name][0] == adapter.rank and Fraction(told[name][1]) / adapter.rank == adapter.scale
        for name, adapter in layers.items()
    )


# Sameness


def _same_tensor(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors have the same type, shape and bits."""
    if one is None or other is None:
        return one is other
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(each_bit(one), each_bit(other)) if one.is_floating_point() else torch.equal(one, other)


def _same(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters are the same to the last bit, and equally strong."""
    pairs = ((one.down, other.down), (one.up, other.up), (one.magnitude, other.magnitude), (one.bias, other.bias))
    return one.scale == other.scale and all(_same_tensor(*pair) for pair in pairs)


def _all_same(some: Pieces, others: Pieces) -> bool:
    return len(some) == len(others) and all(
        one is other if one is None or other is None else _same(one, other)
        for one, other in zip(some, others, strict=True)
    )


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    """The type that holds the values of all."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
