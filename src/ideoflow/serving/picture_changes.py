"""What clients ask to be done to a picture, as the change that does it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from ..captions import CaptionError
from ..captions.sent_prompt import read_prompt
from ..change_options import not_taken
from ..editing import CaptionEdit, ImageToImage, Inpaint, redrawn
from ..images import ImageError, has_alpha, open_image, plain_errors
from .api_errors import ApiError, invalid_caption
from .job_settings import EditOrder, How, read_size, wrong

PictureChange = Inpaint | CaptionEdit | ImageToImage
LARGER = 16  # times the pixels of a picture that the server draws, that one to be changed may have
OPTIONS = ("mask", "boxes", "mask_changes", "before", "strength", "feather", "harmonise")


@dataclass(frozen=True)
class Wanted:
    """What a client asks to be done to a picture.

    Attributes:
        how: the kind of change; None for what the options say: inpainting with a mask, redrawing with `before`,
            inpainting with a picture that is transparent in places, else the whole anew.
        options: those of `OPTIONS` that are given; `mask` is a picture file.
        size: "WxH" that is asked for; None for the picture's own.
        before: the picture's caption where the client gives none; None if nobody knows it.
        polarity: what of a mask changes where the client does not say it.
        fields: how the client calls the fields; those that are missing go by their own names.
    """

    how: How | None
    options: Mapping[str, Any]
    size: str | None = None
    before: str | None = None
    polarity: str = "transparent"
    fields: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, edit: EditOrder, before: str) -> Wanted:
        """What a job's body asks for; `before` is the caption of the job whose picture is changed.

        Raises:
            ApiError: with status 400 for a mask that is no base64.
        """
        options = {name: value for name in OPTIONS if (value := getattr(edit, name)) is not None}
        if edit.mask is not None:
            try:
                options["mask"] = base64.b64decode(edit.mask, validate=True)
            except ValueError:
                raise wrong("edit.mask", "`edit.mask` is no base64: give a picture file's bytes in it.") from None
        names = {name: f"edit.{name}" for name in ("how", *OPTIONS)}
        return cls(edit.how, options, None, before, "white", {**names, "image": "edit.picture", "prompt": "caption"})

    def change(self, picture: bytes, prompt: str, most: int) -> PictureChange:
        """The change.

        Args:
            picture: the picture's file.
            prompt: the caption of what it becomes.
            most: pixels that picture and mask may have.

        Raises:
            ApiError: with status 400, naming the field that does not fit.
        """
        clear = _is_clear(self._name("image"), picture, most)
        if "mask" in self.options:
            _is_clear(self._name("mask"), self.options["mask"], most)
        how = self._how(clear)
        self._check(how)
        given = dict(self.options)
        try:
            if how == "inpaint":
                return self._sized(how, self._inpaint(picture, clear, given))
            before = self._before(how, given.pop("before", None)) if how in ("redraw", "caption") else None
            if how == "redraw":
                return self._sized(how, redrawn(picture, before, prompt, **given))
            at: dict[str, Any] = {} if self.size is None else {"size": read_size(self.size, (0, 0))}
            if how == "caption":
                by_caption = CaptionEdit(picture, before, **at, **given)
                by_caption.check(prompt)
                return by_caption
            return ImageToImage(picture, **at, **given)
        except CaptionError as error:
            raise self._of_captions(error) from None
        except ImageError as error:
            raise self._wrong("mask" if str(error).startswith("`mask_image`") else "image", error) from None
        except (TypeError, ValueError) as error:
            of_boxes = str(error).startswith("`mask_image`")
            raise self._wrong("boxes" if of_boxes else None, error) from None

    def _how(self, clear: bool) -> str:
        if self.how is not None:
            return self.how
        if "mask" in self.options:
            return "inpaint"
        return "redraw" if "before" in self.options else "inpaint" if clear else "image"

    def _check(self, how: str) -> None:
        """Refuse an option that would be ignored."""
        if found := not_taken(how, self.options):
            name, kinds = found
            shown = " and ".join(kind for kind in kinds if kind in get_args(How))
            field, kind = self._name(name), self._name("how")
            raise wrong(field, f"`{field}` goes with {shown}, and `{kind}` is {how}: leave one of them out.")
        mask, boxes = self._name("mask"), self._name("boxes")
        if "mask" in self.options and "boxes" in self.options:
            raise wrong(mask, f"`{mask}` and `{boxes}` both say what may change: give one of them.")
        if "mask_changes" in self.options and "mask" not in self.options:
            field = self._name("mask_changes")
            raise wrong(field, f"`{field}` says what of a mask changes, and there is none: give `{mask}`.")

    def _sized(self, how: str, change: Inpaint) -> Inpaint:
        """A change that gives the picture back in its own size, where no other is asked for."""
        own = "{}x{}".format(*change.image.size)
        if self.size is not None and self.size.lower() != own:
            raise wrong("size", f"`size` is {self.size}, and {how} gives the picture back in its own, {own}.")
        return change

    def _before(self, how: str, given: Any) -> str:
        """The caption of the picture as it is."""
        field = self._name("before")
        asked = self.before if given is None else given
        if asked is None:
            raise wrong(field, f"`how` is {how}: give `{field}`, the caption of the picture as it is.")
        try:
            return read_prompt(asked).line
        except CaptionError as error:
            raise invalid_caption(ValueError(str(error).replace("the prompt", f"`{field}`")), field) from None

    def _inpaint(self, picture: bytes, clear: bool, given: dict[str, Any]) -> Inpaint:
        changes = given.pop("mask_changes", self.polarity)
        if "boxes" in given:
            return Inpaint(picture, given.pop("boxes"), **given)
        if "mask" in given:
            return Inpaint(picture, given.pop("mask"), mask_changes=changes, **given)
        if not clear:
            field = self._name("mask")
            boxes = f" or `{self.fields['boxes']}`" if self.fields else ""
            message = f"`how` is inpaint: give a mask in `{field}`{boxes}, or a picture that is transparent in places."
            raise wrong(field, message)
        return Inpaint(picture, picture, mask_changes="transparent", **given)

    def _of_captions(self, error: CaptionError) -> ApiError:
        """What is wrong with the two captions, in the field that can mend it."""
        if str(error).startswith("`after`"):
            field = self._name("prompt")
            return invalid_caption(ValueError(str(error).replace("`after`", f"`{field}`")), field)
        return invalid_caption(error, self._name("before" if "before" in self.options else "prompt"))

    def _wrong(self, name: str | None, error: Exception) -> ApiError:
        if name is None:
            return ApiError(400, str(error), code="invalid_value")
        field = self._name(name)
        own = "`image`" if name == "image" else "`mask_image`"
        return wrong(field, str(error).replace(own, f"`{field}`"))

    def _name(self, name: str) -> str:
        return self.fields.get(name, name)


def _is_clear(name: str, data: bytes, most: int) -> bool:
    """Refuse a picture of more pixels than are taken in, before it is unpacked; whether it is transparent anywhere."""
    try:
        with open_image(data) as image, plain_errors():
            if image.width * image.height > most:
                raise ImageError(f"has {image.width} x {image.height} pixels: this server takes in {most} at most.")
            return has_alpha(image) and image.convert("RGBA").getchannel("A").getextrema()[0] != 255
    except ImageError as error:
        raise wrong(name, f"`{name}` {error}") from None
