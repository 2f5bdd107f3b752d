"""Where the things of a picture of the sketch world go, by what was said of their places and by how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .masks import PITCH
from .scene import Box
from .wanted import Thing

CELLS = 40  # boxes lie on so many lines a side, as those that the model was trained on
FILLED = 0.88  # of its part of the picture, for a thing of ordinary size
LARGEST, SMALLEST = 0.58, 0.2  # sides of a shape over the picture's shorter one; larger if it was said to be large
TALLEST = 0.42  # letters over the picture's shorter side
NESTED = 0.5  # of the shape that another lies on
NARROW = 2  # letters of a word that can stand in a row with others


@dataclass(frozen=True)
class Relation:
    """Where a thing lies beside others: above, below, left, right, beside, inside, on or between; by their numbers."""

    kind: str
    thing: int
    others: tuple[int, ...]


@dataclass(frozen=True)
class _Cell:
    """A part of the picture: its centre and its sides, in shares of the picture."""

    x: float
    y: float
    wide: float
    high: float


def boxes(things: Sequence[Thing], relations: Sequence[Relation], aspect: float) -> list[Box]:
    """The box of each thing, in thousandths.

    Args:
        things: what is to be placed.
        relations: how they lie to each other.
        aspect: width over height of the picture.
    """
    if not things:
        return []
    under = {
        one.thing: one.others[0] for one in relations if one.kind in ("on", "inside") and one.others[0] != one.thing
    }
    free = [number for number in range(len(things)) if number not in under]
    rows = _rows(things, free, relations)
    found: dict[int, Box] = {}
    for cell, number in _cells(things, rows):
        found[number] = _box(things[number], cell, aspect)
    for number, outer in under.items():
        top, left, bottom, right = found.get(outer, (250, 250, 750, 750))
        wide, high = (right - left) / 1000, (bottom - top) / 1000
        beside = [one for one in under if under[one] == outer]
        wide = NESTED * wide / len(beside) ** 0.5
        x = (left + right) / 2000 + wide * (beside.index(number) - (len(beside) - 1) / 2)
        cell = _Cell(x, (top + bottom) / 2000, wide, NESTED * high)
        found[number] = _box(things[number], cell, aspect, whole=True)
    return [found[number] for number in range(len(things))]


def kept(relation: Relation, places: Sequence[Box]) -> bool:
    """Whether boxes lie as a relation says; one beside another may lie anywhere."""
    (top, left, bottom, right), others = places[relation.thing], [places[other] for other in relation.others]
    a, b = others[0], others[-1]
    if relation.kind == "between":
        return (min(a[3], b[3]) <= left and right <= max(a[1], b[1])) or (
            min(a[2], b[2]) <= top and bottom <= max(a[0], b[0])
        )
    return {
        "above": bottom <= a[0],
        "below": top >= a[2],
        "left": right <= a[1],
        "right": left >= a[3],
        "on": a[0] <= top and bottom <= a[2] and a[1] <= left and right <= a[3],
        "inside": a[0] <= top and bottom <= a[2] and a[1] <= left and right <= a[3],
    }.get(relation.kind, True)


def _rows(things: Sequence[Thing], free: list[int], relations: Sequence[Relation]) -> dict[int, list[int]]:
    """The numbers of the things in each row; rows count from -1, at the top, to 1, and finer where nothing was said."""
    row = {number: things[number].row for number in free}
    for number in free:
        if things[number].column is not None and row[number] is None:
            row[number] = 0
    for one in relations:
        a, b = one.thing, one.others[0]
        if a not in row or b not in row:
            continue
        step = {"above": -1, "below": 1}.get(one.kind)
        if step is not None:
            if row[b] is None and row[a] is None:
                group = [other.thing for other in relations if (other.kind, other.others) == (one.kind, one.others)]
                row[b] = -step
                for number in group:  # all of a group are as far from it
                    if number in row and row[number] is None:
                        row[number] = step
            elif row[b] is None:
                row[b] = (row[a] or 0) - step
            elif row[a] is None:
                row[a] = (row[b] or 0) + step
        elif row[a] is None or row[b] is None:
            shared = row[a] if row[a] is not None else row[b]
            for number in (a, *one.others):
                if number in row and row[number] is None:
                    row[number] = 0 if shared is None else shared
    if all(value is None for value in row.values()):
        return _arranged(things, free)
    taken = {value for value in row.values() if value is not None}
    for number in free:
        if row[number] is None:
            counts = {one: sum(value == one for value in row.values()) for one in (0, 1, -1)}
            row[number] = min(counts, key=lambda one: (counts[one] + (one not in taken and one != 0), one != 0))
    settled = {number: value or 0 for number, value in row.items()}
    return {
        one: _in_order(things, [number for number in free if settled[number] == one], relations)
        for one in sorted(set(settled.values()))
    }


def _in_order(things: Sequence[Thing], numbers: list[int], relations: Sequence[Relation]) -> list[int]:
    """The things of a row from left to right."""
    order = {number: float(things[number].column or 0) for number in numbers}
    for one in [*relations] * len(relations):  # until chains have settled
        if one.thing not in order or any(other not in order for other in one.others):
            continue
        if None not in [things[number].column for number in (one.thing, *one.others)]:
            continue  # their places were said, and count
        if one.kind == "left":
            order[one.thing] = min(order[one.thing], order[one.others[0]] - 0.5)
        elif one.kind == "right":
            order[one.thing] = max(order[one.thing], order[one.others[0]] + 0.5)
        elif one.kind == "between" and len(one.others) == 2:
            order[one.others[0]], order[one.others[1]] = -0.5, 0.5
    return sorted(numbers, key=order.__getitem__)


def _arranged(things: Sequence[Thing], free: list[int]) -> dict[int, list[int]]:
    """Rows for things of which no place was said: long words have a row each, shapes share them."""
    long = [number for number in free if len(things[number].word) > NARROW]
    others = [number for number in free if number not in long]
    if long and len(free) <= 3:
        return {place: [number] for place, number in enumerate(free)}
    most = len(others) if len(others) <= 3 else 2 if len(others) == 4 else 3
    rows = [others[at : at + most] for at in range(0, len(others), most)] if others else []
    return dict(enumerate([*rows, *([number] for number in long)]))


def _cells(things: Sequence[Thing], rows: dict[int, list[int]]) -> list[tuple[_Cell, int]]:
    said = any(things[number].row is not None for row in rows.values() for number in row) or min(rows) < 0
    cells = []
    for place, (row, numbers) in enumerate(rows.items()):
        if not said or min(rows) < -1 or max(rows) > 1:
            y, high = (place + 0.5) / len(rows), 1 / len(rows)
        elif len(rows) == 1:
            y, high = 0.5 + 0.23 * row, 1.0 if row == 0 else 0.54
        elif 0 in rows:
            y, high = 0.5 + row / 3, 1 / 3
        else:
            y, high = 0.5 + 0.25 * row, 0.5
        columns = [things[number].column for number in numbers]
        spread = len(numbers) == 2 and set(columns) in ({-1, 0}, {0, 1})
        for order, number in enumerate(numbers):
            column = columns[order]
            if len(numbers) == 1 and column:
                x, wide = 0.5 + 0.24 * column, 0.52
            elif spread:
                x, wide = 0.5 + (column or 0) / 3, 1 / 3
            else:
                x, wide = (order + 0.5) / len(numbers), 1 / len(numbers)
            cells.append((_Cell(x, y, wide, high), number))
    return cells


def _box(thing: Thing, cell: _Cell, aspect: float, whole: bool = False) -> Box:
    """The box of a thing in its part of the picture; `whole`: it may fill all of it."""
    short = min(aspect, 1.0)  # the picture is `aspect` wide and 1 high
    room_wide, room_high = cell.wide * aspect, cell.high
    shape = len(thing.word) * PITCH if thing.word else thing.wide
    most = short * (TALLEST if thing.word else LARGEST / max(1.0, shape) ** 0.5) * thing.size
    high = min(FILLED * thing.size * min(room_high, room_wide / shape), most)
    high = min(high, 0.95 * room_high, 0.95 * room_wide / shape)
    if not whole:
        high = max(high, min(SMALLEST * short, room_high, room_wide / shape))
    return _on_lines(cell, shape * high / aspect, high)


def _on_lines(cell: _Cell, wide: float, high: float) -> Box:
    columns, rows = (
        max(4, min(CELLS - 2, 2 * round(side * CELLS / 2))) for side in (wide, high)
    )  # even: in the middle
    left = max(0, min(CELLS - columns, round(cell.x * CELLS - columns / 2)))
    top = max(0, min(CELLS - rows, round(cell.y * CELLS - rows / 2)))
    step = 1000 // CELLS
    return top * step, left * step, (top + rows) * step, (left + columns) * step
