"""`ideoflow generate`: captions in, picture files out, all pictures of one model and setting in one packed call."""

from __future__ import annotations

import math
import os
import random
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import sketch
from ..bundled import SKETCH
from ..checks import printable
from ..devices import available, best_device
from ..files import check_writable
from ..pictures import save_image
from ..presets import MAX_STEPS, SHORT_NAMES
from .console import FAILED, err, fail, out, plain_errors, starting, warn
from .draw import draw
from .jobs import Job, Lora, Picture, Settings, target
from .prompts import Prompt, Reader
from .trust import describe, settle
from .values import (
    parse_amount,
    parse_device,
    parse_dtype,
    parse_format,
    parse_loras,
    parse_model,
    parse_preset,
    parse_quantize,
    parse_sizes,
)

if TYPE_CHECKING:
    from PIL.Image import Image

SKETCH_SIZE = (128, 128)
SEEDS = 2**64  # how many a torch generator takes
DEFAULT_SIZE = (1024, 1024)


@dataclass(frozen=True)
class Options:
    """The options as typed, None where absent: a picture's own settings stand unless an option replaces them."""

    preset: str | None
    steps: int | None
    guidance: float | None
    model: str | None
    loras: tuple[Lora, ...] | None
    dtype: str | None
    device: str | None
    quantize: str | None
    base: str | None


