"""Draw six pictures of six sizes in one packed call of the bundled model, and a contact sheet with their captions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import torch
import typer
from PIL import Image, ImageDraw, ImageFont

from ideoflow import Caption, Ideogram4Pipeline, save_image, sketch

CAPTIONS = Path(__file__).parent / "captions"
SIZES = {  # (width, height) in pixels for examples/captions/NAME.json
    "sunset": (192, 128),
    "heart": (128, 128),
    "traffic-light": (96, 192),
    "flag": (160, 112),
    "go": (144, 112),
    "shapes": (160, 128),
}

ZOOM, MARGIN, TEXT_WIDTH, LINE = 2, 24, 340, 22  # of the contact sheet, in pixels
TEXT_COLUMNS = 44  # of its text, in characters


def draw(pipe: Ideogram4Pipeline, captions: Sequence[Caption], sizes: Sequence[tuple[int, int]], seed: int):
    """All pictures in one call: every step runs one stream with the tokens of all of them, and no padding."""
    generators = [torch.Generator("cpu").manual_seed(seed + i) for i in range(len(captions))]
    return pipe(
        list(captions), size=list(sizes), preset="V4_DEFAULT_20", guidance_scale=sketch.GUIDANCE, generator=generators
    ).images


def describe(caption: Caption) -> list[str]:
    """The caption in a person's words, one line for the background and one for each element."""
    scene = caption.compositional_deconstruction
    lines = [f"background: {scene.background}"]
    for element in scene.elements:
        word = f'"{element.text}", ' if element.type == "text" else ""
        place = f" in {list(element.bbox)}" if element.bbox else ""
        lines.append(f"{word}{element.desc}{place}")
    return lines


def contact_sheet(images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> Image.Image:
    """Two columns of pictures, twice their size, each with its text to the right."""
    font = ImageFont.load_default(15)
    column = ZOOM * max(image.width for image in images) + TEXT_WIDTH + 2 * MARGIN
    pairs = [list(zip(images, texts, strict=True))[i : i + 2] for i in range(0, len(images), 2)]
    heights = [ZOOM * max(image.height for image, _ in pair) + MARGIN for pair in pairs]
    sheet = Image.new("RGB", (2 * column + MARGIN, sum(heights) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    top = MARGIN
    for pair, height in zip(pairs, heights, strict=True):
        for side, (image, lines) in enumerate(pair):
            left = MARGIN + side * column
            sheet.paste(image.resize((ZOOM * image.width, ZOOM * image.height), Image.Resampling.LANCZOS), (left, top))
            beside = left + column - TEXT_WIDTH - MARGIN
            rows = [row for line in lines for row in wrap(line, TEXT_COLUMNS, subsequent_indent="    ")]
            for number, row in enumerate([*rows, f"{image.width} x {image.height} pixels"]):
                pen.text((beside, top + number * LINE), row, fill="black", font=font)
        top += height
    return sheet


def main(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("outputs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the first picture; each next one adds 1.")] = 0,
) -> None:
    """Draw every caption of examples/captions in one call."""
    captions = [Caption.parse(CAPTIONS / f"{name}.json") for name in SIZES]
    pipe = sketch.load()

    print(f"Drawing {len(captions)} pictures of {len(set(SIZES.values()))} sizes in one packed call ...")
    start = time.perf_counter()
    images = draw(pipe, captions, list(SIZES.values()), seed)
    print(f"done in {time.perf_counter() - start:.1f} s.")

    out.mkdir(parents=True, exist_ok=True)
    for name, caption, image in zip(SIZES, captions, images, strict=True):
        save_image(image, out / f"{name}.png")  # with its settings: `ideoflow generate` makes it again
        (out / f"{name}.json").write_text(caption.line() + "\n", encoding="utf-8")
        print(f"  {out / f'{name}.png'}  {image.width}x{image.height}, caption in {name}.json")
    sheet = out / "contact-sheet.png"
    contact_sheet(images, [describe(caption) for caption in captions]).save(sheet)
    print(f"  {sheet}  all of them beside their captions")
    print(f"To make one again from its own settings: ideoflow generate {out / 'heart.png'} --out again.png")


if __name__ == "__main__":
    typer.run(main)
