"""`ideoflow edit`: a picture changed, in a part, by its caption, at its sides or as a whole."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checks import printable
from ..files import check_writable
from ..pictures import read_settings
from ..sizes import parse_size
from .chosen import Options
from .console import out, plain_errors, plain_warnings, starting, warn
from .draw import load, steps_shown
from .drawing_options import (
    BaseOption,
    CacheOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    GuidanceOption,
    IgnoreUnknownOption,
    LoraOption,
    MaxTokensOption,
    MetadataOption,
    ModelOption,
    OutOption,
    OverwriteOption,
    PresetOption,
    QuantizeOption,
    SeedOption,
    StepsOption,
    TrustSettingsOption,
)
from .generate import check_for_sketch, report, save
from .jobs import Picture, Settings, target
from .prompts import Prompt, Reader
from .values import parse_format
from .wish import Wish, box_of, change_asked_for, check_again, kind_asked_for, own_seed, place_of

if TYPE_CHECKING:
    from PIL.Image import Image

LOSSY = (".jpg", ".jpeg")


def edit(
    picture: Annotated[
        Path,
        typer.Argument(
            metavar="PICTURE",
            help="The picture to change. One made by ideoflow brings its caption, model and settings along.",
            show_default=False,
        ),
    ],
    caption: Annotated[
        str | None,
        typer.Option(
            "--caption",
            "-c",
            help="What the picture becomes: a caption file, a JSON caption, or text.",
            show_default="the picture's own",
        ),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(help="The caption of the picture as it is.", show_default="what its file says"),
    ] = None,
    how: Annotated[
        str | None,
        typer.Option(
            help="redraw: what differs between the two captions, and nothing else. inpaint: what --mask or --box says. "
            "image: the whole picture anew, starting from it. caption: as the new caption says, without a mask. "
            "outpaint: a larger picture. variation: a neighbour of a picture made by ideoflow.",
            show_default="what the other options say; redraw for another caption",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="A picture of the same size that says what may change: white does; grey says how strongly."),
    ] = None,
    mask_changes: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT", help="What of the mask changes: white, black or transparent.", show_default="white"
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="Y,X,Y,X",
            help="In place of a mask, a box that may change, as captions have it: y_min,x_min,y_max,x_max in "
            "thousandths. May be repeated.",
        ),
    ] = None,
    outpaint: Annotated[
        str | None, typer.Option(metavar="WxH", help="Draw a larger picture of this size around it.")
    ] = None,
    place: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Where it lies in the larger one, in pixels from the left and the top.",
            show_default="in the middle",
        ),
    ] = None,
    variation: Annotated[
        float | None,
        typer.Option(
            help="Draw a neighbour of a picture made by ideoflow, from its seed: how far away, from 0 to 1.",
            show_default="0.2 for --how variation",
        ),
    ] = None,
    variation_seed: Annotated[
        int | None, typer.Option(min=0, help="Seed that the neighbour lies towards.", show_default="drawn at random")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How far it may change, from 0 to 1: the share of the steps that are taken.",
            show_default="1; 0.6 for the whole picture, 0.9 by caption",
        ),
    ] = None,
    feather: Annotated[
        int | None,
        typer.Option(min=0, help="Pixels over which what is drawn fades in.", show_default="8; 4 for redraw"),
    ] = None,
    harmonise: Annotated[
        int | None,
        typer.Option(
            min=0, help="Further rounds of each step, against seams; each takes as long again.", show_default="0"
        ),
    ] = None,
    padding: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Draw the mask's surroundings alone, so many pixels on each side, at the full size.",
            show_default="the whole picture",
        ),
    ] = None,
    margin: Annotated[
        int | None,
        typer.Option(min=0, help="For redraw: pixels around the boxes that may change too.", show_default="8"),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            help="How a picture whose sides are no multiples of 16 is drawn: pad, crop or stretch.", show_default="pad"
        ),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option(
            metavar="EDITED",
            help="Change the picture as this one was changed, by what its file says: the same picture again.",
        ),
    ] = None,
    preset: PresetOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    cache: CacheOption = None,
    seed: SeedOption = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Pictures: picture i has seed + i.")] = 1,
    model: ModelOption = None,
    base: BaseOption = None,
    lora: LoraOption = None,
    ignore_unknown: IgnoreUnknownOption = False,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = None,
    output: OutOption = "outputs",
    form: FormatOption = None,
    overwrite: OverwriteOption = False,
    max_tokens: MaxTokensOption = None,
    metadata: MetadataOption = True,
    trust_settings: TrustSettingsOption = False,
) -> None:
    """Change a picture.

    Examples:

      ideoflow edit circle.png --caption changed.json          (only what differs is drawn)

      ideoflow edit photo.jpg --mask hole.png --caption whole.json

      ideoflow edit circle.png --outpaint 192x192
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with plain_errors():
        options = Options.of(preset, steps, guidance, model, lora, dtype, device, quantize, base, cache)
        wish = Wish(
            how, before, mask, mask_changes, tuple(map(box_of, box)) if box else None,
            parse_size(outpaint, "--outpaint") if outpaint else None, place_of(place) if place else None,
            variation, variation_seed, strength, feather, harmonise, padding, margin, fit,
        )  # fmt: skip
        own = own_settings(picture)
        made = read_settings(again) if again else None
        if made is not None:
            given = {"caption": caption, "how": how, **wish.given, "n": None if n == 1 else n}
            check_again("edit", str(again), made, given, typed_of(options, seed))
        prompt = prompt_of(caption, made or own, picture)
        kind_of = "" if made is not None else kind_asked_for(wish, own, prompt.text, caption is None)
        if kind_of == "variation":
            seed = own_seed(str(picture), own, seed, n)
        report([prompt], strict=False)
        recipe = made if made is not None else as_model(own)
        named = {"size": True} | ({} if seed is None and made else {"seed": seed})
        settings = options.settings(str(again or picture), recipe, named, trust_settings)
        if settings.of_sketch:
            check_for_sketch(prompt)
        if seed is None:
            seed = int(made["seed"]) if made else random.SystemRandom().randrange(2**31)
        kind = parse_format(form) if form else None
        with starting("importing torch, transformers and diffusers"):
            from .. import editing
        text = prompt.text
        if made is not None:
            change = editing.change_of(picture, made)
        else:
            change, text = change_asked_for(picture, kind_of, wish, own, text)
        size = _size(change)
        targets = [
            target(output, Picture(text, *size, seed + i, f"{picture.stem}-edited"), i, n, kind) for i in range(n)
        ]
        for path in dict.fromkeys(targets):
            check_writable(path, "--out")
        if hasattr(change, "mask") and any(path.suffix.lower() in LOSSY for path in targets):
            warn("a JPEG keeps no pixel to the last bit: what stays of the picture changes a little. A PNG keeps it.")
        images = _draw(settings, change, text, [seed + i for i in range(n)], ignore_unknown, max_tokens)
        paths = [save(image, path, metadata, overwrite) for image, path in zip(images, targets, strict=True)]
        for path in paths:
            out.print(printable(path), markup=False)


