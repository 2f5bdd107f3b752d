"""`ideoflow plan` and `ideoflow generate --memory`: plans printed, and carried out."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ideoflow import sketch
from ideoflow.cli import app
from ideoflow.fitting import Model, plan

LINE = '{"compositional_deconstruction":{"background":"plain red","elements":[{"type":"obj","desc":"a dot"}]}}'


def invoke(*arguments: str, fails: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == fails, result.output
    assert "Traceback" not in result.output
    return result


def test_a_plan_is_printed_as_python_prints_it():
    assert invoke("plan", "--memory", "12GB").stdout.strip() == str(plan(None, "12GB"))


def test_the_options_reach_the_plan():
    options = ["--size", "512x768", "--pictures", "3", "--caption-tokens", "99", "--steps", "12", "--quantize", "int8"]
    printed = invoke("plan", "--memory", "24GiB", *options, "--host-memory", "40GB").stdout.strip()
    expected = plan(None, "24GiB", (512, 768), 99, 3, steps=12, quantize="int8", host_memory="40GB")
    assert printed == str(expected)


def test_a_model_of_one_branch_is_planned_without_the_other():
    one, both = (invoke("plan", "--memory", "80GB", *more).stdout for more in (["--one-branch"], []))
    assert one.strip() == str(plan(Model.full().one_branch, "80GB"))
    assert "unconditional_transformer" in both and "unconditional_transformer" not in one and "one branch" in one


@pytest.mark.parametrize("steps", ["0", "1001", "1000000000"])
@pytest.mark.parametrize("command", ["plan", "fit"])
def test_steps_that_no_call_takes_are_refused(command, steps):
    told = invoke(command, "--memory", "12GB", "--steps", steps, fails=2).output
    assert "--steps" in told and ("equal to 1000" in told or "equal to 1 " in told)


def test_the_most_steps_of_a_call_are_planned():
    assert "1000 steps" in " ".join(invoke("plan", "--memory", "12GB", "--steps", "1000").output.split())


def test_several_amounts_make_a_table_and_one_that_does_not_fit_stays_in_it():
    lines = invoke("plan", "--memory", "1GB", "--memory", "8GB", "--memory", "80GB").stdout.strip().splitlines()
    assert len(lines) == 5 and "does not fit: needs" in lines[2]
    assert "streamed" in lines[3] and "stays" in lines[4]
    assert len({len(line) for line in lines}) == 1


def test_a_folder_and_a_type_are_planned_for():
    printed = invoke(
        "plan",
        "--memory",
        "2GB",
        "--device",
        "cpu",
        "--model",
        str(sketch.path()),
        "--dtype",
        "float32",
        "--size",
        "128x96",
    ).stdout.strip()
    assert printed == str(plan(Model.of_folder(sketch.path(), "float32"), "2GB", (128, 96), device="cpu"))


def test_no_loss_at_all_can_be_asked_for():
    refused = invoke("plan", "--memory", "3GB", "--allow", "none", fails=2)
    assert "do not fit" in refused.stderr and "are missing" in refused.stderr
    assert "lossy" not in refused.stderr
    allowed = ["--allow", "tiled", "--allow", "int8"]
    assert "tiles of" in invoke("plan", "--memory", "6GB", *allowed, "--size", "1536x1536").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "12"], "name a unit"),
        (["--memory", "much"], "12GB"),
        (["--memory", "12GB", "--size", "big"], "--size"),
        (["--memory", "12GB", "--dtype", "int8"], "--dtype"),
        (["--memory", "12GB", "--model", "nowhere"], "there is no such folder"),
        (["--memory", "12GB", "--quantize", "int2"], "--quantize 'int2' is unknown"),
        (["--memory", "12GB", "--allow", "all"], "--allow 'all' is unknown"),
    ],
)
def test_mistakes_are_named(arguments, message):
    assert message in " ".join(invoke("plan", *arguments, fails=2).stderr.split())


def test_help_teaches():
    printed = " ".join(invoke("plan", "--help").stdout.split())
    assert "ideoflow plan --memory 12GB" in printed and "--host-memory" in printed


def test_the_command_by_its_old_name_works_and_says_the_new_one():
    options = ("--memory", "12GB", "--size", "512x512")
    old, new = invoke("fit", *options), invoke("plan", *options)
    assert old.stdout == new.stdout and new.stderr == ""
    assert old.stderr.startswith("warning: `ideoflow fit` is called `ideoflow plan` now")
    assert " fit " not in invoke("--help").stdout and " plan " in invoke("--help").stdout


def test_auto_is_what_is_free_here():
    printed = invoke(
        "plan", "--memory", "auto", "--device", "cpu", "--model", str(sketch.path()), "--size", "64x64"
    ).stdout
    assert re.search(r"in \d+\.\d\d GB on cpu", printed)


# Drawing


@pytest.fixture
def generate(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, fails: int = 0) -> Result:
        options = ["--model", str(tiny_folder), "--size", "48x32", "--steps", "2", "--seed", "5", "--device", "cpu"]
        return invoke("generate", LINE, *options, *arguments, fails=fails)

    return run


def settings(path: str) -> dict:
    with Image.open(path) as image:
        image.load()
        return json.loads(image.text["ideoflow"])


def test_a_picture_that_fits_is_the_same_as_without(generate):
    generate("--out", "a.png")
    result = generate("--memory", "4GB", "--verbose", "--out", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert "Plan for this pipeline in 4.00 GB on cpu: 1 picture of 48 x 32 pixels" in result.stderr
    assert result.stdout.strip() == "b.png"
    assert "Plan for" not in generate("--memory", "auto", "--out", "c.png").stderr


def test_what_was_rounded_to_fit_is_warned_about_and_kept_in_the_file(generate):
    result = generate("--memory", "4GB", "--quantize", "int8", "--out", "a.png")
    assert "to fit into 4GB: the blocks' linear layers in int8" in " ".join(result.stderr.split())
    assert settings("a.png")["quantize"] == "int8"
    invoke("generate", "a.png", "--trust-settings", "--out", "again.png")
    with Image.open("a.png") as one, Image.open("again.png") as other:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_too_little_memory_ends_in_one_line(generate):
    assert "The nearest plan needs" in generate("--memory", "100MB", fails=2).stderr


def test_the_bundled_model_is_planned_by_its_name():
    assert "Plan for" in invoke("plan", "--memory", "2GB", "--model", "sketch", "--size", "128x96").stdout
