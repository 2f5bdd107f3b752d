"""Make the pictures of docs/editing.md: `python docs/edited_pictures.py`; half a minute on two cores, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from ideoflow import Ideogram4Img2ImgPipeline, Ideogram4InpaintPipeline, Ideogram4Pipeline, sketch

IMAGES = Path(__file__).parent / "images"
SCALE, GAP = 2, 8
STAR = {"type": "obj", "bbox": [100, 100, 500, 500], "desc": "a red star"}
RING = {"type": "obj", "bbox": [550, 500, 950, 900], "desc": "a white ring"}


def caption(*elements: dict[str, Any], background: str = "plain blue") -> dict[str, Any]:
    """A caption of a background and elements."""
    return {"compositional_deconstruction": {"background": background, "elements": list(elements)}}


def row(name: str, images: list[Image.Image]) -> None:
    """Write pictures side by side, enlarged."""
    height = max(image.height for image in images) * SCALE
    width = sum(image.width for image in images) * SCALE + GAP * (len(images) - 1)
    sheet, left = Image.new("RGB", (width, height), "white"), 0
    for image in images:
        sheet.paste(image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.NEAREST), (left, 0))
        left += image.width * SCALE + GAP
    sheet.save(IMAGES / name, optimize=True)
    print(IMAGES / name)


def main() -> None:
    """Draw one picture, and change it in every way."""
    plain = sketch.load()
    inpaint = Ideogram4InpaintPipeline.from_pipe(plain)
    anew = Ideogram4Img2ImgPipeline.from_pipe(plain)
    for pipe in (plain, inpaint, anew):
        pipe.set_progress_bar_config(disable=True)
    how: dict[str, Any] = {"preset": "V4_DEFAULT_20", "guidance_scale": sketch.GUIDANCE}

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    before = caption(STAR, RING)
    assert isinstance(plain, Ideogram4Pipeline)
    image = plain(before, size=(128, 128), generator=seeded(4), **how).images[0]
    moved = caption({**STAR, "bbox": [100, 550, 500, 950]}, RING)
    gone = caption(RING)
    other = caption({**STAR, "desc": "a yellow heart"}, RING)
    row(
        "edit-redraw.png",
        [image, *(inpaint.redraw(image, before, after, generator=seeded(1), **how).images[0] for after in (moved, gone, other))],
    )
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).ellipse((4, 4, 80, 80), fill=255)
    filled = inpaint(
        caption({**STAR, "desc": "a black hexagon"}, RING), image=image, mask_image=mask, generator=seeded(1), **how
    ).images[0]
    row("edit-inpaint.png", [image, mask.convert("RGB"), filled])
    row(
        "edit-strength.png",
        [
            anew(caption({**STAR, "desc": "a green cross"}, RING, background="plain pink"), image=image, strength=strength,
                 generator=seeded(1), **how).images[0]
            for strength in (0.0, 0.4, 0.7, 0.85, 1.0)
        ],
    )  # fmt: skip
    row(
        "edit-caption.png",
        [image, inpaint.edit_caption(image, before, caption({**STAR, "desc": "a yellow star"}, RING), generator=seeded(1), **how).images[0],
         inpaint.edit_caption(image, before, caption({**STAR, "desc": "a red heart"}, RING), generator=seeded(1), **how).images[0]],
    )  # fmt: skip
    wide = caption(
        {**STAR, "bbox": [100, 233, 500, 500]}, {**RING, "bbox": [550, 500, 950, 767]},
        {"type": "obj", "bbox": [300, 30, 600, 180], "desc": "a green diamond"},
    )  # fmt: skip
    row("edit-outpaint.png", [image, inpaint.outpaint(image, (192, 128), wide, generator=seeded(1), **how).images[0]])
    row(
        "edit-variation.png",
        [inpaint.vary(before, (128, 128), 9, amount, generator=seeded(4), **how).images[0] for amount in (0.0, 0.2, 0.4, 1.0)],
    )


if __name__ == "__main__":
    main()
