"""Layers of a model, the precisions that their weights can be kept in, and the bytes that they then take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING

from ..ops.quantized_layers import is_quantized_layer

if TYPE_CHECKING:
    from .shapes import Shapes

from ..dtypes import BYTES, COMPUTED

ITEMSIZE = {name: BYTES[name] for name in COMPUTED}
ONE_BYTE = ("int8", "fp8")  # a byte a weight and a float32 scale a row, see `ideoflow.ops`
NF4 = "nf4"
NF4_BLOCK = 64  # weights that share a scale
NF4_NESTED = 256  # scales that share a scale of their own under double quantization
NF4_TABLES = (16 * 4, 256 * 4 + 4)  # bytes a layer: the code book; that of the scales, and their mean

_TEXT_LAYER = re.compile(r"(?:language_model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)")
_BLOCK = re.compile(r"(?:.*\.)?layers\.(\d+)(?:\..*)?")


@dataclass(frozen=True)
class Layer:
    """Parameters of one layer of a component.

    Attributes:
        name: Name of the layer in `named_modules`.
        weights: Number of entries of its weight that can be quantized; 0 where the layer never is.
        rows: Rows of that weight.
        others: Number of all other entries: biases, gains, tables, statistics.
        block: Index in the stack of equal blocks; None outside.
    """

    name: str
    weights: int
    rows: int
    others: int
    block: int | None = None

    @property
    def numbers(self) -> int:
        """All its parameters and buffers."""
        return self.weights + self.others

    def bytes(self, precision: str, base: str = "bfloat16") -> int:
        """Bytes of the layer.

        Args:
            precision: "float32", "bfloat16", "float16", "int8", "fp8", "nf4" (with double quantization) or
                "nf4 single" (with float32 scales).
            base: Type of what is not quantized, and of the whole layer where nothing is.
        """
        if precision in ITEMSIZE:
            return self.numbers * ITEMSIZE[precision]
        if not self.weights:
            return self.others * ITEMSIZE[base]
        return quantized_bytes(precision, self.weights, self.rows) + self.others * ITEMSIZE[base]


def can_be_quantized(name: str) -> bool:
    """Whether the layer of that name, of a transformer or of the text encoder, is a large linear one in a block."""
    return is_quantized_layer(name) or _TEXT_LAYER.fullmatch(name) is not None


def layer_of(name: str, weights: int, rows: int, others: int) -> Layer:
    """A layer, in the block that its name says."""
    match = _BLOCK.fullmatch(name)
    return Layer(name, weights, rows, others, int(match[1]) if match else None)


def layers_of(shapes: Shapes) -> tuple[Layer, ...]:
    """The layers of parameters and buffers of these names and shapes, in their order."""
    of_layer: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, _, key = name.rpartition(".")
        of_layer.setdefault(layer, {})[key] = shape
    found = []
    for name, own in of_layer.items():
        weight = own.pop("weight") if can_be_quantized(name) else (0,)
        found.append(layer_of(name, prod(weight), weight[0], sum(map(prod, own.values()))))
    return tuple(found)


def quantized_bytes(precision: str, weights: int, rows: int) -> int:
    """Bytes of a quantized weight with its scales.

    * int8, fp8: `weights + 4 * rows`.
    * nf4 single: `weights / 2 + 4 * weights / 64`, and 64 for the code book.
    * nf4: `weights / 2 + weights / 64` (the scales themselves in a byte) `+ 4 * weights / (64 * 256)`, and 1092 for the
      code books of weights and scales and the scales' mean.

    Divisions round up. The two of nf4 are bitsandbytes' (`compress_statistics=False` and `True`).
    """
    if precision in ONE_BYTE:
        return weights + 4 * rows
    scales = -(-weights // NF4_BLOCK)
    if precision == f"{NF4} single":
        return -(-weights // 2) + 4 * scales + NF4_TABLES[0]
    if precision == NF4:
        return -(-weights // 2) + scales + 4 * -(-scales // NF4_NESTED) + sum(NF4_TABLES)
    raise ValueError(f"`precision` is {precision!r}: choose one of {', '.join((*ITEMSIZE, *ONE_BYTE, NF4))}.")


def has_bitsandbytes() -> bool:
    """Whether nf4 can be had here."""
    return find_spec("bitsandbytes") is not None
