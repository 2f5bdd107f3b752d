"""`ideoflow generate`: captions in, picture files out, all pictures of one model and setting in one packed call."""

from __future__ import annotations

import json
import os
import random
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..bundled import SKETCH
from ..checks import printable
from ..files import check_writable
from ..pictures import save_image
from ..placeholder import PLACEHOLDER, looks_like_placeholder
from .chosen import Options
from .console import FAILED, err, fail, out, plain_errors, starting, warn
from .draw import draw
from .drawing_options import (
    BaseOption,
    CacheOption,
    CudaGraphsOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    GuidanceOption,
    IgnoreUnknownOption,
    LoraOption,
    MaxSequenceLengthOption,
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
from .following import ParallelOption, check_settings, follow, plan_of, ranks_of, shared
from .jobs import Job, Picture, Settings, target
from .prompts import Prompt, Reader
from .values import expanded, parse_amount, parse_format, parse_sizes
from .writing import EndpointOption, LanguageModelOption, TimeoutOption, endpoint_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..captions.writing import Endpoint

SKETCH_SIZE = (128, 128)
SEEDS = 2**64  # how many a torch generator takes
DEFAULT_SIZE = (1024, 1024)


@dataclass(frozen=True)
class Words:
    """What becomes of plain text: who writes a caption of it, and whether all of it must be understood."""

    endpoint: Endpoint | None
    by_model: bool
    strict: bool


def generate(
    prompts: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPT",
            help="A caption file (.json or .txt), a .jsonl file with one caption a line, a folder of captions, a JSON "
            "caption, plain text, '-' for standard input, or a picture made by ideoflow, "
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
    preset: PresetOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    cache: CacheOption = None,
    seed: SeedOption = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Pictures per prompt: picture i has seed + i.")] = 1,
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
    wrap: Annotated[
        bool,
        typer.Option(
            help="Put plain text into a minimal JSON caption, the only form the models were trained on; --no-wrap "
            "sends the text as it is."
        ),
    ] = True,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Have captions written of plain text: by --endpoint, else by the model's own prompt enhancer. The "
            "bundled model's grammar does so unasked.",
        ),
    ] = False,
    endpoint: EndpointOption = None,
    llm: LanguageModelOption = None,
    llm_timeout: TimeoutOption = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the transformers: worth minutes of waiting for many steps. Needs a C++ compiler."
        ),
    ] = False,
    cuda_graphs: CudaGraphsOption = None,
    parallel: ParallelOption = None,
    max_tokens: MaxTokensOption = None,
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
    max_sequence_length: MaxSequenceLengthOption = 2048,
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
    metadata: MetadataOption = True,
    trust_settings: TrustSettingsOption = False,
) -> None:
    """Draw pictures from captions.

    Examples:

      ideoflow generate caption.json

      ideoflow generate "a red heart on pink"

      ideoflow generate caption.json --size 160x112 --seed 7 --n 4

      ideoflow generate outputs/caption-7.png          (the same picture again)
    """
    # Read when torch loads. Threads that spin while they wait starve the one they wait for where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with plain_errors(), ExitStack() as block:
        options = Options.of(preset, steps, guidance, model, lora, dtype, device, quantize, base, cache)
        if memory:
            parse_amount(memory)
        if drop_unknown and not fix:
            raise ValueError("--drop-unknown mends captions, which --no-fix forbids: give one of them.")
        plan = plan_of(parallel, compile=compile, cuda_graphs=cuda_graphs, memory=memory)
        if plan is not None and os.environ.get("RANK", "0") != "0":
            follow(plan, options.device, ignore_unknown)
            return
        asked = endpoint_of(endpoint, llm, llm_timeout)
        if not wrap and (write or asked is not None):
            raise ValueError(
                "--no-wrap sends plain text as it is, where --write and --endpoint have a caption written."
            )
        words = Words(asked, write, strict)
        reader = Reader(wrap, fix, drop_unknown)
        read: list[Prompt] = []
        for number, value in enumerate(prompts, 1):
            with naming(f"prompt {number} of {len(prompts)}", len(prompts) > 1, "the prompt"):
                read += reader.read(value)
        report(read, strict)
        if (write or asked is not None) and not any(prompt.words for prompt in read):
            warn(
                f"{'--endpoint' if asked else '--write'} has no effect: captions are written of plain text, and"
                " there is none."
            )
        sizes = parse_sizes(size or [], len(read))
        jobs: list[Job] = []
        for prompt, wanted in zip(read, sizes, strict=True):
            with naming(printable(prompt.given), len(read) > 1):
                jobs += _jobs(prompt, wanted, seed, n, options, trust_settings, words)
        kind = parse_format(form) if form else None
        targets = [target(output, job.picture, index, len(jobs), kind) for index, job in enumerate(jobs)]
        for path in dict.fromkeys(targets):
            check_writable(path, "--out")
        if cuda_graphs and (wrong := [job for job in jobs if not job.settings.device.startswith("cuda")]):
            device = wrong[0].settings.device
            raise ValueError(f"--cuda-graphs needs --device cuda, and these pictures are drawn on {device!r}.")
        if plan is not None:
            check_settings(plan, [job.settings for job in jobs])
        with starting("importing torch, transformers and diffusers"):
            from .. import pipeline  # noqa: F401 (so that it is said)
        ranks = block.enter_context(ranks_of(plan, options.device))
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
                None if ranks is None else partial(shared, settings, ignore_unknown, ranks),
            )
            paths = []
            for index, image in zip(members, images, strict=True):
                if settings.model != SKETCH and looks_like_placeholder(image):
                    warn(f"{jobs[index].picture.name}, seed {jobs[index].picture.seed}: {PLACEHOLDER}")
                # What this command has written, it does not replace.
                path = save(image, targets[index], metadata, overwrite and targets[index] not in written)
                elsewhere = elsewhere or (path.parent, path.suffix) != (targets[index].parent, targets[index].suffix)
                paths.append(path)
                written.add(targets[index])
            for path in paths:  # once all are safe: standard output may be closed, or know no such characters
                out.print(printable(path), markup=False)
    if elsewhere:
        raise typer.Exit(FAILED)


