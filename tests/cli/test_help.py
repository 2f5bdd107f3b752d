"""Help as it is read: in 80 columns nothing is cut, brackets stay, and an example is one line."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from ideoflow.cli import app, train
from ideoflow.cli.train import HELP

COMMANDS = [
    (),
    *((name,) for name in ("generate", "batch", "serve", "simulate", "plan", "train", "convert", "inspect", "caption")),
    ("caption", "check"),
    ("caption", "fix"),
]


def help_of(*command: str, columns: int = 80) -> str:
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": str(columns), "TERMINAL_WIDTH": ""})
    assert shown.exit_code == 0, shown.output
    return shown.output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_is_cut_and_every_example_is_a_line(command):
    text = help_of(*command)
    assert "…" not in text
    examples = [line for line in text.splitlines() if line.lstrip().startswith("ideoflow ")]
    texts = [line.strip() for line in help_of(*command, columns=300).splitlines()]
    assert all(line.strip() in texts for line in examples)


@pytest.mark.parametrize("command", COMMANDS[1:], ids=" ".join)
def test_brackets_are_shown(command):
    """Every word in brackets of a help text is there, where Typer would take it for a style."""
    built = typer.main.get_command(app)
    context = typer.Context(built)
    rest = list(command)
    while rest:
        _, built, rest = built.resolve_command(context, rest)  # type: ignore[attr-defined]
    shown = " ".join(help_of(*command, columns=200).replace("│", " ").split())
    for parameter in built.params:
        told = (getattr(parameter, "help", None) or "").replace("\\[", "[")
        for word in told.split():
            assert word.startswith("`") or "[" not in word or word in shown, word


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("simulate", '[{"segments": [lengths], "seconds": s}, ...]'),
        ("train", "[constant_with_warmup]"),
        ("train", "[FILE.toml | init]"),
        ("generate", "PATH[:SCALE]"),
    ],
)
def test_what_was_swallowed_is_there(command, text):
    assert text in " ".join(help_of(command, columns=220).replace("│", " ").split())


def test_the_list_of_commands_says_of_train_what_its_help_says():
    assert HELP.startswith(train.__doc__ or "nothing")
