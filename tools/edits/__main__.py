"""How well pictures are changed, by the bundled model, against the truths of the sketch world.

    python -m tools.edits redraw --count 200        only the changed element changes, and becomes what it should
    python -m tools.edits caption --count 100       the same without a mask
    python -m tools.edits outpaint --count 100      the old part exact, the background going on
    python -m tools.edits upscale --count 10        tiles without seams
    python -m tools.edits together --count 16       all kinds in one pass, as each is alone
    python -m tools.edits strength --count 20       image to image from strength 0 to 1

Pictures are first drawn from their old captions and then changed, with 20 steps and other seeds.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from ideoflow import sketch
from ideoflow.editing import (
    CaptionEdit,
    Ideogram4InpaintPipeline,
    ImageToImage,
    Inpaint,
    Upscale,
    Variation,
    outpainted,
    redrawn,
)
from ideoflow.files import check_writable, write_text
from ideoflow.sketch.scene import Sample, rgb
from ideoflow.sketch.world import sample
from tools.sketch.score import BACKGROUND_SHARE, NEAR, OVERLAP, judge

from .pairs import IN_PLACE, Pair, captioned, larger, pairs

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_show_locals=False)
BATCH = 10
Count = Annotated[int, typer.Option(min=1, help="Pictures.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps of a picture.")]
Out = Annotated[Path | None, typer.Option(help="Also write the figures as JSON.")]
Sheet = Annotated[Path | None, typer.Option(help="Also write the first pictures, before and after.")]


def pipeline() -> Any:
    """The bundled model."""
    pipe = Ideogram4InpaintPipeline.from_pipe(sketch.load())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seeds: Iterable[int]) -> list[torch.Generator]:
    """A generator of each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def drawn(pipe: Any, samples: Sequence[Sample], steps: int) -> list[Image.Image]:
    """Fresh pictures of samples' captions."""
    plain = sketch_pipeline(pipe)
    result = plain(
        [one.caption for one in samples], size=[(one.width, one.height) for one in samples],
        generator=seeded(range(len(samples))), **drawing(steps),
    )  # fmt: skip
    return list(result.images)


def sketch_pipeline(pipe: Any) -> Any:
    """The plain pipeline over the same components."""
    from ideoflow import Ideogram4Pipeline

    plain = Ideogram4Pipeline.from_pipe(pipe)
    plain.set_progress_bar_config(disable=True)
    return plain


def drawing(steps: int) -> dict[str, Any]:
    """Arguments of every call."""
    return {"preset": "V4_DEFAULT_20", "num_inference_steps": steps, "guidance_scale": sketch.GUIDANCE}


def batches(things: Sequence[Any], size: int = BATCH) -> Iterator[Sequence[Any]]:
    """The things, so many at a time."""
    for begin in range(0, len(things), size):
        yield things[begin : begin + size]


def scored(made: Sequence[Pair], before: Sequence[Image.Image], after: Sequence[Image.Image]) -> dict[str, Any]:
    """What became of the changed elements, of the kept ones and of the background."""
    right: dict[str, list[bool]] = defaultdict(list)
    kept: dict[str, list[bool]] = defaultdict(list)
    ground: dict[str, list[bool]] = defaultdict(list)
    read: list[bool] = []
    still: list[bool] = []
    still_ground: list[bool] = []
    for one, old, new in zip(made, before, after, strict=True):
        was, became = judge(old, one.before), judge(new, one.after)
        if one.new is None:
            assert one.old is not None
            right[one.kind].append(_is_gone(new, one))
        else:
            right[one.kind].append(became.overlaps[one.new] > OVERLAP)
            if one.kind == "word":
                read.append(right[one.kind][-1] and became.read[one.new])
        for number, same in one.kept:
            kept["before"].append(was.overlaps[number] > OVERLAP)
            kept["after"].append(became.overlaps[same] > OVERLAP)
            still += [kept["after"][-1]] if kept["before"][-1] else []
        still_ground += [became.background] if was.background else []
        ground["before"].append(was.background)
        ground["after"].append(became.background)
    every = [ok for found in right.values() for ok in found]
    satisfied = [ok for kind, found in right.items() for ok in (read if kind == "word" else found)]
    return {
        "pairs": len(made),
        "changed element right": float(np.mean(every)),
        **{f"  {kind}": float(np.mean(found)) for kind, found in right.items()},
        "  word, and read letter by letter": float(np.mean(read)) if read else None,
        "changed element right, words read": float(np.mean(satisfied)),
        "other elements kept, of those right before": float(np.mean(still)),
        "background kept, of those right before": float(np.mean(still_ground)),
        **{f"other elements right, {when}": float(np.mean(found)) for when, found in kept.items()},
        **{f"background right, {when}": float(np.mean(found)) for when, found in ground.items()},
    }


