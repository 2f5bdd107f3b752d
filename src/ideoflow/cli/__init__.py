"""The command line `ideoflow`: thin commands over the library; nothing heavy is imported before a command needs it."""

from __future__ import annotations

from typing import Annotated

import typer

from .._version import __version__
from . import caption
from .batch import batch
from .checkpoints import convert, inspect
from .commands import SETTINGS, Command, Commands, Renamed
from .console import out
from .edit import edit
from .generate import generate
from .plan import plan
from .simulate import simulate
from .upscale import upscale

app = typer.Typer(
    help="Ideogram 4 as a packed-sequence engine: pictures from captions.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)
app.command(cls=Command)(generate)
app.command(cls=Command)(edit)
app.command(cls=Command)(upscale)
app.command(cls=Command)(batch)


@app.command()
def serve() -> None:
    """Serve pictures over HTTP, and the studio page to lay them out with boxes."""


app.command(cls=Command)(simulate)
app.command(cls=Command)(plan)
app.command("fit", cls=Renamed, hidden=True)(plan)


@app.command()
def train() -> None:
    """Fine-tune on a folder of pictures with captions: a LoRA by default, all weights with --method full."""


app.add_typer(caption.app, name="caption")
app.command(cls=Command)(convert)
app.command(cls=Command)(inspect)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"ideoflow {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Ideogram 4 as a packed-sequence engine: pictures from captions."""
