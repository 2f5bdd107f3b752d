"""`ideoflow upscale`: a picture enlarged beyond what the weights know, in tiles that are drawn anew."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checks import printable
from ..files import check_place, check_writable
from ..pictures import read_settings
from .chosen import Options
from .console import err, out, plain_errors, plain_warnings, shown, starting
from .draw import load
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
from .edit import as_model, own_settings, prompt_of, typed_of
from .generate import check_for_sketch, report, save
from .jobs import Picture, Settings, target
from .values import parse_format
from .wish import check_again

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..editing import Upscale


def upscale(
    picture: Annotated[
        Path,
        typer.Argument(
            metavar="PICTURE",
            help="The picture to enlarge. One made by ideoflow brings its caption, model and settings along.",
            show_default=False,
        ),
    ],
    factor: Annotated[float | None, typer.Option(help="How much longer each side becomes.", show_default="2")] = None,
    caption: Annotated[
        str | None,
        typer.Option("--caption", "-c", help="Its caption: a file, JSON, or text.", show_default="the picture's own"),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps that each tile takes, from 0 to 1: more invents more.", show_default="0.3"
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Pixels of a tile's side, a multiple of 16.",
            show_default="1024, or what the weights know if that is less",
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(help="Share of a tile's side that its neighbours overlap it by.", show_default="0.25"),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep tiles that are done here: the same command, with the same --seed, goes on from them.",
        ),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option(
            metavar="ENLARGED",
            help="Enlarge the picture as this one was enlarged, by what its file says: the same picture again.",
        ),
    ] = None,
    preset: PresetOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    cache: CacheOption = None,
    seed: SeedOption = None,
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
    """Enlarge a picture.

    Examples:

      ideoflow upscale heart.png --factor 4 --keep tiles --seed 1

      ideoflow upscale heart.png --again large.png
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with plain_errors():
        options = Options.of(preset, steps, guidance, model, lora, dtype, device, quantize, base, cache)
        given: dict[str, Any] = {"factor": factor, "strength": strength, "tile": tile, "overlap": overlap}
        own = own_settings(picture)
        made = read_settings(again) if again else None
        if made is not None:
            check_again("upscale", str(again), made, {"caption": caption, **given}, typed_of(options, seed))
        prompt = prompt_of(caption, made or own, picture)
        report([prompt], strict=False)
        recipe = made if made is not None else as_model(own)
        named = {"size": True} | ({} if made else {"seed": seed})
        settings = options.settings(str(again or picture), recipe, named, trust_settings)
        if settings.of_sketch:
            check_for_sketch(prompt)
        if made is not None:
            seed = int(made["seed"])
        if keep is not None:
            if seed is None:
                raise ValueError("--keep needs --seed, by which the same command finds the tiles that it kept.")
            check_place(keep, "--keep")
        seed = random.SystemRandom().randrange(2**31) if seed is None else seed
        kind = parse_format(form) if form else None
        with starting("importing torch, transformers and diffusers"):
            from .. import editing
        if made is not None:
            change: Upscale = replace(editing.change_of(picture, made), keep=keep)
        else:
            asked = {name: value for name, value in given.items() if value is not None}
            change = editing.Upscale(picture, **asked, keep=keep)
        path = target(output, Picture(prompt.text, *change.size, seed, f"{picture.stem}-large"), 0, 1, kind)
        check_writable(path, "--out")
        image = _draw(settings, change, prompt.text, seed, ignore_unknown, max_tokens)
        out.print(printable(save(image, path, metadata, overwrite)), markup=False)


def _draw(
    settings: Settings, change: Upscale, text: str, seed: int, ignore_unknown: bool, max_tokens: int | None
) -> Image:
    """The enlarged picture."""
    import warnings

    import torch

    from ..captions import CaptionWarning
    from ..editing import Ideogram4InpaintPipeline
    from ..presets import find_preset

    preset = find_preset(settings.preset)
    with plain_warnings(), err.status(f"loading {shown(settings.model)} on {settings.device}"):
        pipe = Ideogram4InpaintPipeline.from_pipe(load(settings, ignore_unknown))
    pipe.set_progress_bar_config(disable=not err.is_terminal)
    with plain_warnings():
        warnings.simplefilter("ignore", CaptionWarning)  # said already
        image: Image = pipe.upscale(
            change.image,
            text,
            change.factor,
            strength=change.strength,
            tile=change.tile,
            overlap=change.overlap,
            keep=change.keep,
            preset=preset if settings.steps is None else preset.with_steps(settings.steps),
            guidance_scale=settings.guidance,
            cache=settings.cache,
            generator=torch.Generator("cpu").manual_seed(seed),
            max_tokens=max_tokens,
        ).images[0]
    return image