def _is_gone(picture: Image.Image, one: Pair) -> bool:
    """Whether most of the removed element's pixels show what is behind it."""
    assert one.old is not None
    mask = one.before.masks()[one.old]
    truth = np.asarray(one.after.image, dtype=np.float32)
    away = np.linalg.norm(np.asarray(picture, dtype=np.float32) - truth, axis=-1)
    return bool((away[mask] <= NEAR).mean() >= BACKGROUND_SHARE)


@app.command()
def redraw(
    count: Count = 200,
    steps: Steps = 20,
    margin: int = 8,
    feather: int = 4,
    harmonise: int = 0,
    strength: float = 1.0,
    out: Out = None,
    sheet: Sheet = None,
) -> None:
    """Captions that differ in one element: it is moved, coloured, shaped, worded, removed or added."""
    pipe, made = pipeline(), pairs(count)
    before: list[Image.Image] = []
    after: list[Image.Image] = []
    exact = True
    for some in batches(made):
        old = drawn(pipe, [one.before for one in some], steps)
        options = {"margin": margin, "feather": feather, "harmonise": harmonise, "strength": strength}
        changes = [
            redrawn(image, one.before.caption, one.after.caption, **options)  # type: ignore[arg-type]
            for image, one in zip(old, some, strict=True)
        ]
        new = pipe.edit(
            changes,
            [one.after.caption for one in some],
            generator=seeded(range(1000, 1000 + len(some))),
            **drawing(steps),
        ).images
        for change, image, result in zip(changes, old, new, strict=True):
            outside = change.mask.numpy() == 0
            exact &= bool((np.asarray(image)[outside] == np.asarray(result)[outside]).all())
        before, after = before + old, after + list(new)
    _tell({**scored(made, before, after), "outside the mask exact": exact}, out)
    _sheet(sheet, before, after)


@app.command()
def caption(
    count: Count = 100,
    steps: Steps = 20,
    strength: float = 0.9,
    refine: float = 0.0,
    guidance: float = sketch.GUIDANCE,
    guidance_before: float = 1.0,
    out: Out = None,
    sheet: Sheet = None,
) -> None:
    """Captions that differ in one colour, shape or word, without a mask."""
    pipe, made = pipeline(), pairs(count, IN_PLACE)
    before: list[Image.Image] = []
    after: list[Image.Image] = []
    for some in batches(made):
        old = drawn(pipe, [one.before for one in some], steps)
        changes = [
            CaptionEdit(image, one.before.caption, strength, refine, guidance_before)
            for image, one in zip(old, some, strict=True)
        ]
        how = {**drawing(steps), "guidance_scale": guidance}
        new = pipe.edit(
            changes, [one.after.caption for one in some], generator=seeded(range(1000, 1000 + len(some))), **how
        ).images
        before, after = before + old, after + list(new)
    _tell(scored(made, before, after), out)
    _sheet(sheet, before, after)


FLAT = 1.0  # grey levels between neighbouring pixels, below which a picture has no edge
SIDES = {96: 144, 128: 192}  # of pictures, and half as long again


