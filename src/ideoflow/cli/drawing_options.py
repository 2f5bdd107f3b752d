"""Options that the commands which draw share: the model and its form, the steps, and where pictures go."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import sketch
from ..presets import MAX_STEPS

PresetOption = Annotated[
    str | None,
    typer.Option(
        help="V4_QUALITY_48, V4_DEFAULT_20 or V4_TURBO_12; quality, default or turbo for short. FAST_20 and FASTER_20 "
        "(fast, faster) leave out steps of the default, as --cache does.",
        show_default="default",
    ),
]
StepsOption = Annotated[int | None, typer.Option(min=1, max=MAX_STEPS, help="Denoising steps instead of the preset's.")]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        help="One guidance scale for every step instead of the preset's.",
        show_default=f"the preset's; {sketch.GUIDANCE:g} with the bundled model",
    ),
]
CacheOption = Annotated[
    str | None,
    typer.Option(
        help="Leave out steps, which changes pictures: fast or faster, where the model is calibrated for it, as the "
        "bundled one is; or which to compute, such as 'interval=2 before=3 order=1'; off for none.",
        show_default="the preset's",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="A model folder or hub id in the diffusers layout, or a transformer's file of any form (safetensors, "
        "fp8, ComfyUI, nf4, GGUF); 'sketch' is the small model that comes with ideoflow.",
        show_default="sketch",
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="With a transformer's file, or a folder that holds one alone, as --model: the folder or hub id that "
        "everything else comes from (text encoder, autoencoder, the other transformer).",
        show_default="the published model's hub id",
    ),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH[:SCALE]",
        help="A LoRA adapter of any form (diffusers, ComfyUI, kohya, peft ...) and its strength (1 if left out); "
        "may be repeated; 'none' for none where a picture is made again.",
    ),
]
IgnoreUnknownOption = Annotated[
    bool,
    typer.Option(
        "--ignore-unknown",
        help="Leave out, with a warning, what a --lora file holds beside LoRA adapters of the model; without it "
        "such a file is refused.",
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16 or float16.",
        show_default="float32 for the bundled model and on a CPU, otherwise bfloat16",
    ),
]
CudaGraphsOption = Annotated[
    bool | None,
    typer.Option(
        "--cuda-graphs/--no-cuda-graphs",
        help="Replay steps of all sizes as CUDA graphs, or none: the same pictures. Needs --device cuda.",
        show_default="small ones, where memory is free",
    ),
]
QuantizeOption = Annotated[
    str | None,
    typer.Option(
        help="fp8 or int8: the transformers' linear layers in one byte a weight. Changes the picture a little.",
        show_default="as the model has them",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps ...", show_default="the first accelerator, else cpu"),
]
OutOption = Annotated[
    str,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE|FOLDER",
        help="A .png, .jpg or .webp file, or a folder; {name}, {seed}, {index}, {width} and {height} are filled in.",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="png, jpeg or webp, where --out is a folder. PNG and WebP keep every pixel.",
        show_default="png",
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace existing files; without it the new ones are numbered.")
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens of one pass: fewer need less memory, and several passes take the place of one.",
        show_default="all in one pass",
    ),
]
MaxSequenceLengthOption = Annotated[
    int, typer.Option(min=1, help="The most tokens that a caption may have; a longer one is refused.")
]
MetadataOption = Annotated[
    bool,
    typer.Option(
        help="Keep caption, seed and settings in the file, so that it can be made again; --no-metadata: do not."
    ),
]
TrustSettingsOption = Annotated[
    bool,
    typer.Option(
        "--trust-settings",
        help="Open, and fetch, whatever model and adapters the file of a picture that is made again names; without "
        "it, only the bundled model and what --model, --base and --lora name.",
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of each prompt's first picture.", show_default="drawn at random"),
]