@contextmanager
def naming(what: str, several: bool, instead_of: str = "") -> Iterator[None]:
    """A block whose errors name the prompt that they are of, where there are several and they do not yet.

    Args:
        what: what the prompt is called.
        several: whether there are others.
        instead_of: what an error calls it that has no better name.
    """
    try:
        yield
    except ValueError as error:
        told = str(error)
        if several and instead_of and instead_of in told:
            error.args = (told.replace(instead_of, what, 1),)
        elif several and not instead_of and what not in told:
            error.args = (f"{what}: {told}",)
        raise


def save(image: Image, path: Path, settings: bool, overwrite: bool) -> Path:
    """Write a picture, elsewhere where it cannot be written to its place: it may have taken long."""
    try:
        return save_image(image, path, settings=settings, overwrite=overwrite)
    except ValueError as error:  # more settings than a JPEG holds
        warn(f"--out {printable(path)}: {error} The picture is written as a PNG.")
        return save(image, path.with_suffix(".png"), settings, overwrite)
    except OSError as error:
        told = f"--out {printable(path)} cannot be written ({error.strerror or error})"
        for folder in (Path.cwd(), Path.home(), Path(tempfile.gettempdir())):
            with suppress(OSError):
                kept = save_image(image, folder / path.name, settings=settings, overwrite=False)
                warn(f"{told}: the picture is in {printable(kept)}.")
                return kept
        fail(f"{told}, and nothing can be written elsewhere: the picture is lost.", FAILED)


def made_by(name: str, recipe: dict[str, Any]) -> str:
    """The command that makes a changed picture again, of the picture that it was made of."""
    command = "upscale" if recipe["edit"].get("kind") == "upscale" else "edit"
    return f"ideoflow {command} PICTURE --again {shlex.quote(printable(name))}"


