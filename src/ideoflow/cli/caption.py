"""`ideoflow caption`: where caption files leave the schema, what else to mind, and mending what is certain."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..files import write_text
from ..pictures import FORMATS
from .commands import Command
from .console import FAILED, WRONG_INPUT, err, out, plain_errors, shown, write
from .writing import check_output, describe, edit_caption, of_picture, write_caption

if TYPE_CHECKING:
    from ..captions import Caption

app = typer.Typer(help="Write, describe, change, check and mend captions.", no_args_is_help=True)
app.command("write", cls=Command)(write_caption)
app.command(cls=Command)(describe)
app.command("edit", cls=Command)(edit_caption)


@app.command(cls=Command)
def check(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help=".json, .txt or .jsonl files, pictures made by ideoflow; '-' for standard input."
        ),
    ],
) -> None:
    """List every place where captions leave the schema, with the fix; [*] marks what `fix` mends by itself.

    Ends with 0 if all is right, 1 if anything is not, 2 if a file cannot be read.

    Example:

      ideoflow caption check my_caption.json
    """
    worst = 0
    for file in files:
        worst = max(worst, _check_file(file))
    raise typer.Exit(worst)


def _check_file(file: str) -> int:
    from ..captions import CaptionError

    try:
        texts = list(_captions(file))
    except OSError as error:
        return _unreadable(f"{file}: {error.strerror or error}")
    except ValueError as error:
        return _unreadable(str(error))
    worst = 0
    for where, text in texts:
        try:
            breaches = _parse(where, text).check()
        except CaptionError as error:
            worst = max(worst, _unreadable(str(error)))
            continue
        if not breaches:
            out.print(f"[green]ok[/] {shown(where)}")
            continue
        worst = max(worst, FAILED)
        out.print(f"[yellow]{len(breaches)} to mend[/] {shown(where)}")
        for breach in breaches:
            out.print(shown(f"  {'[*]' if breach.certain else '   '} {breach}"))
    return worst


@app.command(cls=Command)
def lint(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help=".json, .txt or .jsonl files, pictures made by ideoflow; '-' for standard input."
        ),
    ],
) -> None:
    """Say what the model may answer with a grey picture or leave out, a line each with the fix.

    Beside what `check` lists: letters that have no room, boxes that may have x first, plain text where a caption
    belongs. Ends with 0 if there is nothing to say, 1 if there is, 2 if a file cannot be read.

    Example:

      ideoflow caption lint my_caption.json
    """
    worst = 0
    for file in files:
        worst = max(worst, _lint_file(file))
    raise typer.Exit(worst)


def _lint_file(file: str) -> int:
    from ..captions import Caption, CaptionError
    from ..captions.lint import lint, lint_words
    from ..captions.reading import find

    worst = 0
    try:
        for where, text in _captions(file):
            found = find(text, where)
            if found is None and not text.strip():
                raise CaptionError(f"{where} is empty, not a JSON caption.")
            advice = lint(Caption.of_found(found)) if found else [lint_words(text)]
            for line in advice:
                out.print(shown(f"{where}: {line}"))
            if not advice:
                out.print(f"[green]ok[/] {shown(where)}")
            worst = max(worst, FAILED if advice else 0)
    except OSError as error:
        return _unreadable(f"{file}: {error.strerror or error}")
    except ValueError as error:
        return _unreadable(str(error))
    return worst


@app.command(cls=Command)
def fix(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help=".json, .txt or .jsonl files, pictures made by ideoflow; '-' for standard input."
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE|FOLDER",
            help="Where to write; a folder for several files. Standard output if left out.",
        ),
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", "-i", help="Write back to the files themselves.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let --out replace existing files.")] = False,
    drop_unknown: Annotated[
        bool, typer.Option("--drop-unknown", help="Leave out all keys that are not the schema's.")
    ] = False,
    boxes: Annotated[
        str | None,
        typer.Option(
            metavar="ORDER",
            help="What the boxes are where they are not the schema's: xyxy, xywh or yxhw (a corner, then the size), "
            "or cxcywh (the centre, then the size).",
        ),
    ] = None,
    box_size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="What the boxes count to: the picture's pixels, such as 2048x1536; 1x1 for shares of it.",
        ),
    ] = None,
) -> None:
    """Write captions as canonical lines with all certain breaches mended, and say what was changed and what is left.

    Ends with 0 if nothing is left to mend, 1 if something is, 2 if a file cannot be read.

    Examples:

      ideoflow caption fix my_caption.json --in-place

      ideoflow caption fix *.json --out mended/

      ideoflow caption fix detected.json --boxes xyxy --box-size 2048x1536
    """
    if in_place and (output or "-" in files):
        raise typer.BadParameter("--in-place writes back to a file: leave out --out, and name files.")
    if overwrite and not output and not in_place:
        raise typer.BadParameter("--overwrite lets --out replace files, and there is no --out.")
    if in_place and (pictures := [file for file in files if Path(file).suffix.lower() in FORMATS]):
        raise typer.BadParameter(f"--in-place would write a caption over the picture {pictures[0]}: give --out.")
    place = None if output is None else Path(output)
    folder = place is not None and (len(files) > 1 or place.is_dir() or str(output).endswith(("/", os.sep)))
    worst = 0
    with plain_errors():
        form = _box_form(boxes, box_size)
        for file in files:
            name = "caption.json" if file == "-" else Path(file).name
            if Path(file).suffix.lower() in FORMATS:
                name = f"{Path(file).stem}.json"
            target = Path(file) if in_place else place / name if place and folder else place
            if target is not None and not in_place:
                check_output(target, overwrite)
            worst = max(worst, _fix_file(file, target, drop_unknown, form))
    raise typer.Exit(worst)


def _box_form(order: str | None, size: str | None) -> tuple[str, tuple[float, float] | None] | None:
    """The order and the size that boxes are to be converted from; None if they are the schema's."""
    from ..captions.boxes import ORDERS

    if order is None and size is None:
        return None
    if order is not None and order not in ORDERS:
        raise ValueError(f"--boxes {order!r} is unknown: choose one of {', '.join(ORDERS)}.")
    counted = re.fullmatch(r"([0-9]+)[xX]([0-9]+)", size or "1000x1000")
    if counted is None or 0 in (int(counted[1]), int(counted[2])):
        raise ValueError(f"--box-size {size!r} is not WIDTHxHEIGHT, such as 2048x1536.")
    return order or "yxyx", (int(counted[1]), int(counted[2]))


