"""Image to image: steps that start from a picture and noise, rather than from noise alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..engine import Edit, Request
from .canvas import Canvas, digest
from .change import Known, finishing, from_picture, started, told
from .whole_picture import WholePicture


@dataclass(eq=False)
class ImageToImage(WholePicture):
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

    def request(self, fresh: Request, canvas: Canvas, known: Known) -> Request:
        """The request of the changed picture, from that of a fresh one and the canvas's clean latents."""
        begun = from_picture(lambda latents: started(fresh, latents, self.strength), known, fresh.latents)
        settings = told(
            fresh, canvas.given_size, kind="image to image", strength=self.strength, fit=self.fit, size=self.size,
            image=digest(self.image),
        )  # fmt: skip
        edit = replace(begun.edit or Edit(), finish=finishing(canvas))
        return replace(begun, edit=edit, settings=settings)
