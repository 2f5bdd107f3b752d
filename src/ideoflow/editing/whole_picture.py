"""Changes of a whole picture: it is laid on a canvas, and what is given back has the canvas's size."""

from __future__ import annotations

from typing import Any

from .canvas import FITS, Canvas, lay_out, open_picture
from .change import check_canvas, check_choice, check_share


class WholePicture:
    """What changes of whole pictures share.

    Attributes:
        image: The picture, in any form that `open_picture` takes; an RGB picture afterwards.
        strength: How far it may change, from 0 to 1.
        fit: How it comes to whole tokens: "pad", "crop" or "stretch".
        size: `(width, height)` in pixels to draw it at; None for its own, within what the weights were trained on.
    """

    image: Any
    strength: float
    fit: str
    size: tuple[int, int] | None

    def __post_init__(self) -> None:
        """Check the arguments, and open the picture.

        Raises:
            TypeError: naming the argument that is of another type.
            ValueError: naming the argument that does not fit.
            OSError: a file that cannot be read.
        """
        self.strength = check_share("strength", self.strength)
        self.fit = check_choice("fit", self.fit, FITS)
        self.size = None if self.size is None else check_canvas("size", self.size)
        self.image = open_picture(self.image)

    def canvas(self, unit: int, most: int | None) -> Canvas:
        """What the model works on; arguments as those of `lay_out`."""
        return lay_out(self.image, self.fit, unit, size=self.size, most=most)

    def result_size(self, unit: int, most: int | None) -> tuple[int, int]:
        """`(width, height)` of what is given back; arguments as those of `lay_out`."""
        return self.canvas(unit, most).given_size
