"""Options that users of other programs type: each is told what there is here instead, before anything is imported."""

from __future__ import annotations

import functools
import re

import pytest
import typer
from typer.testing import CliRunner

from ideoflow.cli import app
from ideoflow.cli.other_options import INSTEAD

PATHS = {
    **{name: ("caption", name) for name in ("check", "fix", "lint", "describe")},
    "write_caption": ("caption", "write"),
    "edit_caption": ("caption", "edit"),
}
CASES = [(command, answer, name) for command, table in INSTEAD.items() for answer, names in table.items()
         for name in names.split()]  # fmt: skip


def run(command: str, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*PATHS.get(command, (command,)), *arguments])
    assert done.exit_code == 2, done.output
    return done.output


@functools.cache
def options_of(command: str) -> set[str]:
    built = typer.main.get_command(app)
    rest = list(PATHS.get(command, (command,)))
    while rest:
        _, built, rest = built.resolve_command(typer.Context(built), rest)  # type: ignore[attr-defined]
    return {name for parameter in built.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize(("command", "option", "says"), [
    ("generate", "--width", "give --size WIDTHxHEIGHT, such as --size 1024x768."),
    ("generate", "--height", "give --size"),
    ("generate", "-W", "give --size"),
    ("generate", "--negative-prompt", "the unconditional branch reads no text"),
    ("generate", "--num-inference-steps", "give --steps."),
    ("generate", "--prompt", "ideoflow generate caption.json"),
    ("generate", "--guidance-scale", "give --guidance."),
    ("generate", "--cfg", "give --guidance."),
    ("generate", "--sampler", "the steps are always Euler steps"),
    ("generate", "--output", "give --out."),
    ("generate", "--batch-size", "give --n, the pictures of each caption."),
    ("generate", "--model-path", "give --model."),
    ("train", "--learning-rate", "give --lr."),
    ("train", "--batch-size", "give --tokens"),
    ("train", "--resolution", "give --pixels"),
    ("train", "--network-dim", "give --rank."),
    ("train", "--output", "give --out."),
    ("train", "--negative-prompt", "the unconditional branch reads no text"),
    ("convert", "--output", "ideoflow convert SRC DST --to FORM"),
    ("inspect", "--model", "ideoflow inspect PATH"),
    ("plan", "--vram", "give --memory."),
    ("simulate", "--num-gpus", "give --gpus."),
    ("check", "--prompt", "ideoflow caption check FILE"),
    ("fix", "--output", "give --out."),
])  # fmt: skip
def test_an_option_of_another_program_is_told_what_there_is_here(command, option, says):
    (line,) = run(command, "x", option, "1").splitlines()
    assert line.startswith(f"error: there is no option {option}: ") and says in line


def test_underlines_and_values_behind_an_equals_sign_make_no_difference():
    assert "there is no option --num_inference_steps: give --steps." in run("generate", "x", "--num_inference_steps=3")
    told = run("generate", "x", "--max_sequence_length", "9")
    assert "there is no option --max_sequence_length: give --max-sequence-length." in told


@pytest.mark.parametrize(("command", "typo", "meant"), [
    ("generate", "--sede", "--seed"), ("train", "--rnak", "--rank"), ("plan", "--memroy", "--memory"),
])  # fmt: skip
def test_a_typo_is_told_the_options_that_are_near(command, typo, meant):
    told = run(command, typo, "1")
    assert "No such option" in told and meant in told


def test_what_an_option_is_given_is_not_taken_for_an_option():
    assert "--prompt" not in run("generate", "--size", "9x9", "--", "--prompt")


@pytest.mark.parametrize(("command", "answer", "name"), CASES, ids=[f"{one} {name}" for one, _, name in CASES])
def test_the_table_names_only_options_that_the_command_has(command, answer, name):
    has = options_of(command)
    assert has.isdisjoint({f"--{name}", f"-{name}"})
    assert set(re.findall(r"--[a-z-]+", answer)) <= has
    assert sum(name in names.split() for names in INSTEAD[command].values()) == 1
