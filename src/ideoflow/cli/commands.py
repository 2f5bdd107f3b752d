"""Commands whose help is plain text, and which are built when they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from ..interrupts import interrupts_raise
from ..standard_streams import FAILED
from .console import fail, plain_errors, warn
from .other_options import instead

SETTINGS = {"help_option_names": ["-h", "--help"]}
LONGEST_NO = 12  # characters of the name that turns a switch off; with longer ones others are cut in 80 columns


class Command(TyperCommand):
    """Shows brackets in its help as they are, where Typer takes them for markup, and joins the lines of a paragraph."""

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:
        super().__init__(*args, help=_plain(help), **options)
        for parameter in self.params:
            parameter.help = _plain(getattr(parameter, "help", None))  # type: ignore[attr-defined]
            if parameter.metavar is None and getattr(parameter, "min", None) is not None:
                parameter.metavar = "N"  # beside which Typer writes the range

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        """Read the arguments; an option that another program has is told what it is here."""
        try:
            return super().parse_args(context, arguments)
        except Exception as error:  # Typer has no public name for the one that is meant
            option = getattr(error, "option_name", None) if type(error).__name__ == "NoSuchOption" else None
            known = [name for parameter in self.params for name in parameter.opts]
            told = option and instead(getattr(self.callback, "__name__", ""), option, known)
            if not told:
                raise
            fail(told)

    def invoke(self, context: Any) -> Any:
        """Run it; what a user can cause ends in one line, also where the command says nothing of errors."""
        with interrupts_raise(), plain_errors():
            return super().invoke(context)

    def format_help(self, context: Any, formatter: Any) -> None:
        """Leave out the longest names of turning a switch off, which `--no-` begins like all of them."""
        whole = [parameter.secondary_opts for parameter in self.params]
        for parameter in self.params:
            parameter.secondary_opts = [name for name in parameter.secondary_opts if len(name) <= LONGEST_NO]
        try:
            super().format_help(context, formatter)
        finally:
            for parameter, names in zip(self.params, whole, strict=True):
                parameter.secondary_opts = names


class Renamed(Command):
    """A command by its old name, which works for one version and says the new one, that of its function."""

    def invoke(self, context: Any) -> Any:
        """Run it, after a line about its name."""
        new = getattr(self.callback, "__name__", "")
        warn(f"`ideoflow {self.name}` is called `ideoflow {new}` now: the old name goes in the next version.")
        return super().invoke(context)


def _plain(text: str | None) -> str | None:
    if text is None:
        return None
    paragraphs = inspect.cleandoc(text).split("\n\n")
    joined = [one if one.startswith(" ") else " ".join(one.split()) for one in paragraphs]
    return escape("\n\n".join(joined))


class Commands(TyperGroup):
    """Has `train` and `serve` built when they are called: their options come from models that take long to import."""

    def resolve_command(self, context: Any, arguments: list[str]) -> tuple[Any, Any, list[str]]:
        """The command that the arguments name, whole."""
        name, command, rest = super().resolve_command(context, arguments)
        function: Callable[..., None] | None = None
        if name == "train":
            from .train import command as train

            function = train()
        elif name == "serve":
            try:
                from .serve import serve
            except ImportError as error:  # which says what to install
                fail(str(error), FAILED)
            function = serve
        if function is not None:
            alone = typer.Typer(add_completion=False, context_settings=SETTINGS)
            alone.command(name, cls=Command)(function)
            command = typer.main.get_command(alone)
        return name, command, rest
