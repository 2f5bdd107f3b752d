"""`ideoflow upscale`: a picture enlarged with the caption that it brings along, in tiles that a folder keeps."""

import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ideoflow.cli import app
from ideoflow.pictures import read_settings
from tests.cli.test_edit import BEFORE, drawn, edited, empty_folder, foreign, pixels  # noqa: F401 the fixtures that both use


def upscale(*arguments: str | Path, fails: int = 0) -> Result:
    options = ["--steps", "3", "--out", "large.png", "--overwrite"]
    result = CliRunner().invoke(app, ["upscale", *map(str, arguments), *options])
    assert result.exit_code == fails, result.output
    assert "Traceback" not in result.output
    return result


def test_a_picture_is_enlarged_by_the_caption_that_it_brings_along(drawn):  # noqa: F811
    result = upscale(drawn, "--factor", "1.5", "--strength", "0.3", "--seed", "2")
    settings = read_settings("large.png")

    assert result.stdout.strip().endswith("large.png") and pixels("large.png").shape == (144, 144, 3)
    assert settings["edit"]["kind"] == "upscale" and settings["edit"]["factor"] == 1.5
    assert settings["caption"] == BEFORE.replace(", ", ",").replace(": ", ":") and settings["seed"] == 2


def test_an_enlarged_picture_is_not_taken_for_a_fresh_one(drawn):  # noqa: F811
    upscale(drawn, "--factor", "1.5", "--strength", "0", "--seed", "2")
    for command in (["generate", "large.png"], ["edit", str(drawn), "--again", "large.png"]):
        result = CliRunner().invoke(app, command)
        told = " ".join(result.output.split())
        assert result.exit_code == 2 and "make it again with `ideoflow upscale PICTURE --again large.png`" in told


@pytest.fixture(scope="module")
def large(drawn, tmp_path_factory) -> Path:  # noqa: F811
    """That picture enlarged, with nothing of it as the options are if left out."""
    path = tmp_path_factory.mktemp("large") / "large.png"
    own = ["--factor", "1.5", "--tile", "96", "--overlap", "0.1", "--strength", "0.4", "--seed", "2"]
    result = CliRunner().invoke(app, ["upscale", str(drawn), *own, "--steps", "5", "--out", str(path)])
    assert result.exit_code == 0, result.output
    return path


def again(picture: Path, enlarged: Path, *options: str, fails: int = 0) -> str:
    result = CliRunner().invoke(app, ["upscale", str(picture), "--again", str(enlarged), "--out", "b.png", *options])
    assert result.exit_code == fails and "Traceback" not in result.output, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("options", [[], ["--keep", "tiles", "--seed", "2", "--steps", "5"]])
def test_an_enlarged_picture_is_made_again_from_its_file(drawn, large, options):  # noqa: F811
    again(drawn, large, *options)

    assert (pixels("b.png") == pixels(large)).all() and read_settings("b.png") == read_settings(large)
    assert not options or len(list(Path("tiles").iterdir())) == 4


@pytest.mark.parametrize(
    "option",
    [
        ["--factor", "2"], ["--strength", "0.5"], ["--tile", "64"], ["--overlap", "0.2"], ["--caption", BEFORE],
        ["--seed", "3"], ["--steps", "6"], ["--guidance", "3"], ["--preset", "turbo"], ["--cache", "interval=2"],
        ["--quantize", "int8"],
    ],
    ids=lambda option: option[0],
)  # fmt: skip
def test_options_that_would_enlarge_otherwise_are_refused_beside_again(drawn, large, option):  # noqa: F811
    assert f"{option[0]} would make another picture" in again(drawn, large, *option, fails=2)


def test_another_picture_and_what_was_not_enlarged_are_refused_beside_again(drawn, large, edited):  # noqa: F811
    Image.new("RGB", (96, 96)).save("other.png")

    assert "is not the one that was changed then" in again(Path("other.png"), large, fails=2)
    assert "is an edit: make it again with `ideoflow edit PICTURE --again" in again(drawn, edited, fails=2)
    assert "was not made of another picture: make it again with `ideoflow generate" in again(drawn, drawn, fails=2)


def test_tiles_that_are_kept_are_not_drawn_again(drawn, monkeypatch):  # noqa: F811
    from ideoflow.engine import Denoiser

    call = [drawn, "--factor", "1.5", "--tile", "96", "--seed", "2", "--keep", "tiles"]
    upscale(*call)
    first = pixels("large.png")
    monkeypatch.setattr(Denoiser, "compute", lambda *_: pytest.fail("a tile was drawn"))
    upscale(*call)

    assert len(list(Path("tiles").iterdir())) == 4 and (pixels("large.png") == first).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--factor", "1"], "`factor` is 1"),
        (["--factor", "nan"], "`factor` is nan"),
        (["--factor", "1000"], "The largest factor is"),
        (["--strength", "2"], "`strength` is 2.0"),
        (["--overlap", "0.9"], "`overlap` is 0.9"),
        (["--tile", "100"], "`tile` is 100: give a multiple of 16"),
        (["--keep", "tiles"], "--keep needs --seed"),
        (["--caption", "a red circle"], "plain text, which the bundled model does not understand"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(drawn, monkeypatch, options, message):  # noqa: F811
    def loading(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(sys.modules["ideoflow.cli.upscale"], "load", loading)
    assert message in upscale(drawn, *options, fails=2).output.replace("\n", " ")


def test_a_picture_of_another_program_needs_a_caption(foreign):  # noqa: F811
    assert "brings no caption along: give --caption" in upscale(foreign, fails=2).output.replace("\n", " ")
    Image.new("RGB", (96, 96), "#FDD835").save("plain.png")
    upscale("plain.png", "--caption", BEFORE, "--factor", "1.5", "--strength", "0")
    assert pixels("large.png").shape == (144, 144, 3)
