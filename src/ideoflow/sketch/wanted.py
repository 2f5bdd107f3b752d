"""What somebody wants of the sketch world: things on a background, before they have their places."""

from __future__ import annotations

from dataclasses import dataclass

from .scene import COLOURS

_SIZES = ((0.6, "tiny "), (0.9, "small "), (1.1, ""), (1.5, "large "))
_ROWS, _COLUMNS = {-1: "top", 1: "bottom"}, {-1: "left", 1: "right"}


@dataclass
class Thing:
    """A shape or a word that is wanted.

    Attributes:
        shape: the world's name of it; empty for a word.
        word: the letters; empty for a shape.
        colour: a name of the world's, or `#RRGGBB`; empty where none was said.
        outline: whether only its outline is drawn.
        font: sans or serif, of a word.
        size: factor over the size that its place has room for.
        row: -1 at the top, 0 in the middle, 1 at the bottom; None where none was said.
        column: the same from left to right.
        wide: width over height.
        called: how its colour was said.
    """

    shape: str = ""
    word: str = ""
    colour: str = ""
    outline: bool = False
    font: str = "sans"
    size: float = 1.0
    row: int | None = None
    column: int | None = None
    wide: float = 1.0
    called: str = ""

    @property
    def exact(self) -> bool:
        """Whether the world has no name for its colour."""
        return self.colour not in COLOURS

    @property
    def described(self) -> str:
        """It in words, with its size and its place."""
        size = next((name for most, name in _SIZES if self.size <= most), "huge ")
        places = [_ROWS.get(self.row or 0, ""), _COLUMNS.get(self.column or 0, "")]
        said = "middle" if (self.row, self.column) == (0, 0) else " ".join(filter(None, places))
        at = f" at the {said}" if said and (self.row, self.column) != (None, None) else ""
        if self.word:
            return f'the {size}word "{self.word}" in {self.called or self.colour}{at}'
        return f"{size}{self}{at}"

    def __str__(self) -> str:
        kind = f'the word "{self.word}"' if self.word else f"{self.shape} outline" if self.outline else self.shape
        colour = self.called or self.colour
        return f"{kind} in {colour}" if self.word else f"{colour} {kind}".strip()


@dataclass(frozen=True)
class Ground:
    """A background that is wanted: one colour of the world's, or two as a gradient or stripes."""

    kind: str
    colours: tuple[str, ...]
    direction: str = "vertical"

    def __str__(self) -> str:
        first, last = self.colours[0], self.colours[-1]
        if self.kind == "solid":
            return f"plain {first}"
        if self.kind == "stripes":
            return f"{self.direction} stripes of {first} and {last}"
        ends = ("top", "bottom") if self.direction == "vertical" else ("left", "right")
        return f"a gradient from {first} at the {ends[0]} to {last} at the {ends[1]}"
