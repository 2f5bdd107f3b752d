"""Image to image: steps that start from a picture and noise, rather than from noise alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor

from ..engine import Edit, Request
from .canvas import Canvas, digest, lay_out, open_picture
from .change import check_fit, check_share, finishing, started, told


@dataclass(eq=False)
class ImageToImage:
    """A picture drawn anew as a caption says, starting from what it is.

    Attributes:
        image: The picture, in any form that `open_picture` takes; an RGB picture afterwards.
        strength: How far it may change, from 0 to 1: the share of the steps that are taken.
        fit: How it comes to whole tokens: "pad", "crop" or "stretch".
        size: `(width, height)` in pixels to draw it at; None for its own, within what the weights were trained on.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that does not fit.
        OSError: a file that cannot be read.
    """

    image: Any
    strength: float = 0.6
    fit: str = "pad"
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the arguments, and open the picture."""
        self.strength = check_share("strength", self.strength)
        self.fit = check_fit(self.fit)
        self.image: Image.Image = open_picture(self.image)

    def canvas(self, unit: int, most: int | None) -> Canvas:
        """What the model works on; arguments as those of `lay_out`."""
        return lay_out(self.image, self.fit, unit, size=self.size, most=most)

    def result_size(self, unit: int, most: int | None) -> tuple[int, int]:
        """`(width, height)` of what is given back; arguments as those of `lay_out`."""
        return self.canvas(unit, most).given_size

    def request(self, fresh: Request, canvas: Canvas, known: Tensor) -> Request:
        """The request of the changed picture, from that of a fresh one and the canvas's clean latents."""
        settings = told(
            fresh, canvas.given_size, kind="image to image", strength=self.strength, fit=self.fit, size=self.size,
            image=digest(self.image),
        )  # fmt: skip
        edit = Edit(finish=finishing(canvas))
        return replace(started(fresh, known, self.strength), edit=edit, settings=settings)
