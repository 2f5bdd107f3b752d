"""Teach the sketch model a new shape by a new name from 16 pictures, and see that the old shapes are not forgotten.

Run as `python -m benchmarks.lora`. It trains a LoRA with the trainer that `ideoflow train` uses, then draws 20 captions
that ask for the new shape in colours that it was never shown in, and held-out captions of the old world, before and
after. The new shape is a gnomon, the corner of a square; the model has never seen the shape nor the word. Beside the 16
pictures lie some that the model drew itself, before, of captions of the old world: they keep it from forgetting that.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks._measure import machine, make_parser, write
from ideoflow import Ideogram4Pipeline, sketch
from ideoflow.sketch import masks, world
from ideoflow.sketch.wording import line
from ideoflow.training.run import train
from ideoflow.training.settings import Settings
from tools.sketch.score import held_out, judge

NAME = "gnomon"  # the corner that is left of a square when a smaller one is cut out of it
SHOWN = ("red", "yellow", "green", "blue", "purple", "white")  # the colours of the 16 pictures
ASKED = ("orange", "cyan", "pink", "brown", "black", "gray")  # those of the 20 captions


ARM = 0.25  # of a side, how thick the gnomon is

masks.POLYGONS[NAME] = lambda: [(0, 0), (1, 0), (1, ARM), (ARM, ARM), (ARM, 1), (0, 1)]


def picture(index: int, colours: tuple[str, ...]) -> world.Sample:
    """Like the world's pictures, one to three elements, the first a gnomon in one of `colours`."""
    draw = random.Random(f"{NAME}/{index}/{colours[0]}")
    width, height = draw.choices(list(world.SIZES), list(world.SIZES.values()))[0]
    colour = colours[index % len(colours)]
    rest = draw.sample([c for c in world.COLOURS if world._apart(c, [colour])], 3)
    background = world.Background("solid", (rest.pop(),))
    elements: list[world.Element] = []
    for number in range(draw.choice((1, 2, 2, 3))):
        box = world._shape_box(draw, width, height, elements)
        if box is not None:
            shape = draw.choice(masks.SHAPES) if number else NAME
            elements.append(world.Element(box, rest.pop() if number else colour, shape=shape))
    return world.Sample(width, height, background, tuple(elements), world.caption_of(draw, background, elements))


def draw(pipeline: Ideogram4Pipeline, samples: list[world.Sample], steps: int) -> list[Image.Image]:
    """The pipeline's pictures of the samples' captions, in packed calls of 20."""
    pictures: list[Image.Image] = []
    for begin in range(0, len(samples), 20):
        chunk = samples[begin : begin + 20]
        pictures += pipeline(
            [line(s.caption) for s in chunk],
            size=[(s.width, s.height) for s in chunk],
            generator=[torch.Generator().manual_seed(begin + i) for i in range(len(chunk))],
            num_inference_steps=steps, guidance_scale=sketch.GUIDANCE, guidance_schedule=None, mu=0.0, std=1.75,
        ).images  # fmt: skip
    return pictures


def overlaps(pictures: list[Image.Image], samples: list[world.Sample], shape: str | None) -> list[float]:
    """Intersection over union of each element of that shape, or of every shape but the new one."""
    return [
        overlap
        for drawn, truth in zip(pictures, samples, strict=True)
        for overlap, element in zip(judge(drawn, truth).overlaps, truth.elements, strict=True)
        if element.shape and (element.shape == shape if shape else element.shape != NAME)
    ]


def main() -> None:
    """Train, draw, compare, print and write the figures."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="", help="model folder; the bundled one by default")
    parser.add_argument("--steps", type=int, default=640, help="training steps")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--targets", nargs="+", default=["attention+feed_forward"])
    parser.add_argument("--tokens", type=int, default=1800, help="token budget of a batch")
    parser.add_argument("--prior", type=int, default=48, help="pictures that the model draws itself, to train on too")
    parser.add_argument("--asked", type=int, default=20, help="captions that ask for the new shape")
    parser.add_argument("--old", type=int, default=100, help="held-out pictures of the old world to draw")
    parser.add_argument("--folder", type=Path, default=Path("outputs/lora"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shutil.rmtree(options.folder, ignore_errors=True)
    data = options.folder / "data"
    data.mkdir(parents=True)
    for index in range(16):
        shown = picture(index, SHOWN)
        shown.image.save(data / f"{index:02}.png")
        (data / f"{index:02}.json").write_text(json.dumps(shown.caption))

    asked, old = [picture(1000 + i, ASKED) for i in range(options.asked)], held_out(options.old)
    pipeline = Ideogram4Pipeline.from_pretrained(options.model or sketch.path(), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    begun = time.perf_counter()
    known = [world.sample(10**6 + i) for i in range(options.prior)]
    for index, (truth, drawn) in enumerate(zip(known, draw(pipeline, known, 20), strict=True)):
        drawn.save(data / f"prior-{index:03}.png")
        (data / f"prior-{index:03}.json").write_text(json.dumps(truth.caption))
    drawing = time.perf_counter() - begun
    before_new, before_old = draw(pipeline, asked, 20), draw(pipeline, old, 20)

    begun = time.perf_counter()
    train(
        Settings.read(
            data=str(data),
            out=str(options.folder / "run"),
            model=options.model,
            steps=options.steps,
            rank=options.rank,
            lr=options.lr,
            targets=options.targets,
            tokens=options.tokens,
            schedule="cosine",
            std=1.75,
            ema=0.98,
            save_every=options.steps,
            trigger=NAME,
            device="cpu",
        )
    )
    minutes = (drawing + time.perf_counter() - begun) / 60
    pipeline.load_lora_weights(options.folder / "run")
    after_new, after_old = draw(pipeline, asked, 20), draw(pipeline, old, 20)

    def mean(values: list[float]) -> float:
        return round(float(np.mean(values)), 4)

    figures = {
        "minutes": round(minutes, 2),
        "new_shape_iou_before": mean(overlaps(before_new, asked, NAME)),
        "new_shape_iou_after": mean(overlaps(after_new, asked, NAME)),
        "old_shapes_iou_before": mean(overlaps(before_old, old, None)),
        "old_shapes_iou_after": mean(overlaps(after_old, old, None)),
        "prior": options.prior, "steps": options.steps, "rank": options.rank, "lr": options.lr,
        "targets": options.targets,
        "machine": machine(),
    }  # fmt: skip
    for name, value in figures.items():
        print(f"{name:24} {value}")
    sheet = Image.new("RGB", (20 * 110, 3 * 110), "#dddddd")
    for row, pictures in enumerate(([s.image for s in asked], before_new, after_new)):
        for column, image in enumerate(pictures):
            sheet.paste(image.resize((104, 104)), (column * 110 + 3, row * 110 + 3))
    sheet.save(options.folder / "sheet.png")
    write(figures, options.out)


if __name__ == "__main__":
    main()
