"""The change that a picture's file tells of, to make it again of the same picture; anyone may have written it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checks import printable
from .canvas import digest, open_picture
from .caption_edit import CaptionEdit
from .image_to_image import ImageToImage
from .inpainting import Inpaint
from .masking import from_text
from .outpainting import outpainted
from .upscaling import Upscale
from .variation import Variation

OF_KIND: dict[str, tuple[type, tuple[str, ...]]] = {
    "image to image": (ImageToImage, ("strength", "fit")),
    "inpaint": (Inpaint, ("strength", "feather", "harmonise", "padding", "fit")),
    "caption": (CaptionEdit, ("before", "strength", "refine", "guidance_before", "fit")),
    "variation": (Variation, ("seed", "amount")),
    "upscale": (Upscale, ("factor", "strength", "tile", "overlap")),
}


def change_of(image: Any, settings: Mapping[str, Any]) -> Any:
    """The change that a picture was made by.

    Args:
        image: The picture that it was made of, as it was then.
        settings: What the file of the changed picture says, as `read_settings` gives it.

    Raises:
        TypeError: naming what is of another type than such a change has.
        ValueError: settings of no change, or of another picture.
    """
    edit = settings["edit"]
    kind = None if edit is None else edit.get("kind")
    if not isinstance(kind, str) or kind not in OF_KIND:
        raise ValueError(
            "the settings tell of no change that can be made again"
            + ("." if edit is None else f", but of {printable(repr(kind))[:60]}.")
        )
    cls, names = OF_KIND[kind]
    missing = [name for name in names if name not in edit]
    if missing:
        raise ValueError(f"the settings tell of a change of kind {kind!r} without its {', '.join(missing)}.")
    try:
        change = _made(cls, image, {name: edit[name] for name in names}, edit, settings)
    except (TypeError, IndexError) as error:
        raise ValueError(f"the settings tell of a change that cannot be: {error}") from None
    if cls is Variation:
        return change
    if digest(change.image) != edit.get("image"):
        raise ValueError(
            "the picture is not the one that was changed then: the digest of its pixels is another. Give that one, or"
            " leave --again out and give the options of the change."
        )
    return change


def _made(cls: type, image: Any, given: dict[str, Any], edit: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    if cls is Variation:
        return Variation(**given, size=(int(settings["width"]), int(settings["height"])))
    if "place" in edit:
        options = {name: given[name] for name in ("strength", "feather", "harmonise")}
        return outpainted(image, tuple(edit["canvas"]), tuple(edit["place"]), **options)
    if cls is Upscale:
        return Upscale(image, **given)
    size = edit.get("size")
    given["size"] = None if size is None else (size[0], size[1])
    if cls is Inpaint:
        picture = open_picture(image)
        mask = from_text(str(edit.get("mask")), picture.size)
        return Inpaint(picture, mask, **given, settings={"boxes": edit["boxes"]} if "boxes" in edit else {})
    return cls(image, **given)
