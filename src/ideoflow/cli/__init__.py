"""The command line `ideoflow`: thin commands over the library; nothing heavy is imported before a command needs it."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import caption
from . import train as train_command
from .checkpoints import convert, inspect
from .fit import fit
from .generate import generate
from .simulate import simulate

app = typer.Typer(
    help="Ideogram 4 as a packed-sequence engine: pictures from captions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(simulate)
app.command()(fit)
app.command("train")(train_command.command())
app.add_typer(caption.app, name="caption")
app.command()(convert)
app.command()(inspect)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ideoflow {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Ideogram 4 as a packed-sequence engine: pictures from captions."""
