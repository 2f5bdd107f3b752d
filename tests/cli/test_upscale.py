"""`ideoflow upscale`: a picture enlarged with the caption that it brings along, in tiles that a folder keeps."""

import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ideoflow.cli import app
from ideoflow.pictures import read_settings
from tests.cli.test_edit import BEFORE, drawn, empty_folder, foreign, pixels  # noqa: F401 the fixtures that both use


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
        assert result.exit_code == 2 and "ideoflow upscale PICTURE --factor 1.5 --strength 0.0" in told
        assert "--overlap 0.25 --seed 2" in told and "--steps 3" in told


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
