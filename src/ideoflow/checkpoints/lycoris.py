"""LoKr and LoHa in files: the factors of each layer, with their strength, for the model's layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .errors import CheckpointError
from .tensors import TensorInfo

if TYPE_CHECKING:
    from ..ops.factored import Factors

Kind = Literal["LoKr", "LoHa"]
# The names of factors in files: of each side, whole or as a product of two.
SIDES = {"LoKr": ("lokr_w1", "lokr_w2"), "LoHa": ("hada_w1", "hada_w2")}
PARTS = (
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
)


def kind_of(parts: Mapping[str, object]) -> Kind | None:
    """What a layer's tensors are of, by their parts; None for LoRA."""
    if any(part.startswith("lokr_") for part in parts):
        return "LoKr"
    return "LoHa" if any(part.startswith("hada_") for part in parts) else None


@dataclass(frozen=True)
class Factored:
    """What is added to one layer's weight: `scale` times a Kronecker product (LoKr), or one entry by entry (LoHa).

    Attributes:
        kind: "LoKr" or "LoHa".
        left: the left factor: one matrix, or two whose product is meant.
        right: the right factor, likewise.
        alpha: one number; None for the rank.
        given: the scale that a configuration gives, in place of `alpha / rank`.
        rows: the first row that is wanted and the one after the last; None for all.
    """

    kind: Kind
    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    alpha: Tensor | None = None
    given: float | None = None
    rows: tuple[int, int] | None = None

    @property
    def rank(self) -> int | None:
        """Of what is stored as a product of two; None where nothing is."""
        return next((one[0].shape[1] for one in (self.right, self.left) if len(one) == 2), None)

    @property
    def scale(self) -> float:
        """`alpha / rank`; 1 without an alpha, and where both sides are whole, as LyCORIS trains them."""
        if self.given is not None:
            return self.given
        return 1.0 if self.alpha is None or self.rank is None else self.alpha.item() / self.rank

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the whole product."""
        if self.kind == "LoHa":
            return self.left[0].shape[0], self.left[-1].shape[1]
        return self.left[0].shape[0] * self.right[0].shape[0], self.left[-1].shape[1] * self.right[-1].shape[1]

    def part(self, start: int, stop: int) -> Factored:
        """The same for rows `start` to `stop`, with no more of the factors than they need."""
        if self.kind == "LoHa":
            left, right = ((one[0][start:stop].clone(), *one[1:]) for one in (self.left, self.right))
            return replace(self, left=left, right=right)
        height = self.right[0].shape[0]  # rows of a block
        first, last = start // height, -(-stop // height)
        left = (self.left[0][first:last].clone(), *self.left[1:])
        rows = (start - first * height, stop - first * height)
        return replace(self, left=left, rows=None if rows == (0, (last - first) * height) else rows)

    def factors(self) -> Factors:
        """The module that computes it, without the scale."""
        from ..ops.factored import Hadamard, Kronecker  # reading files alone needs no layers

        if self.kind == "LoHa":
            return Hadamard(self.left, self.right)
        return Kronecker(self.left, self.right, *(self.rows or ()))


def check(origin: str, layer: str, infos: Mapping[str, TensorInfo]) -> None:
    """Raise unless the tensors of a layer are the factors of one kind, whole, and fit each other.

    Args:
        origin: the file, for messages.
        layer: the layer's name.
        infos: what the header says of its tensors, by part.

    Raises:
        CheckpointError: naming the tensor.
    """
    kind = kind_of(infos)
    assert kind is not None
    if "magnitude" in infos:
        raise CheckpointError(
            f"{origin}: {infos['magnitude'].name!r} makes this {kind} with DoRA, which is not supported: train without"
            " weight decomposition, or use LoRA with it."
        )
    own = {part for part in infos if part.startswith("lokr_" if kind == "LoKr" else "hada_")}
    strange = [infos[part].name for part in infos if part not in own and part != "alpha"]
    if strange:
        raise CheckpointError(f"{origin}: {strange[0]!r} has no place in {kind}, which {layer} has: keep one of them.")
    ranks = []
    for side in SIDES[kind]:
        pair = [f"{side}_a", f"{side}_b"]
        found = [part for part in (side, *pair) if part in own]
        if found not in ([side], pair):
            there = infos[found[0]].name if found else f"the {kind} of {layer}"
            missing = [part for part in pair if part not in found] if found != [] else [side]
            more = f"keep it, or {' and '.join(pair)}" if side in found else f"{' and '.join(missing)} is not there"
            raise CheckpointError(
                f"{origin}: {there!r} is a part of {kind} that is not whole: {more}. Fetch or save the file again."
            )
        shapes = [infos[part].shape for part in found]
        for part, shape in zip(found, shapes, strict=True):
            if len(shape) != 2 or 0 in shape:
                raise CheckpointError(f"{origin}: {infos[part].name!r} has shape {list(shape)}; it must be a matrix.")
        if len(shapes) == 2:
            if shapes[0][1] != shapes[1][0]:
                raise CheckpointError(
                    f"{origin}: {infos[found[0]].name!r} has rank {shapes[0][1]}, {infos[found[1]].name!r} rank"
                    f" {shapes[1][0]}: they must be equal."
                )
            ranks.append(shapes[0][1])
    if len(set(ranks)) > 1 and "alpha" in infos:
        raise CheckpointError(
            f"{origin}: the {kind} of {layer} has the ranks {ranks[0]} and {ranks[1]}, and its alpha says not which of"
            " them it is divided by."
        )
    if "alpha" in infos and math.prod(infos["alpha"].shape) != 1:
        raise CheckpointError(
            f"{origin}: {infos['alpha'].name!r} has shape {list(infos['alpha'].shape)}; it must be one number."
        )
    out, width = shape_of(infos)
    if kind == "LoHa" and any(infos[f"hada_w2_{h}"].shape[a] != s for h, a, s in (("a", 0, out), ("b", 1, width))):
        raise CheckpointError(
            f"{origin}: the two products of the LoHa of {layer} have different shapes"
            f" ({infos['hada_w1_a'].name!r} and the like): they must be equal."
        )
    if layer.endswith(".qkv") and out % 3:
        raise CheckpointError(
            f"{origin}: the {kind} of {layer} has {out} rows, which should be queries, keys and values in equal parts."
        )


def shape_of(infos: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """(outputs, inputs) of the layer that such tensors are for; zeros where they are not whole."""
    sizes = []
    for axis, end in ((0, "_a"), (1, "_b")):
        size = 1
        for side in SIDES["LoKr"] if kind_of(infos) == "LoKr" else SIDES["LoHa"][:1]:
            info = infos.get(side, infos.get(side + end))
            size *= info.shape[axis] if info is not None and len(info.shape) == 2 else 0
        sizes.append(size)
    return sizes[0], sizes[1]


def factored(parts: Mapping[str, Tensor], given: float | None = None) -> Factored:
    """The factors of a layer, from its checked tensors by part."""
    kind = kind_of(parts)
    assert kind is not None
    sides = [[parts[side]] if side in parts else [parts[f"{side}_a"], parts[f"{side}_b"]] for side in SIDES[kind]]
    dtype = reduce(torch.promote_types, [one.dtype for side in sides for one in side])
    left, right = (tuple(one.to(dtype) for one in side) for side in sides)
    return Factored(kind, left, right, parts.get("alpha"), given)
