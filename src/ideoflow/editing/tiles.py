"""Tiles of a large picture: where they lie, how they overlap, and one picture of what was made of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Span = tuple[int, int]  # where a tile begins and ends


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Tiles that cover a length, all as long, neighbours overlapping by `overlap` or more, evenly.

    One tile, as long as the length, where that does.
    """
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    begins = [round(number * (length - tile) / (count - 1)) for number in range(count)]
    return [(begin, begin + tile) for begin in begins]


@dataclass(frozen=True)
class Tile:
    """One tile of a grid.

    Attributes:
        rows: Rows of the grid that it covers.
        cols: Columns of the grid that it covers.
    """

    rows: Span
    cols: Span

    def of(self, grid: Tensor) -> Tensor:
        """Its part of `(..., rows, cols, channels)`."""
        return grid[..., slice(*self.rows), slice(*self.cols), :]


def tiles(grid: tuple[int, int], tile: tuple[int, int], overlap: int) -> list[Tile]:
    """The tiles of a grid of `(rows, cols)`, row by row."""
    return [Tile(rows, cols) for rows in spans(grid[0], tile[0], overlap) for cols in spans(grid[1], tile[1], overlap)]


class Blended:
    """What tiles give, one after another, as one: each fades out where its neighbours overlap it.

    Args:
        size: `(rows, cols)` of all.
        channels: Of each place.
        overlap: Over how many places a tile fades out from its border to its inside.
    """

    def __init__(self, size: tuple[int, int], channels: int, overlap: int) -> None:
        self.overlap = overlap
        self._sum = torch.zeros(*size, channels)
        self._weight = torch.zeros(*size, 1)

    def add(self, tile: Tile, values: Tensor) -> None:
        """Take what a tile gives, `(rows, cols, channels)`."""
        down = self._ramp(tile.rows, len(self._sum))
        across = self._ramp(tile.cols, self._sum.shape[1])
        weight = (down[:, None] * across)[..., None]
        tile.of(self._sum).add_(weight * values.to(self._sum))
        tile.of(self._weight).add_(weight)

    def whole(self) -> Tensor:
        """`(rows, cols, channels)` of all tiles, every one of which has been added."""
        return self._sum.div_(self._weight)

    def _ramp(self, span: Span, length: int) -> Tensor:
        """Weights along one side: rising from a border that is shared, and falling to one."""
        begin, end = span
        place = torch.arange(end - begin) + 0.5
        fade = self.overlap
        rising = (place / fade).clamp(max=1) if fade and begin > 0 else torch.ones(end - begin)
        falling = (place.flip(0) / fade).clamp(max=1) if fade and end < length else torch.ones(end - begin)
        return torch.minimum(rising, falling)


def scaled(tile: Tile, unit: int) -> Tile:
    """The tile in parts of its places, `unit` a side: of tokens, in pixels."""
    return Tile(_times(tile.rows, unit), _times(tile.cols, unit))


def _times(span: Sequence[int], unit: int) -> Span:
    return span[0] * unit, span[1] * unit
