"""`ideoflow caption`: list where caption files leave the schema, and mend what can be mended for certain."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..files import write_text
from .console import FAILED, WRONG_INPUT, err, out, plain_errors

if TYPE_CHECKING:
    from ..captions import Caption

app = typer.Typer(help="Check and mend caption files.", no_args_is_help=True)


@app.command()
def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help=".json, .txt or .jsonl files; '-' for standard input.")
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
        err.print(f"[bold red]error:[/] {escape(file)}: {escape(error.strerror or str(error))}")
        return WRONG_INPUT
    except UnicodeDecodeError:
        err.print(f"[bold red]error:[/] {escape(file)}: not UTF-8 text")
        return WRONG_INPUT
    worst = 0
    for where, text in texts:
        try:
            breaches = _parse(where, text).check()
        except CaptionError as error:
            err.print(f"[bold red]error:[/] {escape(str(error))}")
            worst = max(worst, WRONG_INPUT)
            continue
        if not breaches:
            out.print(f"[green]ok[/] {escape(where)}")
            continue
        worst = max(worst, FAILED)
        out.print(f"[yellow]{len(breaches)} to mend[/] {escape(where)}")
        for breach in breaches:
            out.print(escape(f"  {'[*]' if breach.certain else '   '} {breach}"))
    return worst


@app.command()
def fix(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .json, .txt or .jsonl file; '-' for standard input.")],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write; standard output if left out.")
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", "-i", help="Write back to FILE.")] = False,
) -> None:
    """Write captions as canonical lines with all certain breaches mended, and say what was changed and what is left.

    Ends with 0 if nothing is left to mend, 1 if something is, 2 if the file cannot be read.

    Example:

      ideoflow caption fix my_caption.json --in-place
    """
    if in_place and (output or file == "-"):
        raise typer.BadParameter("--in-place writes back to a file: leave out --out, and name a file.")
    lines: list[str] = []
    mended: list[str] = []
    left: list[str] = []
    with plain_errors():
        try:
            texts = list(_captions(file))
        except UnicodeDecodeError:
            raise ValueError(f"{file} is not UTF-8 text.") from None
        for where, text in texts:
            caption = _parse(where, text)
            repaired = caption.repair()
            mended += [f"{where}: {breach}" for breach in caption.check() if breach.certain]
            left += [f"{where}: {breach}" for breach in repaired.check()]
            lines.append(repaired.line() + "\n")
        target = Path(file) if in_place else output
        if target is None:
            sys.stdout.flush()
            sys.stdout.buffer.write("".join(lines).encode())  # UTF-8 like every caption file, whatever the terminal's
            sys.stdout.flush()
        else:
            write_text(target, "".join(lines))
    for breach in mended:
        err.print(f"[green]mended[/] {escape(breach)}")
    for breach in left:
        err.print(f"[yellow]left[/] {escape(breach)}")
    raise typer.Exit(FAILED if left else 0)


def _parse(where: str, text: str) -> Caption:
    """The caption in `text`, or a CaptionError that says where it stands."""
    from ..captions import Caption, CaptionError

    if not text.lstrip("\ufeff \t\r\n").startswith("{"):
        raise CaptionError(f"{where}: no JSON object: a caption starts with '{{'.")
    try:
        return Caption.parse(text)
    except CaptionError as error:
        raise CaptionError(f"{where}: {error}") from None


def _captions(file: str) -> Iterator[tuple[str, str]]:
    """Each caption's text in a file, and where it stands for messages."""
    name = "standard input" if file == "-" else file
    text = (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()).decode("utf-8-sig")
    text = text.replace("\r\n", "\n")
    if not file.endswith(".jsonl"):
        yield name, text
        return
    # Not splitlines: a caption's text may hold other line ends, such as U+2028, which JSON leaves unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}:{number}", line
