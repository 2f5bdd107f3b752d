"""`ideoflow upscale`: a picture enlarged beyond what the weights know, in tiles that are drawn anew."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..checks import printable
from ..files import check_place, check_writable
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
from .edit import as_model, own_settings, prompt_of
from .generate import check_for_sketch, report, save
from .jobs import Picture, Settings, target
from .values import parse_format

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
    factor: Annotated[float, typer.Option(help="How much longer each side becomes.")] = 2.0,
    caption: Annotated[
        str | None,
        typer.Option("--caption", "-c", help="Its caption: a file, JSON, or text.", show_default="the picture's own"),
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Share of the steps that each tile takes, from 0 to 1: more invents more.")
    ] = 0.3,
    tile: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Pixels of a tile's side, a multiple of 16.",
            show_default="1024, or what the weights know if that is less",
        ),
    ] = None,
    overlap: Annotated[float, typer.Option(help="Share of a tile's side that its neighbours overlap it by.")] = 0.25,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep tiles that are done here: the same command, with the same --seed, goes on from them.",
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
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with plain_errors():
        options = Options.of(preset, steps, guidance, model, lora, dtype, device, quantize, base, cache)
        own = own_settings(picture)
        prompt = prompt_of(caption, own, picture)
        report([prompt], strict=False)
        settings = options.settings(str(picture), as_model(own), {"size": True, "seed": seed}, trust_settings)
        if settings.of_sketch:
            check_for_sketch(prompt)
        if keep is not None:
            if seed is None:
                raise ValueError("--keep needs --seed, by which the same command finds the tiles that it kept.")
            check_place(keep, "--keep")
        seed = random.SystemRandom().randrange(2**31) if seed is None else seed
        kind = parse_format(form) if form else None
        with starting("importing torch, transformers and diffusers"):
            from ..editing import Upscale
        change = Upscale(picture, factor, strength, tile, overlap, keep)
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