def generate(
    prompts: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPT",
            help="A caption file (.json or .txt), a .jsonl file with one caption a line, a folder of captions, a JSON "
            "caption, plain text (not for the bundled model), '-' for standard input, or a picture made by ideoflow, "
            "which is made again from its own settings. Several are drawn together.",
            show_default=False,
        ),
    ],
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            "-s",
            metavar="WxH",
            help="Width and height in pixels, multiples of 16: once for all prompts, or once for each prompt in order.",
            show_default="{}x{} with the bundled model, otherwise {}x{}".format(*SKETCH_SIZE, *DEFAULT_SIZE),
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="V4_QUALITY_48, V4_DEFAULT_20 or V4_TURBO_12; quality, default or turbo for short.",
            show_default="default",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MAX_STEPS, help="Denoising steps instead of the preset's.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="One guidance scale for every step instead of the preset's.",
            show_default=f"the preset's; {sketch.GUIDANCE:g} with the bundled model",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of each prompt's first picture.", show_default="drawn at random"),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Pictures per prompt: picture i has seed + i.")] = 1,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model folder or hub id in the diffusers layout, or a transformer's file of any form (safetensors, "
            "fp8, ComfyUI, nf4, GGUF); 'sketch' is the small model that comes with ideoflow.",
            show_default="sketch",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="With a transformer's file, or a folder that holds one alone, as --model: the folder or hub id that "
            "everything else comes from (text encoder, autoencoder, the other transformer).",
            show_default="the published model's hub id",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH[:SCALE]",
            help="A LoRA adapter of any form (diffusers, ComfyUI, kohya, peft ...) and its strength (1 if left out); "
            "may be repeated; 'none' for none where a picture is made again.",
        ),
    ] = None,
    ignore_unknown: Annotated[
        bool,
        typer.Option(
            "--ignore-unknown",
            help="Leave out, with a warning, what a --lora file holds beside LoRA adapters of the model; without it "
            "such a file is refused.",
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16.",
            show_default="float32 for the bundled model and on a CPU, otherwise bfloat16",
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="fp8 or int8: the transformers' linear layers in one byte a weight. Changes the picture a little.",
            show_default="as the model has them",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1, mps ...", show_default="the first accelerator, else cpu"),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE|FOLDER",
            help="A .png, .jpg or .webp file, or a folder; {name}, {seed}, {index}, {width} and {height} are filled "
            "in.",
        ),
    ] = "outputs",
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="png, jpeg or webp, where --out is a folder. PNG and WebP keep every pixel.",
            show_default="png",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files; without it the new ones are numbered.")
    ] = False,
    wrap: Annotated[
        bool,
        typer.Option(
            help="Put plain text into a minimal JSON caption, the only form the models were trained on; --no-wrap "
            "sends the text as it is."
        ),
    ] = True,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the transformers: worth minutes of waiting for many steps. Needs a C++ compiler."
        ),
    ] = False,
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs",
            help="Replay steps as CUDA graphs: small pictures may be drawn faster. Needs --device cuda.",
        ),
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of one pass: fewer need less memory, and several passes take the place of one.",
            show_default="all in one pass",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Fit the model into so much of the device's memory: 12GB, 12GiB, 11500MB, or auto for what is free. "
            "May offload, split passes, decode in tiles and, where nothing else fits, round weights; warns of what "
            "changes pictures. `ideoflow plan` shows plans.",
            show_default="everything on the device",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --memory, print the plan to standard error.")
    ] = False,
    max_sequence_length: Annotated[
        int, typer.Option(min=1, help="The most tokens that a caption may have; a longer one is refused.")
    ] = 2048,
    fix: Annotated[
        bool,
        typer.Option(
            help="Mend what can have been meant in one way only (see `ideoflow caption`), and say so; --no-fix draws "
            "captions as they are."
        ),
    ] = True,
    drop_unknown: Annotated[
        bool, typer.Option("--drop-unknown", help="Leave out keys of captions that are not the schema's.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse captions that break the schema; without it they draw a warning.")
    ] = False,
    metadata: Annotated[
        bool,
        typer.Option(
            help="Keep caption, seed and settings in the file, so that it can be made again; --no-metadata: do not."
        ),
    ] = True,
    trust_settings: Annotated[
        bool,
        typer.Option(
            "--trust-settings",
            help="Open, and fetch, whatever model and adapters the file of a picture that is made again names; without "
            "it, only the bundled model and what --model, --base and --lora name.",
        ),
    ] = False,
) -> None:
    """Draw pictures from captions.

    Examples:

      ideoflow generate caption.json

      ideoflow generate caption.json --size 160x112 --seed 7 --n 4

      ideoflow generate outputs/caption-7.png          (the same picture again)
    """
    # Read when torch loads. Threads that spin while they wait starve the one they wait for where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with plain_errors():
        options = Options(
            preset=parse_preset(preset) if preset else None,
            steps=steps,
            guidance=guidance,
            model=parse_model("--model", model) if model else None,
            loras=parse_loras(lora) if lora else None,
            dtype=parse_dtype(dtype) if dtype else None,
            device=parse_device(device) if device else None,
            quantize=parse_quantize(quantize) if quantize else None,
            base=parse_model("--base", base) if base and model and Path(model).is_file() else base,
        )
        if memory:
            parse_amount(memory)
        if guidance is not None and not math.isfinite(guidance):
            raise ValueError(f"--guidance {guidance}: give a finite number.")
        if drop_unknown and not fix:
            raise ValueError("--drop-unknown mends captions, which --no-fix forbids: give one of them.")
        reader = Reader(wrap, fix, drop_unknown)
        read = [prompt for value in prompts for prompt in reader.read(value)]
        _report(read, strict)
        sizes = parse_sizes(size or [], len(read))
        jobs = [
            job
            for prompt, wanted in zip(read, sizes, strict=True)
            for job in _jobs(prompt, wanted, seed, n, options, trust_settings)
        ]
        kind = parse_format(form) if form else None
        targets = [target(output, job.picture, index, len(jobs), kind) for index, job in enumerate(jobs)]
        for path in dict.fromkeys(targets):
            check_writable(path, "--out")
        if cuda_graphs and (wrong := [job for job in jobs if not job.settings.device.startswith("cuda")]):
            device = wrong[0].settings.device
            raise ValueError(f"--cuda-graphs needs --device cuda, and these pictures are drawn on {device!r}.")
        with starting("importing torch, transformers and diffusers"):
            from .. import pipeline  # noqa: F401 (so that it is said)
        written: set[Path] = set()
        elsewhere = False
        groups: dict[Settings, list[int]] = {}
        for index, job in enumerate(jobs):
            groups.setdefault(job.settings, []).append(index)
        for settings, members in groups.items():
            pictures = [jobs[index].picture for index in members]
            for index in members:
                _report_differences(jobs[index], len(pictures))
            images = draw(
                settings,
                pictures,
                compile,
                cuda_graphs,
                max_tokens,
                memory,
                verbose,
                ignore_unknown,
                max_sequence_length,
            )
            paths = []
            for index, image in zip(members, images, strict=True):
                # What this command has written, it does not replace.
                path = _save(image, targets[index], metadata, overwrite and targets[index] not in written)
                elsewhere = elsewhere or (path.parent, path.suffix) != (targets[index].parent, targets[index].suffix)
                paths.append(path)
                written.add(targets[index])
            for path in paths:  # once all are safe: standard output may be closed, or know no such characters
                out.print(printable(path), markup=False)
    if elsewhere:
        raise typer.Exit(FAILED)


def _save(image: Image, path: Path, settings: bool, overwrite: bool) -> Path:
    """Write a picture, elsewhere where it cannot be written to its place: it may have taken long."""
    try:
        return save_image(image, path, settings=settings, overwrite=overwrite)
    except ValueError as error:  # more settings than a JPEG holds
        warn(f"--out {printable(path)}: {error} The picture is written as a PNG.")
        return _save(image, path.with_suffix(".png"), settings, overwrite)
    except OSError as error:
        told = f"--out {printable(path)} cannot be written ({error.strerror or error})"
        for folder in (Path.cwd(), Path.home(), Path(tempfile.gettempdir())):
            with suppress(OSError):
                kept = save_image(image, folder / path.name, settings=settings, overwrite=False)
                warn(f"{told}: the picture is in {printable(kept)}.")
                return kept
        fail(f"{told}, and nothing can be written elsewhere: the picture is lost.", FAILED)


