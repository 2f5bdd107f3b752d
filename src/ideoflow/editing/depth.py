"""How deep pixels lie within a region, and how wide it is there, in time that does not grow with the depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Inside = NDArray[np.bool_]
Depths = NDArray[np.int32]


def depth(inside: Inside, most: int) -> Depths:
    """The distance of each pixel to the nearest one outside, along rows, columns and diagonals alike.

    Two passes over the rows, after Rosenfeld and Pfaltz, "Sequential Operations in Digital Picture Processing" (1966).

    Args:
        inside: `(height, width)`. What lies beyond is no outside.
        most: The largest distance that is told from smaller ones.
    """
    far = np.where(inside, most, 0).astype(np.int32)
    _sweep(far)
    _sweep(far[::-1, ::-1])
    return far


def middle(deep: Depths) -> Inside:
    """The middle lines of a region and of its arms: from there, depth grows nowhere by more than 3/4 of the way.

    From an edge it grows by all of the way, and not at all along an arm. So what sticks out by less than a third of
    `most` is hardly an arm: it is a roughness of the edge.

    Args:
        deep: As `depth` gives it; where it is `most`, that is a middle as well.
    """
    lowest = -4 * deep
    _sweep(lowest, 3)
    _sweep(lowest[::-1, ::-1], 3)
    return (lowest == -4 * deep) & (deep > 0)


def _sweep(far: Depths, step: int = 1) -> None:
    """Bring values down to what the rows above, and the pixels to the left, allow: theirs and `step` for each pixel."""
    columns = np.arange(far.shape[1], dtype=np.int32) * step
    for number, row in enumerate(far):
        if number:
            above = far[number - 1] + step
            np.minimum(row, above, out=row)
            np.minimum(row[1:], above[:-1], out=row[1:])
            np.minimum(row[:-1], above[1:], out=row[:-1])
        row[:] = np.minimum.accumulate(row - columns) + columns


def deepest_of_part(inside: Inside, deep: Depths) -> Depths:
    """The greatest depth of the connected part that each pixel belongs to; 0 outside.

    Parts are found by the runs of each row: each is joined with those that touch it in the row above.

    Args:
        inside: `(height, width)`.
        deep: As `depth` gives it.
    """
    width = inside.shape[1]
    bounds = np.diff(np.pad(inside, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    stride = width + 2
    begins, ends = (np.flatnonzero(np.pad(bounds == sign, ((0, 0), (0, 1)))) for sign in (1, -1))  # row * stride + col
    deepest = np.zeros_like(deep)
    if not len(begins):
        return deepest
    first, last = np.searchsorted(ends, begins - stride), np.searchsorted(begins, ends - stride, side="right")
    touching = np.maximum(last - first, 0)
    lower = np.repeat(np.arange(len(begins)), touching)
    upper = np.arange(len(lower)) + np.repeat(first - (np.cumsum(touching) - touching), touching)
    part = np.arange(len(begins))
    while (apart := part[lower] != part[upper]).any():
        lower, upper = lower[apart], upper[apart]
        one, other = part[lower], part[upper]
        np.minimum.at(part, np.maximum(one, other), np.minimum(one, other))
        while (part != (further := part[part])).any():
            part = further
    lengths = ends - begins
    of_runs = np.maximum.reduceat(deep[inside], np.cumsum(lengths) - lengths)
    of_parts = np.zeros_like(of_runs)
    np.maximum.at(of_parts, part, of_runs)
    deepest[inside] = np.repeat(of_parts[part], lengths)
    return deepest
