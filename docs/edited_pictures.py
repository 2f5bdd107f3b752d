"""Make the pictures of docs/editing.md: `python docs/edited_pictures.py`; half a minute on two cores, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from ideoflow import Ideogram4Img2ImgPipeline, Ideogram4InpaintPipeline, sketch

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
    image = plain(before, size=(128, 128), generator=seeded(4), **how).images[0]

    heart = caption({**STAR, "desc": "a yellow heart"}, RING)
    afters = [caption({**STAR, "bbox": [100, 550, 500, 950]}, RING), caption(RING), heart]
    redrawn = [inpaint.redraw(image, before, after, generator=seeded(1), **how).images[0] for after in afters]
    row("edit-redraw.png", [image, *redrawn])

    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).ellipse((4, 4, 80, 80), fill=255)
    hexagon = caption({**STAR, "desc": "a black hexagon"}, RING)
    filled = inpaint(hexagon, image=image, mask_image=mask, generator=seeded(1), **how).images[0]
    row("edit-inpaint.png", [image, mask.convert("RGB"), filled])

    pink = caption({**STAR, "desc": "a green cross"}, RING, background="plain pink")
    strengths = (0.0, 0.4, 0.7, 0.85, 1.0)
    row(
        "edit-strength.png",
        [anew(pink, image=image, strength=one, generator=seeded(1), **how).images[0] for one in strengths],
    )

    afters = [caption({**STAR, "desc": "a yellow star"}, RING), caption({**STAR, "desc": "a red heart"}, RING)]
    followed = [inpaint.edit_caption(image, before, after, generator=seeded(1), **how).images[0] for after in afters]
    row("edit-caption.png", [image, *followed])

    wide = caption({**STAR, "bbox": [100, 233, 500, 500]}, {**RING, "bbox": [550, 500, 950, 767]})
    row("edit-outpaint.png", [image, inpaint.outpaint(image, (192, 128), wide, generator=seeded(1), **how).images[0]])

    amounts = (0.0, 0.2, 0.4, 1.0)
    varied = [inpaint.vary(before, (128, 128), 9, one, generator=seeded(4), **how).images[0] for one in amounts]
    row("edit-variation.png", varied)


if __name__ == "__main__":
    main()