def _report(prompts: Sequence[Prompt], strict: bool) -> None:
    """Warn of what breaks the caption schema and of what was mended, or refuse it."""
    mended = [f"{printable(prompt.given)}: {line}" for prompt in prompts for line in prompt.mended]
    breaches = [f"{printable(prompt.given)}: {breach}" for prompt in prompts for breach in prompt.breaches]
    if (mended or breaches) and strict:
        listed = [f"{line} (`ideoflow caption fix` does it)" for line in mended] + breaches
        fail("the caption breaks the schema (--strict):\n  " + "\n  ".join(listed))
    for line in mended:
        warn(f"mended {line}")
    for breach in breaches:
        warn(breach)


def _report_differences(job: Job, together: int) -> None:
    """Warn of what keeps a picture that is made again from being the same to the last bit."""
    import torch

    drawn_with = job.recipe.get("together") or together
    if drawn_with > 1 and drawn_with != together:
        warn(
            f"{job.picture.name} was drawn together with {drawn_with - 1} other{'s' * (drawn_with > 2)}; on its own, a "
            "few pixels may round to the next grey level. Give all of them in their order for the same bytes."
        )
    if (job.recipe.get("torch") or torch.__version__) != torch.__version__:
        warn(
            f"{job.picture.name} was drawn with torch {printable(job.recipe['torch'])}, this is {torch.__version__}: a"
            " few pixels may differ a little."
        )


def _jobs(
    prompt: Prompt, size: tuple[int, int] | None, seed: int | None, n: int, options: Options, trusted: bool
) -> list[Job]:
    """The pictures of one prompt, each with its settings: option, else what its file says, else the default."""
    recipe = prompt.recipe
    chosen = {key: value for key, value in vars(options).items() if value is not None}
    found: dict[str, Any] = {}
    if recipe:
        named = chosen | {key: value for key, value in (("size", size), ("seed", seed)) if value is not None}
        found = settle(prompt.given, recipe, named, trusted)
        err.print(f"note: what {printable(prompt.given)} was drawn with: {describe(recipe)}", markup=False)
    if "preset" in chosen:  # another preset brings its own steps and guidance
        found.pop("steps", None)
        found.pop("guidance", None)
    if "device" in found and "device" not in chosen and not available(found["device"]):
        warn(f"{prompt.name} was made on {found['device']!r}, which is not here: its pixels may differ a little.")
        del found["device"]
    values: dict[str, Any] = {"model": SKETCH, "loras": (), "preset": SHORT_NAMES["default"], **found, **chosen}
    of_sketch = SKETCH in (values["model"], values.get("base"))
    if of_sketch:
        _check_for_sketch(prompt)
        if "preset" not in found or "preset" in chosen:
            values.setdefault("guidance", sketch.GUIDANCE)
    values.setdefault("device", best_device())
    small = of_sketch or values["device"] == "cpu"
    values.setdefault("dtype", "float32" if small else "bfloat16")
    if size is None and recipe:
        size = int(recipe["width"]), int(recipe["height"])
    width, height = size or (SKETCH_SIZE if of_sketch else DEFAULT_SIZE)
    if seed is None:
        seed = int(recipe["seed"]) if recipe else random.SystemRandom().randrange(2**31)
    if seed < 0 or seed + n > SEEDS:
        raise ValueError(
            f"the seeds {seed} to {seed + n - 1} of {prompt.name}: a seed is below 2**64, and not negative."
        )
    if values.get("guidance") is not None and not math.isfinite(values["guidance"]):
        raise ValueError(f"--guidance {values['guidance']}: give a finite number.")
    settings = Settings(**values)
    return [Job(Picture(prompt.text, width, height, seed + i, prompt.name), settings, recipe) for i in range(n)]


def _check_for_sketch(prompt: Prompt) -> None:
    """Refuse, or warn of, what the bundled model was not trained on and draws an empty field for."""
    if prompt.plain:
        raise ValueError(
            f"{printable(prompt.given)} is plain text, which the bundled model does not understand: give a caption with"
            " a background and boxes, such as those in examples/captions/, or another --model."
        )
    if not prompt.placed:
        warn(
            f"{printable(prompt.given)}: the bundled model knows elements with a box (`bbox`) alone, and will not draw"
            " the others."
        )
