"""A command that works long before it writes is refused at once where it cannot write, and loses no finished work."""

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from ideoflow.cli import app
from tools.sketch import __main__ as of_sketch

CAPTION = '{"compositional_deconstruction":{"background":"plain red","elements":[]}}'
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a file in it, where a folder would have to be."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")


class Worked(AssertionError):
    """The work was begun."""


def working(*arguments: object, **options: object) -> None:
    raise Worked


COMMANDS = {
    "generate --out": (["generate", CAPTION, "--out", "{}.png"], ["ideoflow.cli.draw.load"]),
    "generate --out, a folder": (["generate", CAPTION, "--out", "{}/"], ["ideoflow.cli.draw.load"]),
    "simulate --json": (
        ["simulate", "-j", "64x64:2", "--measure", "--json", "{}"],
        ["ideoflow.cli.simulate._measured", "ideoflow.cli.simulate._play"],
    ),
    "convert": (["convert", "sketch", "{}", "--to", "original"], ["ideoflow.checkpoints.convert.entries_of"]),
    "convert, a LoRA": (
        ["convert", "a.safetensors", "{}.safetensors", "--to", "diffusers-lora"],
        ["ideoflow.checkpoints.lora_convert.read_lora"],
    ),
    "train --out": (["train", "--data", "data", "--out", "{}"], ["ideoflow.training.run.prepare"]),
    "caption fix --out": (["caption", "fix", "c.json", "--out", "{}"], ["ideoflow.cli.caption._fix_file"]),
    "sketch train": (["train", "{}"], ["tools.sketch.recipe.Recipe.train"]),
    "sketch export": (["export", ".", "{}"], ["tools.sketch.export.export"]),
    "sketch score --out": (["score", "--out", "{}"], ["tools.sketch.score.score"]),
    "sketch score --sheet": (["score", "--sheet", "{}.png"], ["tools.sketch.score.score"]),
}


@pytest.mark.parametrize("place", ["file/x", "/proc/x"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    command: str, place: str, monkeypatch: pytest.MonkeyPatch
):
    Path("sketch.safetensors").touch()
    Path("a.safetensors").touch()
    Path("data").mkdir()
    arguments, works = COMMANDS[command]
    for work in works:
        module, _, name = work.rpartition(".")
        owner = importlib.import_module(module) if "Recipe" not in module else of_sketch_recipe()
        monkeypatch.setattr(owner, name, working)
    result = CliRunner().invoke(
        of_sketch.app if command.startswith("sketch") else app, [one.replace("{}", place) for one in arguments]
    )
    assert not isinstance(result.exception, Worked), "the work was begun"
    assert result.exit_code == 2, (result.output, result.exception)
    told = " ".join(result.output.split())
    assert place in told and ".partial" not in told and "Traceback" not in told
    assert sorted(path.name for path in Path().iterdir()) == ["a.safetensors", "data", "file", "sketch.safetensors"]


def of_sketch_recipe() -> type:
    from tools.sketch.recipe import Recipe

    return Recipe


BENCHMARKS = sorted(
    path.parent.name if path.stem == "__main__" else path.stem
    for path in (*(ROOT / "benchmarks").glob("*/__main__.py"), *(ROOT / "benchmarks").glob("[a-z]*.py"))
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmarks_figures_need_a_place_before_it_measures(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(sys, "argv", [name, "--out", "file/x.json"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 2
    assert "file/x.json" in capsys.readouterr().err


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of one colour in the place of the model's."""

    def colour(settings: object, pictures: list, *others: object) -> list[Image.Image]:
        return [Image.new("RGB", (picture.width, picture.height), "red") for picture in pictures]

    monkeypatch.setattr(importlib.import_module("ideoflow.cli.generate"), "draw", colour)


def broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writing into a folder fail, as if it had filled up since it was looked at."""
    from ideoflow import files

    in_place = files.in_place

    def full(destination: Path, *arguments: object, **options: object):
        if destination.absolute().parent == folder.absolute():
            raise OSError(28, "No space left on device", str(destination))
        return in_place(destination, *arguments, **options)

    monkeypatch.setattr(files, "in_place", full)


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_picture_that_cannot_be_written_to_its_place_is_kept_elsewhere(
    drawn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overwrite: tuple[str, ...]
):
    Path("full").mkdir()
    broken(Path("full"), monkeypatch)
    result = CliRunner().invoke(app, ["generate", CAPTION, "-n", "2", "--seed", "3", "--out", "full/a.png", *overwrite])
    assert result.exit_code == 1
    assert "--out full/a-0.png cannot be written (No space left on device): the picture is in" in result.stderr
    assert result.stdout.splitlines() == [str(tmp_path / "a-0.png"), str(tmp_path / "a-1.png")]
    for name in ("a-0.png", "a-1.png"):
        Image.open(name).load()


def test_where_nothing_can_be_written_the_users_path_is_named(drawn, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "full/.a.png.1-2.partial")

    Path("full").mkdir()
    monkeypatch.setattr(importlib.import_module("ideoflow.cli.generate"), "save_image", full)
    result = CliRunner().invoke(app, ["generate", CAPTION, "--seed", "3", "--out", "full/a.png"])
    assert result.exit_code == 1 and "full/a.png" in result.stderr and ".partial" not in result.stderr


def test_a_picture_with_more_settings_than_a_jpeg_holds_is_written_as_a_png(monkeypatch: pytest.MonkeyPatch):
    picture = Image.new("RGB", (16, 16), "red")
    picture.info["ideoflow"] = json.dumps({"caption": "a" * 70_000})
    monkeypatch.setattr(importlib.import_module("ideoflow.cli.generate"), "draw", lambda *_: [picture])
    result = CliRunner().invoke(app, ["generate", CAPTION, "--seed", "3", "--out", "a.jpg"])
    assert result.exit_code == 1 and "too long for a JPEG" in result.stderr
    assert result.stdout.splitlines() == ["a.png"] and "ideoflow" in Image.open("a.png").info


LIMITED = """
import resource, sys
from ideoflow import sketch
from ideoflow.cli import app
sketch.load()  # what loading writes for itself is no part of this
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
app(sys.argv[1:])
"""


def test_on_a_full_disk_the_command_ends_in_one_line_and_leaves_nothing_behind(tmp_path: Path, warm):
    """A real limit of the system's: room for what is tried beforehand, but not for a picture."""
    command = ["generate", CAPTION, "--size", "128x128", "--steps", "1", "--seed", "1", "--out", "x/a.png"]
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    done = subprocess.run([*warm, script, *command], capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip("the picture is smaller than the limit")
    assert done.returncode == 1, done.stderr
    assert "x/a.png" in done.stderr and "Traceback" not in done.stderr and ".partial" not in done.stderr
    assert not any(path.suffix in (".png", ".partial") for path in tmp_path.rglob("*"))


def test_captions_are_drawn_around_a_target_that_exists(drawn):
    Path("a.png").write_text("mine")
    result = CliRunner().invoke(app, ["generate", CAPTION, CAPTION, "--seed", "3", "--out", "{seed}.png"])
    assert result.stdout.split() == ["3.png", "3-1.png"]
    result = CliRunner().invoke(app, ["generate", CAPTION, "--seed", "3", "--out", "a.png"])
    assert result.stdout.split() == ["a-1.png"] and Path("a.png").read_text() == "mine"