def own_settings(path: Path) -> dict[str, Any]:
    """The settings in the picture's file; empty where it has none."""
    try:
        return read_settings(path)
    except ValueError as error:
        if "carries" not in str(error):  # it is no picture at all
            raise
        return {}


def typed_of(options: Options, seed: int | None) -> dict[str, Any]:
    """The options of the steps that a picture's file says too."""
    names = ("preset", "steps", "guidance", "cache", "quantize")
    return {name: getattr(options, name) for name in names} | {"seed": seed}


def as_model(own: dict[str, Any]) -> dict[str, Any]:
    """A picture's settings as those of another one by the same model, whether or not it can be made again."""
    return {**own, "unrepeatable": None, "seed": own["seed"] or 0} if own else {}


def prompt_of(caption: str | None, recipe: dict[str, Any] | None, picture: Path) -> Prompt:
    """What the picture becomes."""
    if caption is not None:
        prompts = Reader().read(caption)
        if len(prompts) != 1:
            raise ValueError(f"--caption {printable(caption)} has {len(prompts)} captions: give one.")
        return prompts[0]
    if not recipe:
        raise ValueError(f"{printable(picture)} brings no caption along: give --caption, what it is to become.")
    from ..captions.schema import is_placed

    return Prompt(recipe["caption"], picture.stem, str(picture), placed=is_placed(recipe["caption"]))


def _size(change: Any) -> tuple[int, int]:
    """Width and height of what is given back, as far as file names need them."""
    image: Any = getattr(change, "image", None)
    found: tuple[int, int] = (
        image.size if image is not None and (hasattr(change, "mask") or not change.size) else change.size
    )
    return found


def _draw(
    settings: Settings, change: Any, text: str, seeds: Sequence[int], ignore_unknown: bool, max_tokens: int | None
) -> list[Image]:
    """The changed pictures, all in one call."""
    import warnings

    import torch

    from ..captions import CaptionWarning
    from ..editing import Ideogram4InpaintPipeline
    from ..presets import find_preset
    from .console import err, shown

    preset = find_preset(settings.preset)
    with plain_warnings(), err.status(f"loading {shown(settings.model)} on {settings.device}"):
        pipe = Ideogram4InpaintPipeline.from_pipe(load(settings, ignore_unknown))
    pipe.set_progress_bar_config(disable=True)
    with plain_warnings(), steps_shown("changing the picture") as on_step:
        warnings.simplefilter("ignore", CaptionWarning)  # said already
        images: list[Image] = pipe.edit(
            change,
            text,
            num_images_per_prompt=len(seeds),
            preset=preset if settings.steps is None else preset.with_steps(settings.steps),
            guidance_scale=settings.guidance,
            cache=settings.cache,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=on_step,
            callback_on_step_end_tensor_inputs=[],
            max_tokens=max_tokens,
        ).images
    return images
