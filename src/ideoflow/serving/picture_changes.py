"""What clients ask to be done to a picture, as the change that does it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..captions import CaptionError
from ..editing import CaptionEdit, ImageToImage, Inpaint, redrawn
from ..images import ImageError, has_alpha, open_image, plain_errors
from .api_errors import ApiError, invalid_caption
from .job_settings import EditOrder, How, read_size, wrong
from .prompts import read_prompt

PictureChange = Inpaint | CaptionEdit | ImageToImage
LARGER = 16  # times the pixels of a picture that the server draws, that one to be changed may have


@dataclass(frozen=True)
class Wanted:
    """What a client asks to be done to a picture.

    Attributes:
        how: the kind of change; None for inpainting with a mask or a transparent picture, else the whole anew.
        hole: what may change, a picture file or boxes; None where there is no mask.
        mask_changes: what of a mask changes.
        before: the caption of the picture as it is.
        size: "WxH" to draw at; None for the picture's own.
        options: `strength`, `feather` and `harmonise`, where they are given.
    """

    how: How | None
    hole: bytes | Sequence[Sequence[float]] | None = None
    mask_changes: str = "transparent"
    before: str | Mapping[str, Any] | None = None
    size: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, edit: EditOrder, before: str) -> Wanted:
        """What a job's body asks for; `before` is the caption of the job whose picture is changed.

        Raises:
            ApiError: with status 400 for a mask that is no base64.
        """
        hole: Any = edit.boxes
        if edit.mask is not None:
            try:
                hole = base64.b64decode(edit.mask, validate=True)
            except ValueError:
                raise wrong("edit.mask", "`edit.mask` is no base64: give a picture file's bytes in it.") from None
        asked = (("strength", edit.strength), ("feather", edit.feather), ("harmonise", edit.harmonise or None))
        options = {name: value for name, value in asked if value is not None}
        return cls(edit.how, hole, edit.mask_changes, edit.before or before, None, options)

    def change(self, picture: bytes, prompt: str, most: int) -> PictureChange:
        """The change.

        Args:
            picture: the picture's file.
            prompt: the caption of what it becomes.
            most: pixels that picture and mask may have.

        Raises:
            ApiError: with status 400, naming the field that does not fit.
        """
        part = "image"
        try:
            clear = _check_pixels("image", picture, most)
            part = "mask"
            if isinstance(self.hole, bytes):
                _check_pixels("mask", self.hole, most)
            how = self.how or ("inpaint" if self.hole is not None or clear else "image")
            before = None if self.before is None else read_prompt(self.before).line
            at: dict[str, Any] = {} if self.size is None else {"size": read_size(self.size, (0, 0))}
            if how in ("redraw", "caption") and before is None:
                raise wrong("before", f"`how` is {how}: give `before`, the caption of the picture as it is.")
            if self.hole is not None and how != "inpaint":
                raise wrong("mask", f"`how` is {how}, which needs no mask: leave one of them out.")
            if how == "inpaint":
                return self._inpaint(picture, clear, at)
            if how == "redraw":
                return redrawn(picture, before, prompt, **self.options)
            own = {name: value for name, value in self.options.items() if name == "strength"}
            if how == "caption":
                return CaptionEdit(picture, before, **at, **own)
            return ImageToImage(picture, **at, **own)
        except CaptionError as error:
            raise invalid_caption(error, "before") from None
        except ImageError as error:
            raise wrong(part, str(error).replace("`mask_image`", "`mask`")) from None
        except (TypeError, ValueError) as error:
            raise ApiError(400, str(error), code="invalid_value") from None

    def _inpaint(self, picture: bytes, clear: bool, at: dict[str, Any]) -> Inpaint:
        if self.hole is not None:
            return Inpaint(picture, self.hole, mask_changes=self.mask_changes, **at, **self.options)
        if not clear:
            raise wrong("mask", "`how` is inpaint: give a mask, or a picture that is transparent where it changes.")
        return Inpaint(picture, picture, mask_changes="transparent", **at, **self.options)


def _check_pixels(name: str, data: bytes, most: int) -> bool:
    """Refuse a picture of more pixels than are taken in, before it is unpacked; whether it is transparent anywhere."""
    try:
        with open_image(data) as image, plain_errors():
            if image.width * image.height > most:
                raise ImageError(f"has {image.width} x {image.height} pixels: this server takes in {most} at most.")
            return has_alpha(image) and image.convert("RGBA").getchannel("A").getextrema()[0] != 255
    except ImageError as error:
        raise wrong(name, f"`{name}` {error}") from None