def _fix_file(
    file: str, target: Path | None, drop_unknown: bool, form: tuple[str, tuple[float, float] | None] | None
) -> int:
    """Mend the captions of a file, or none of them where one cannot be read; the exit code."""

    lines: list[str] = []
    mended: list[str] = []
    left: list[str] = []
    try:
        for where, text in _captions(file):
            caption = _parse(where, text)
            if form:
                caption = caption.with_boxes_from(*form)
            repaired, done = caption.mended(drop_unknown=drop_unknown)
            mended += [f"{where}: {breach.mended}" for breach in done]
            left += [f"{where}: {breach}" for breach in repaired.check()]
            lines.append(repaired.line() + "\n")
    except OSError as error:
        return _unreadable(f"{file}: {error.strerror or error}")
    except ValueError as error:
        return _unreadable(str(error))
    if target is None:
        write("".join(lines))
    else:
        write_text(target, "".join(lines))
    for breach in mended:
        err.print(f"[green]mended[/] {shown(breach)}")
    for breach in left:
        err.print(f"[yellow]left[/] {shown(breach)}")
    return FAILED if left else 0


def _unreadable(message: str) -> int:
    err.print(f"[bold red]error:[/] {shown(message)}")
    return WRONG_INPUT


def _parse(where: str, text: str) -> Caption:
    """The caption in `text`, or a CaptionError that says where it stands."""
    from ..captions import Caption, CaptionError
    from ..captions.reading import find

    if found := find(text, where):
        return Caption.of_found(found)
    shown = f"the plain text {text.strip()[:40]!r}" if text.strip() else "empty"
    raise CaptionError(f"{where} is {shown}, not a JSON caption.")


def _captions(file: str) -> Iterator[tuple[str, str]]:
    """Each caption's text in a file, and where it stands for messages.

    Raises:
        CaptionError: if it is no UTF-8 text.
        OSError: if it cannot be read.
    """
    from ..captions.reading import decode, read_file

    name = "standard input" if file == "-" else file
    if (caption := of_picture(file)) is not None:
        yield name, caption
        return
    text = decode(sys.stdin.buffer.read(), name) if file == "-" else read_file(Path(file))
    if not file.endswith(".jsonl"):
        yield name, text
        return
    # Not splitlines: a caption's text may hold other line ends, such as U+2028, which JSON leaves unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}:{number}", line
