"""`ideoflow convert` and `ideoflow inspect`: checkpoints into other forms, and what one holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bundled import SKETCH
from ..checks import printable
from ..dtypes import COMPUTED, of_name
from ..files import check_place
from .console import err, out, plain_errors, plain_warnings, starting
from .values import expanded, parse_dtype

LORA_FORMS = ("comfy-lora", "diffusers-lora")


FORMS = ("diffusers", "original", "fp8", *LORA_FORMS)


def _form(value: str) -> str:
    """A form that can be written; an old word for one is told its new one."""
    from ..checkpoints.names import RENAMED

    if value in RENAMED:
        err.print(f"note: --to {value} is called --to {RENAMED[value]} now", markup=False)
    form = RENAMED.get(value, value)
    if form not in FORMS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(map(repr, FORMS))}.")
    return form


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="Pipeline folder, transformer or LoRA adapter in any form; or 'sketch'."),
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="A new folder, or a .safetensors file for one model.")
    ],
    to: Annotated[
        str,
        typer.Option(
            parser=_form,
            metavar=f"[{'|'.join(FORMS)}]",
            help="diffusers: its names. original: q, k and v as one. fp8: linear layers in 8 bits, a scale for each "
            "row, under the source's names. comfy-lora, diffusers-lora: LoRA adapters.",
        ),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(COMPUTED)}: of weights that are not in fp8.", show_default="as they are"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it exists.")] = False,
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Leave out what is no LoRA adapter of this model, and say so.")
    ] = False,
    variant: Annotated[str | None, typer.Option(help="Of a folder's files, such as fp16.", show_default="none")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="config.json of a file that has none.", show_default="beside SRC, or told from the shapes"),
    ] = None,
) -> None:
    """Write a checkpoint in another form.

    One weight at a time is in memory. What is written is read back and compared, and gets its name at the end: DST is
    there whole or not at all. Of a pipeline's folder both transformers are converted and everything else is copied.

    Examples:

      ideoflow convert sketch my-model --to original

      ideoflow convert fp8.safetensors wide --to diffusers --dtype bfloat16
    """
    with plain_errors():
        path = _path(source)
        if not path.exists():
            raise ValueError(f"{path}: there is no such file or folder.")
        if dtype is not None:
            parse_dtype(dtype)
        check_place(destination.expanduser(), "DST")
        if destination.exists() and not overwrite:
            raise ValueError(f"{destination} exists: name another, or give --overwrite to replace it.")
        with starting("importing torch and diffusers"):
            from ..checkpoints.convert import convert as convert_model
            from ..checkpoints.convert import lossy, open_checkpoint
        if to in LORA_FORMS:
            from ..checkpoints.lora_convert import convert_lora

            with plain_warnings():
                convert_lora(path, destination, to, overwrite=overwrite, ignore_unknown=ignore_unknown)
        else:
            wanted = of_name(dtype) if dtype else None
            form: Any = to
            convert_model(path, destination, form, overwrite=overwrite, dtype=wanted, variant=variant, config=config)
            for note in lossy(open_checkpoint(path, variant=variant, config=config), form, wanted):
                err.print(f"note: {printable(note)}", markup=False)
        out.print(printable(destination), markup=False)


def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="File, index or folder; 'sketch' for the bundled model.")],
    variant: Annotated[str | None, typer.Option(help="Of a folder's files, such as fp16.", show_default="none")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="config.json of a file that has none.", show_default="beside PATH, or told from the shapes"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All that is known, for programs; bytes throughout.")] = False,
) -> None:
    """Say what a file or folder holds, reading headers alone.

    Of a model: form, configuration, parameters, types, bytes, and the memory that the weights need in each mode. Of an
    adapter: its kind, ranks and strength. Of a picture: the settings that it was drawn with.

    Examples:

      ideoflow inspect sketch

      ideoflow inspect model.safetensors --json

      ideoflow inspect heart.png
    """
    with plain_errors():
        from ..checkpoints.inspect import inspect as look

        found = look(_path(path), variant=variant, config=config)
    if as_json:
        out.print(json.dumps(found, indent=2), markup=False)
        return
    for line in _lines(found):
        out.print(printable(line), markup=False)


def _path(value: str) -> Path:
    from .. import sketch

    return sketch.path() if value == SKETCH and not Path(value).exists() else expanded("PATH", value)


def _lines(found: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A description as text, one fact a line."""
    for key, value in found.items():
        name = key.replace("_", " ")
        if value in ("", {}, [], None):
            continue
        if key == "parameters":
            yield f"{indent}{name}: {value / 1e6:,.1f} M"
        elif key == "bytes":
            yield f"{indent}{name}: {_megabytes(value)}"
        elif key in ("memory", "left_in_file", "parts"):
            label = {"memory": "memory for weights", "left_in_file": "of which stays in the file"}.get(key, name)
            yield f"{indent}{label}: " + ", ".join(f"{mode} {_megabytes(size)}" for mode, size in value.items())
        elif key == "components" or (isinstance(value, Mapping) and "bytes" in value):
            children = value.items() if key == "components" else ((key, value),)
            for child, inner in children:
                yield f"{indent}{child}:"
                yield from _lines(inner, indent + "  ")
        elif isinstance(value, Mapping):
            yield f"{indent}{name}: " + ", ".join(f"{one} {other}" for one, other in value.items())
        elif key == "loras":
            yield f"{indent}{name}: " + ", ".join(f"{one['path']} at {one['scale']:g}" for one in value)
        elif isinstance(value, list):
            yield f"{indent}{name}: {', '.join(Path(one).name for one in value)}"
        else:
            yield f"{indent}{name}: {value}"


def _megabytes(size: int) -> str:
    return (
        f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
    )
