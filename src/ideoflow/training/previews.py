"""Pictures of fixed captions while a run goes on, drawn through the engine that draws all others."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..files import write_bytes
from ..images import ImageError, open_image, plain_errors
from ..sizes import UNIT
from .precheck import preview_line
from .settings import Settings
from .watch import Run, Step, Watcher

FIRST = 4  # captions of the data that are drawn when none are named
CELL = 256  # pixels of a picture's longer side on a contact sheet
SEED = 0
NAME = "step-{:07d}.png"


class Previews(Watcher):
    """Draws the same captions from the same noise every few steps, into `OUT/previews`: a sheet a step, and `all.png`.

    A run that goes on keeps the sheets of the steps before, what the model drew at first too.

    It draws with the moving average of the weights, if there is one, and leaves the run as it found it: with previews
    and without, the same bits are trained.
    """

    def __init__(self, settings: Settings) -> None:
        self.options = settings.output
        self.captions: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.features: list[Tensor] = []
        self.rows: list[tuple[int, list[Image.Image]]] = []
        self.sheets: dict[int, Image.Image] = {}  # by step

    def on_begin(self, run: Run) -> None:
        """Encode the captions once, and draw what the model knows before."""
        self.captions = [preview_line(prompt, run.settings.data.wrap) for prompt in self.options.previews]
        if not self.captions:
            self.captions = list(dict.fromkeys(sample.caption for sample in run.samples))[:FIRST]
        grids = [sample.grid for sample in run.samples]
        sizes = [(UNIT * columns, UNIT * rows) for rows, columns in grids]
        if self.options.preview_size:
            sizes = [_size(self.options.preview_size)]
        self.sizes = [sizes[i % len(sizes)] for i in range(len(self.captions))]
        encoder, home = run.pipeline.text_encoder, run.pipeline.text_encoder.device
        encoder.to(run.group.device)
        self.features = run.pipeline.prompt_features(self.captions)
        encoder.to(home)
        if run.step == 0:
            self.draw(run)
        else:
            self.sheets = _earlier(run.folder / "previews", run.step)

    def on_step(self, run: Run, step: Step) -> None:
        """Draw every few steps."""
        if self.options.preview_every and step.step % self.options.preview_every == 0 and not run.stopping:
            self.draw(run)

    def on_end(self, run: Run, written: list[Path]) -> None:
        """Draw what was learned in the end."""
        if not self.rows or self.rows[-1][0] != run.step:
            self.draw(run)

    @torch.no_grad()
    def draw(self, run: Run) -> None:
        """Draw all captions and write the sheets."""
        pipeline, options = run.pipeline, self.options
        guided = options.preview_guidance > 1 and pipeline.unconditional_transformer is not None
        run.loss.eval()
        try:
            with run.averaged(), run.autocast():
                requests = pipeline.make_requests(
                    self.captions,
                    size=self.sizes,
                    num_inference_steps=options.preview_steps,
                    guidance_scale=options.preview_guidance if guided else 1.0,
                    guidance_schedule=None,
                    mu=run.settings.training.mu,
                    std=run.settings.training.std,
                    generator=[torch.Generator().manual_seed(SEED + i) for i in range(len(self.captions))],
                    prompt_features=self.features,
                )
                pipeline.engine().complete(requests)
            pictures = pipeline.decode_requests(requests)
        finally:
            run.loss.train()
        self.rows.append((run.step, list(pictures)))
        self.sheets[run.step] = sheet(run.step, pictures)
        folder = run.folder / "previews"
        save(self.sheets[run.step], folder / NAME.format(run.step))
        save(stack([self.sheets[step] for step in sorted(self.sheets)]), folder / "all.png")
        for watcher in run.watchers:
            watcher.on_previews(run, pictures)


def sheet(step: int, pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a row behind the number of their step."""
    small = [_fit(picture) for picture in pictures]
    height = max(picture.height for picture in small)
    canvas = Image.new("RGB", (60 + len(small) * (CELL + 8), height + 8), "white")
    ImageDraw.Draw(canvas).text((6, height // 2), str(step), fill="black")
    for column, picture in enumerate(small):
        canvas.paste(picture, (60 + column * (CELL + 8), 0))
    return canvas


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets one below the other."""
    canvas = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for row in sheets:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


def save(image: Image.Image, path: Path) -> None:
    """Write an image whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _earlier(folder: Path, last: int) -> dict[int, Image.Image]:
    """The sheets that are there, up to a step."""
    sheets = {}
    for path in folder.glob("step-*.png"):
        number = path.stem.removeprefix("step-")
        if number.isdecimal() and int(number) <= last:
            with suppress(ImageError, OSError), plain_errors():
                sheets[int(number)] = open_image(path).convert("RGB")
    return sheets


def _fit(picture: Image.Image) -> Image.Image:
    scale = CELL / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"`preview_size` is {text!r}; it is WIDTHxHEIGHT in pixels, such as 1024x768.") from None
    return width, height