def report(prompts: Sequence[Prompt], strict: bool) -> None:
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
    prompt: Prompt,
    size: tuple[int, int] | None,
    seed: int | None,
    n: int,
    options: Options,
    trusted: bool,
    words: Words,
) -> list[Job]:
    """The pictures of one prompt, each with its settings: option, else what its file says, else the default."""
    recipe = prompt.recipe
    if recipe and recipe["edit"]:
        raise ValueError(
            f"{printable(prompt.given)} is an edit of another picture, of which its caption alone would draw something"
            f" else: make it again with `{made_by(prompt.given, recipe)}`."
        )
    named = {key: value for key, value in (("size", size), ("seed", seed)) if value is not None}
    settings = options.settings(prompt.given, recipe, named, trusted)
    of_sketch = settings.of_sketch
    if size is None and recipe:
        size = int(recipe["width"]), int(recipe["height"])
    width, height = size or (SKETCH_SIZE if of_sketch else DEFAULT_SIZE)
    if prompt.words and words.endpoint is not None:
        prompt = _by_endpoint(prompt, (width, height), words.endpoint, of_sketch)
    elif of_sketch:
        prompt = _for_sketch(prompt, (width, height), words.strict)
    if seed is None:
        seed = int(recipe["seed"]) if recipe else random.SystemRandom().randrange(2**31)
    if seed < 0 or seed + n > SEEDS:
        raise ValueError(
            f"the seeds {seed} to {seed + n - 1} of {prompt.name}: a seed is below 2**64, and not negative."
        )
    own = prompt.words if words.by_model and not of_sketch else ""
    if own:
        _check_head(settings)
    return [Job(Picture(prompt.text, width, height, seed + i, prompt.name, own), settings, recipe) for i in range(n)]


def _check_head(settings: Settings) -> None:
    """Refuse to have captions written by a model whose folder tells that it has no head for it."""
    place = expanded("--model", settings.base or settings.model)
    try:
        index = json.loads((place / "model_index.json").read_text("utf-8"))
        heads = index.get("prompt_enhancer_head") or [None]
    except (OSError, ValueError, AttributeError):
        return  # on the hub, or no folder: told when it is opened
    if heads[0] is None:
        raise ValueError(
            f"--write needs the component `prompt_enhancer_head`, which {printable(str(place))} has not: give"
            " --endpoint and --llm, or leave it out."
        )


def _by_endpoint(prompt: Prompt, size: tuple[int, int], endpoint: Endpoint, for_sketch: bool) -> Prompt:
    """A prompt whose words a language model has written as a caption."""
    from ..captions.writing import write

    with starting(f"asking {endpoint.name} for a caption"):
        written = write(prompt.words, endpoint, size)
    err.print(f"note: {printable(prompt.given)}: the caption was written by {printable(written.by)}", markup=False)
    for note in written.notes:
        warn(f"{printable(prompt.given)}: {printable(note)}")
    if for_sketch:
        warn(
            f"{printable(prompt.given)}: the bundled model draws eleven shapes, twelve colours and short words; what"
            " else the caption says is left out of the picture. Name another model by --model."
        )
    return replace(prompt, text=written.caption.line(), words="")


def _for_sketch(prompt: Prompt, size: tuple[int, int], strict: bool) -> Prompt:
    """A prompt for the bundled model: of words, a caption with boxes.

    Raises:
        ValueError: if it is plain text that is to be left as it is, or of which nothing is understood.
    """
    if prompt.words and prompt.text == prompt.words:
        raise ValueError(
            f"{printable(prompt.given)} is plain text, which the bundled model does not understand as it is: leave out"
            " --no-wrap, and a caption is made of it."
        )
    if not prompt.words:
        check_for_sketch(prompt)
        return prompt
    from ..sketch.prose import read

    reading = read(prompt.words)
    if reading.unknown and strict:
        fail(f"{printable(prompt.given)} (--strict):\n  " + "\n  ".join(reading.notes))
    err.print(f"note: {printable(prompt.given)}: understood as {reading.understood}", markup=False)
    for note in reading.notes:
        warn(f"{printable(prompt.given)}: {note}")
    return replace(prompt, text=reading.caption(size).line())


def check_for_sketch(prompt: Prompt) -> None:
    """Refuse, or warn of, what the bundled model was not trained on and draws an empty field for."""
    if prompt.words:
        raise ValueError(
            f"{printable(prompt.given)} is plain text, which the bundled model does not understand: give a caption with"
            " a background and boxes, such as `ideoflow caption write` makes of words, or another --model."
        )
    if not prompt.placed:
        warn(
            f"{printable(prompt.given)}: the bundled model knows elements with a box (`bbox`) alone, and will not draw"
            " the others."
        )