@app.command()
def outpaint(
    count: Count = 100, steps: Steps = 20, feather: int = 4, harmonise: int = 0, out: Out = None, sheet: Sheet = None
) -> None:
    """Pictures on plain backgrounds, to half as much again a side: the old part, the background, and the border."""
    pipe = pipeline()
    made: list[tuple[Sample, Sample, tuple[int, int]]] = []
    index = 0
    while len(made) < count:
        side = list(SIDES)[index % len(SIDES)]
        of = captioned(random.Random(index), sample(index, split="held_out", size=(side, side)))
        index += 1
        if of.background.kind == "solid":
            room = SIDES[side] - side
            place = (0, room // 2, room)[index % 3], (room // 2, room, 0)[index % 3]
            made.append((of, larger(of, (SIDES[side],) * 2, place), place))
    exact = True
    near: list[float] = []
    seams: list[tuple[float, float]] = []
    before: list[Image.Image] = []
    after: list[Image.Image] = []
    for some in batches(made):
        old = drawn(pipe, [one for one, _, _ in some], steps)
        changes = [
            outpainted(image, (truth.width, truth.height), place, feather=feather, harmonise=harmonise)
            for image, (_, truth, place) in zip(old, some, strict=True)
        ]
        new = pipe.edit(
            changes, [truth.caption for _, truth, _ in some], generator=seeded(range(1000, 1000 + len(some))),
            **drawing(steps),
        ).images  # fmt: skip
        for image, result, change, (_, truth, place) in zip(old, new, changes, some, strict=True):
            pixels = np.asarray(result, dtype=np.float32)
            left, top = place
            part = pixels[top : top + image.height, left : left + image.width]
            exact &= bool((part == np.asarray(image)).all())
            fresh = truth.background_mask() & (change.mask.numpy() > 0)
            median = np.median(pixels[fresh], axis=0)
            near.append(float(np.abs(median - np.array(rgb(truth.background.colours[0]))).max()))
            seams.append((_across(pixels, place, image.size), _across(np.asarray(image, np.float32), None, image.size)))
        before, after = before + old, after + list(new)
    ratios = [seam / max(inside, 0.5) for seam, inside in seams]
    figures = {
        "pictures": len(made),
        "old part exact": exact,
        "background's median within 10 grey levels": float(np.mean([one <= 10 for one in near])),
        "  its median distance, grey levels": float(np.median(near)),
        "gradient across the border, grey levels (median)": float(np.median([seam for seam, _ in seams])),
        "  within the old part, between neighbours": float(np.median([inside for _, inside in seams])),
        "  ratio of the two (median)": float(np.median(ratios)),
        "border within twice the inside": float(np.mean([ratio <= 2 for ratio in ratios])),
    }
    _tell(figures, out)
    _sheet(sheet, before, after)


def _across(pixels: np.ndarray, place: tuple[int, int] | None, size: tuple[int, int]) -> float:
    """Median difference of neighbouring pixels across the border of a part, or, without a place, within a picture."""
    if place is None:
        found = [np.abs(np.diff(pixels, axis=0)), np.abs(np.diff(pixels, axis=1))]
        return float(np.mean([one.max(-1).mean() for one in found]))
    left, top = place
    right, bottom = left + size[0], top + size[1]
    lines = []
    if top > 0:
        lines.append(np.abs(pixels[top, left:right] - pixels[top - 1, left:right]))
    if bottom < len(pixels):
        lines.append(np.abs(pixels[bottom, left:right] - pixels[bottom - 1, left:right]))
    if left > 0:
        lines.append(np.abs(pixels[top:bottom, left] - pixels[top:bottom, left - 1]))
    if right < pixels.shape[1]:
        lines.append(np.abs(pixels[top:bottom, right] - pixels[top:bottom, right - 1]))
    return float(np.concatenate(lines).max(-1).mean())


@app.command()
def upscale(
    count: Count = 10,
    steps: Steps = 12,
    factor: float = 4.0,
    strength: float = 0.2,
    out: Out = None,
    sheet: Sheet = None,
) -> None:
    """Pictures enlarged: the gradient where tiles begin and end beside that everywhere else, in flat places."""
    pipe = pipeline()
    borders, insides, near, plainly, before, after = [], [], [], [], [], []
    for index in range(count):
        of = sample(index, split="held_out", size=(128, 128))
        change = Upscale(of.image, factor, strength)
        found = pipe.upscale(
            of.image, of.caption, factor, strength=strength, generator=seeded([index])[0], **drawing(steps)
        ).images[0]  # fmt: skip
        enlarged = of.image.resize(found.size, Image.Resampling.LANCZOS)
        for axis, side in ((0, "rows"), (1, "cols")):
            edges = [edge * 16 for tile in change.layout(16, 192).tiles for edge in getattr(tile, side)]
            steep, own = (
                np.abs(np.diff(np.asarray(one, dtype=np.float32), axis=axis)).max(-1) for one in (found, enlarged)
            )
            flat = own < FLAT  # where the picture has no edge of its own, that may lie on a tile's
            border = np.isin(np.arange(steep.shape[axis]) + 1, edges)
            border = border[:, None] if axis == 0 else border[None]
            borders.append(float(steep[flat & border].mean()))
            insides.append(float(steep[flat & ~border].mean()))
        truth = replace(of, width=found.width, height=found.height).image
        near.append(_gap(found, truth))
        plainly.append(_gap(enlarged, truth))
        before.append(of.image.resize(found.size, Image.Resampling.NEAREST))
        after.append(found)
    figures = {
        "pictures": count,
        "gradient where tiles begin and end, grey levels": float(np.mean(borders)),
        "gradient elsewhere": float(np.mean(insides)),
        "ratio": float(np.mean(borders) / np.mean(insides)),
        "distance from the truth at that size, grey levels": float(np.mean(near)),
        "  of the picture enlarged by Lanczos alone": float(np.mean(plainly)),
    }
    _tell(figures, out)
    _sheet(sheet, before, after, columns=4)


@app.command()
def strength(count: Count = 20, steps: Steps = 20, out: Out = None) -> None:
    """Image to image: how far from the picture ten strengths lead, in grey levels, and both ends."""
    pipe = pipeline()
    samples = [sample(index, split="held_out") for index in range(count)]
    captions = [sample(index + 500, split="held_out").caption for index in range(count)]
    images = [one.image for one in samples]
    far: list[float] = []
    strengths = [round(number / 10, 1) for number in range(11)]
    for value in strengths:
        changes = [ImageToImage(image, value) for image in images]
        results = pipe.edit(changes, captions, generator=seeded(range(count)), **drawing(steps)).images
        gaps = [_gap(image, result) for image, result in zip(images, results, strict=True)]
        far.append(float(np.mean(gaps)))
        if value == 0:
            through = [_gap(_through(pipe, image), result) for image, result in zip(images, results, strict=True)]
    fresh = sketch_pipeline(pipe)(
        captions, size=[one.size for one in images], generator=seeded(range(count)), **drawing(steps)
    )
    most = max(_gap(one, other, np.max) for one, other in zip(fresh.images, results, strict=True))
    figures = {
        "pictures": count,
        **{f"distance at {value}": one for value, one in zip(strengths, far, strict=True)},
        "grows": far == sorted(far),
        "strength 0 against the picture through the autoencoder (mean)": float(np.mean(through)),
        "strength 1 against a fresh picture (largest)": most,
    }
    _tell(figures, out)


@app.command()
def together(count: Count = 16, steps: Steps = 12, out: Out = None) -> None:
    """Edits of all kinds and as many fresh pictures in one packed engine, against each alone; and what they cost."""
    pipe, made = pipeline(), pairs(count)
    plain = sketch_pipeline(pipe)
    changes: list[Any] = []
    for number, one in enumerate(made):
        image = one.before.image
        kinds = (
            lambda image=image, one=one: redrawn(image, one.before.caption, one.after.caption),
            lambda image=image: ImageToImage(image, 0.55),
            lambda image=image, one=one: CaptionEdit(image, one.before.caption),
            lambda image=image: Inpaint(image, [200, 200, 800, 800], harmonise=1),
            lambda image=image, number=number: Variation(number, image.size, 0.3),
        )
        changes.append(kinds[number % len(kinds)]())
    captions = [one.after.caption for one in made]

    def requests() -> list[Any]:
        edits = pipe.make_edits(changes, captions, generator=seeded(range(count)), **drawing(steps))
        fresh = plain.make_requests(
            captions, size=[(one.after.width, one.after.height) for one in made],
            generator=seeded(range(100, 100 + count)), **drawing(steps),
        )  # fmt: skip
        return [*edits, *fresh]

    packed, alone = requests(), requests()
    seconds = [_complete(pipe, packed)]
    seconds.append(sum(_complete(pipe, [one]) for one in alone))
    pictures = [pipe.decode_requests([one])[0] for one in [*packed, *alone]]
    gaps = [_gap(*two, np.max) for two in zip(pictures[: len(packed)], pictures[len(packed) :], strict=True)]
    tokens = [sum(one.tokens_of(step) for step in range(one.steps)) for one in packed]
    figures = {
        "edits, and as many fresh pictures": count,
        "largest difference packed and alone, grey levels": max(gaps),
        "tokens of all steps": sum(tokens),
        "  of the edits": sum(tokens[:count]),
        "seconds packed": seconds[0],
        "seconds one by one": seconds[1],
    }
    _tell(figures, out)


def _complete(pipe: Any, requests: Sequence[Any]) -> float:
    """Seconds of all steps of some requests together."""
    begin = time.perf_counter()
    pipe.engine().complete(requests)
    return time.perf_counter() - begin


def _through(pipe: Any, image: Image.Image) -> Image.Image:
    """A picture encoded and decoded."""
    from ideoflow import latents

    tokens = latents.encode(pipe.vae, [image])
    picture = latents.decode(pipe.vae, tokens, [(image.height // 16, image.width // 16)])[0]
    return pipe.image_processor.postprocess(picture[None], output_type="pil")[0]


def _gap(one: Image.Image, other: Image.Image, of: Callable[[Any], Any] = np.mean) -> float:
    return float(of(np.abs(np.asarray(one, dtype=np.float32) - np.asarray(other, dtype=np.float32))))


def _tell(figures: dict[str, Any], out: Path | None) -> None:
    for name, value in figures.items():
        shown = f"{value:.3f}" if isinstance(value, float) else str(value)
        typer.echo(f"{name:60} {shown:>8}")
    if out is not None:
        write_text(out, json.dumps(figures, indent=1) + "\n")


def _sheet(path: Path | None, before: Sequence[Image.Image], after: Sequence[Image.Image], columns: int = 8) -> None:
    """Write the first pictures, each above what became of it."""
    if path is None:
        return
    check_writable(path, "--sheet")
    shown = list(zip(before, after, strict=True))[: 3 * columns]
    side = max(max(image.size) for both in shown for image in both) + 4
    sheet = Image.new("RGB", (side * columns, 2 * side * -(-len(shown) // columns)), "white")
    for place, both in enumerate(shown):
        for row, image in enumerate(both):
            sheet.paste(image, (side * (place % columns), side * (2 * (place // columns) + row)))
    sheet.save(path)


if __name__ == "__main__":
    app()
