"""`ideoflow plan`: what would be done to draw in so much memory, from configurations alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import sketch
from ..bundled import SKETCH
from ..presets import MAX_STEPS
from ..sizes import parse_size
from .console import WRONG_INPUT, err, fail, out, plain_errors
from .values import check_device, expanded, parse_amount, parse_device, parse_dtype

if TYPE_CHECKING:
    from ..fitting import Plan

KINDS = ("int8", "fp8", "nf4")  # of --quantize
LOSSES = ("bfloat16", "int8", "fp8", "nf4", "tiled", "none")  # of --allow


def plan(
    memory: Annotated[
        list[str],
        typer.Option(
            "--memory",
            "-m",
            help='What the device has: "12GB" (12e9 bytes), "12GiB" (12 x 2^30), "11500MB"; "auto" for what is free on '
            "this machine's. Given several times, a table with a line for each.",
            show_default=False,
        ),
    ],
    size: Annotated[
        str, typer.Option("--size", "-s", metavar="WxH", help="Width and height of the pictures in pixels.")
    ] = "1024x1024",
    caption_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the caption, template included.")] = 500,
    pictures: Annotated[int, typer.Option("--pictures", "-n", min=1, help="Pictures of one call.")] = 1,
    steps: Annotated[int, typer.Option(min=1, max=MAX_STEPS, help="Denoising steps.")] = 20,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="A model's folder in the diffusers layout, whose configurations are read; its weights are not.",
            show_default="the full configuration",
        ),
    ] = None,
    one_branch: Annotated[
        bool,
        typer.Option(
            "--one-branch",
            help="Without the unconditional transformer, as distilled models are, with guidance 1.",
        ),
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Type that the weights are loaded in: float32, bfloat16 or float16.")
    ] = "bfloat16",
    device: Annotated[str, typer.Option(help="cuda, or cpu, where memory is that of the whole process.")] = "cuda",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="A loss that may be taken where nothing without it fits: bfloat16, int8, fp8, nf4, tiled, or none; "
            "may be repeated.",
            show_default="bfloat16, int8 and tiled; nf4 where bitsandbytes is installed",
        ),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="int8, fp8 or nf4 for the transformers, needed or not.", show_default="none")
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(help="For weights that wait in host memory, such as 32GB.", show_default="no limit"),
    ] = None,
) -> None:
    """Print how the model would be fitted into so much memory. Needs no weights and no GPU.

    The plan says for each component its precision and where it lies while captions are encoded, pictures denoised and
    decoded; the peak of each phase with its terms; and how fast it would be, by an estimate. Plans without loss come
    first. `ideoflow generate --memory` carries a plan out.

    Examples:

      ideoflow plan --memory 12GB

      ideoflow plan -m 8GB -m 24GB -m 80GB --size 2048x2048      (a table)

      ideoflow plan --memory 24GB --quantize int8 --pictures 4

      ideoflow plan --memory 16GB --device cpu --model my-model --dtype float32
    """
    with plain_errors():
        width, height = parse_size(size)
        parse_dtype(dtype)
        check_device(device)
        for option, values, known in (
            ("--allow", allow or (), LOSSES),
            ("--quantize", filter(None, [quantize]), KINDS),
        ):
            if wrong := [value for value in values if value not in known]:
                raise ValueError(f"{option} {wrong[0]!r} is unknown: choose one of {', '.join(known)}.")
        amounts = [parse_amount(amount) for amount in memory]
        if None in amounts:
            parse_device(device)  # whose free memory is asked for
        if host_memory is not None:
            parse_amount(host_memory)
        folder = None if model is None else sketch.path() if model == SKETCH else expanded("--model", model)
        if folder is not None and not folder.is_dir():
            raise ValueError(f"--model {model!r}: there is no such folder. Give a model's folder, or {SKETCH!r}.")
        from ..fitting import DoesNotFit, Model, free_memory, table
        from ..fitting import plan as make_plan

        subject = Model.full(dtype) if folder is None else Model.of_folder(folder, dtype)
        subject = subject.one_branch if one_branch else subject
        options: dict[str, Any] = dict(
            size=(width, height),
            caption_tokens=caption_tokens,
            pictures=pictures,
            steps=steps,
            device=device,
            allow=None if not allow else [] if allow == ["none"] else allow,
            quantize=quantize,
            host_memory=host_memory,
        )
        rows: list[tuple[int, Plan | DoesNotFit]] = []
        for amount in amounts:
            value = free_memory(device) if amount is None else amount
            try:
                rows.append((value, make_plan(subject, value, **options)))
            except DoesNotFit as refusal:
                rows.append((value, refusal))
        if len(rows) > 1:
            out.print(table(rows), markup=False)
            return
        found = rows[0][1]
        if isinstance(found, DoesNotFit):
            err.print(str(found.nearest), markup=False)
            fail(str(found), WRONG_INPUT)
        out.print(str(found), markup=False)
