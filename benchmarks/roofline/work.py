"""Operations and bytes, how they add up, and the names of the parts that they are counted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Literal

BYTES = {"float32": 4, "bfloat16": 2, "float8": 1, "bool": 1, "int64": 8}

STEP, REQUEST = "step", "request"
EMBEDDING = "embedding"
TIME = "time and modulations"
QKV = "qkv product"
ATTENTION = "attention"
OUTPUT = "output product"
FEED_FORWARD = "feed-forward"
ELEMENTWISE = "element-wise"
FINAL = "final layer"
TEXT = "text projection"
TABLES = "rotary tables, mask"
PARTS = (EMBEDDING, TIME, QKV, ATTENTION, OUTPUT, FEED_FORWARD, ELEMENTWISE, FINAL, TEXT, TABLES)


@dataclass(frozen=True)
class Moved:
    """Elements of one type that pass between memory and processor."""

    kind: Literal["weights", "read", "written"]
    dtype: str
    elements: int

    @property
    def bytes(self) -> int:
        return self.elements * BYTES[self.dtype]


@dataclass(frozen=True)
class Work:
    """Operations and traffic.

    Attributes:
        matrix_flops: of matrix products and attention, 2 for a multiplication and its addition.
        vector_flops: all others.
        moved: weights read, activations read, activations written.
    """

    matrix_flops: int = 0
    vector_flops: int = 0
    moved: tuple[Moved, ...] = ()

    def __add__(self, other: Work) -> Work:
        return Work(
            self.matrix_flops + other.matrix_flops, self.vector_flops + other.vector_flops, self.moved + other.moved
        )

    def __mul__(self, times: int) -> Work:
        moved = tuple(replace(entry, elements=times * entry.elements) for entry in self.moved)
        return Work(times * self.matrix_flops, times * self.vector_flops, moved)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.moved)

    def bytes_by_type(self) -> dict[str, dict[str, int]]:
        """Bytes by kind (weights, read, written), then by data type."""
        table: dict[str, dict[str, int]] = {"weights": {}, "read": {}, "written": {}}
        for entry in self.moved:
            table[entry.kind][entry.dtype] = table[entry.kind].get(entry.dtype, 0) + entry.bytes
        return table


def total(works: Sequence[Work]) -> Work:
    """The sum of several works."""
    return reduce(add, works, Work())


@dataclass(frozen=True)
class Part:
    """The work of one part of the network in one call of a transformer.

    Attributes:
        name: one of `PARTS`.
        call: the call that it belongs to: parts of different calls do not overlap.
        when: at each step, or once for a request.
        work: the work.
    """

    name: str
    call: str
    when: str
    work: Work
