"""`ideoflow edit`: which change the options ask for, files that bring their captions along, and edits made again."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ideoflow import sketch
from ideoflow.change_options import TAKES
from ideoflow.cli import app
from ideoflow.pictures import read_settings, save_image

SQUARE = {"type": "obj", "bbox": [200, 200, 600, 600], "desc": "a blue square"}
CIRCLE = {"type": "obj", "bbox": [650, 650, 950, 950], "desc": "a red circle"}


def caption(*elements, background="plain yellow"):
    return json.dumps({"compositional_deconstruction": {"background": background, "elements": list(elements)}})


BEFORE, AFTER = caption(SQUARE, CIRCLE), caption({**SQUARE, "desc": "a green star"}, CIRCLE)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A picture of ideoflow's, with its caption."""
    path = tmp_path_factory.mktemp("drawn") / "square.png"
    result = CliRunner().invoke(
        app, ["generate", BEFORE, "--size", "96x96", "--steps", "3", "--seed", "5", "--out", str(path)]
    )
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="module")
def edited(drawn, tmp_path_factory) -> Path:
    """That picture with a star in place of the square."""
    path = tmp_path_factory.mktemp("edited") / "star.png"
    edit(drawn, "--caption", AFTER, "--out", str(path))
    return path


@pytest.fixture
def foreign() -> Path:
    path = Path("photo.jpg")
    Image.new("RGB", (100, 75), "#FDD835").save(path)
    return path


def edit(*arguments: str | Path, fails: int = 0) -> Result:
    defaults = {"--steps": "2", "--seed": "7", "--out": "out.png"}
    if "--variation" in arguments:  # which has the picture's own
        del defaults["--seed"]
    options = [part for key, value in defaults.items() if key not in arguments for part in (key, value)]
    result = CliRunner().invoke(app, ["edit", *map(str, arguments), *options])
    assert result.exit_code == fails, result.output
    assert "Traceback" not in result.output
    return result


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def made() -> dict:
    return read_settings("out.png")["edit"]


def test_another_caption_redraws_what_differs_and_nothing_else(drawn):
    edit(drawn, "--caption", AFTER)
    same = (pixels("out.png") == pixels(drawn)).all(-1)

    assert made()["kind"] == "inpaint" and made()["boxes"] == [SQUARE["bbox"]]
    assert same[66:].all() and same[:, 66:].all() and not same.all()
    settings = read_settings("out.png")
    assert settings["caption"] == AFTER.replace(", ", ",").replace(": ", ":")
    assert (settings["model"], settings["guidance"]) == ("sketch", sketch.GUIDANCE)


def test_a_mask_of_any_polarity_and_boxes_say_what_changes(drawn):
    light = np.zeros((96, 96), np.uint8)
    light[:48] = 255
    Image.fromarray(255 - light).save("black.png")
    edit(drawn, "--mask", "black.png", "--mask-changes", "black", "--out", "b.png")
    edit(drawn, "--box", "0,0,500,1000", "--out", "c.png")

    assert (pixels("b.png") == pixels("c.png")).all()
    assert (pixels("b.png")[48:] == pixels(drawn)[48:]).all()


def test_the_same_caption_draws_the_whole_anew(drawn):
    edit(drawn, "--strength", "0.4")

    assert (made()["kind"], made()["strength"]) == ("image to image", 0.4)


def test_a_caption_can_be_followed_without_a_mask(drawn):
    edit(drawn, "--caption", AFTER, "--how", "caption")

    assert made()["kind"] == "caption" and json.loads(made()["before"]) == json.loads(BEFORE)


def test_a_larger_picture_keeps_its_own_captions_elements_where_they_are(drawn):
    edit(drawn, "--outpaint", "144x96", "--place", "48,0")

    assert (pixels("out.png")[:, 48:] == pixels(drawn)).all()
    element = json.loads(read_settings("out.png")["caption"])["compositional_deconstruction"]["elements"][0]
    assert element["bbox"] == [200, 467, 600, 733]


def test_a_neighbour_of_a_picture(drawn):
    edit(drawn, "--variation", "0.3", "--variation-seed", "4")

    assert made() == {"kind": "variation", "seed": 4, "amount": 0.3}


def test_a_variation_begins_with_the_seed_of_its_picture(drawn):
    edit(drawn, "--variation", "0", "--variation-seed", "4", "--steps", "3")

    assert read_settings("out.png")["seed"] == 5 and (pixels("out.png") == pixels(drawn)).all()


@pytest.mark.parametrize(
    ("options", "message"), [(["--seed", "6"], "begins with its own seed, 5"), (["--n", "2"], "is one neighbour")]
)
def test_a_variation_has_no_other_seed_than_its_pictures(drawn, options, message):
    assert message in edit(drawn, "--variation", "0.2", *options, fails=2).output.replace("\n", " ")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"edit": {"kind": "inpaint"}}, "was made from another picture or seed"),
        ({"edit": {"kind": "upscale"}}, "was made from another picture or seed"),
        ({"unrepeatable": "its pipeline was put together in Python"}, "was put together in Python"),
        ({"seed": None}, "does not say its seed"),
    ],
)
def test_what_a_seed_alone_does_not_make_has_no_neighbours(drawn, said, message):
    with Image.open(drawn) as image:
        image.info["ideoflow"] = json.dumps(json.loads(image.info["ideoflow"]) | said)
        save_image(image, "other.png")

    output = " ".join(edit("other.png", "--variation", "0.2", fails=2).output.split())
    assert message in output and "--how image --strength 0.5" in output


OPTIONS = {
    "before": BEFORE, "margin": 7, "padding": 3, "strength": 0.5, "feather": 20, "harmonise": 3, "mask": "m.png",
    "boxes": "0,0,500,500", "mask_changes": "black", "fit": "crop", "outpaint": "144x144", "place": "0,0",
    "variation": 0.2, "variation_seed": 3,
}  # fmt: skip


def as_option(name):
    return [f"--{'box' if name == 'boxes' else name.replace('_', '-')}", str(OPTIONS[name])]


@pytest.mark.parametrize("how", TAKES)
def test_an_option_that_a_kind_of_change_does_not_take_is_refused_by_its_name(drawn, how):
    for name in sorted(OPTIONS.keys() - TAKES[how])[::3]:
        output = edit(drawn, "--how", how, *as_option(name), fails=2).output.replace("\n", " ")
        assert as_option(name)[0] in output or "at once" in output, name


def test_a_place_needs_a_larger_picture(drawn):
    assert "--place goes with outpaint" in edit(drawn, "--place", "0,0", fails=2).output.replace("\n", " ")


@pytest.mark.parametrize("options", [[], ["--caption", BEFORE]])
def test_without_a_change_the_ways_of_changing_are_told(drawn, options):
    output = " ".join(edit(drawn, *options, fails=2).output.split())
    assert "--caption NEW" in output and "--outpaint WxH" in output


@pytest.mark.parametrize(
    "options",
    [
        as_option("boxes"),
        as_option("feather"),
        ["--how", "image"],
        ["--caption", AFTER],
        ["--seed", "8"],
        ["--steps", "9"],
        ["--cache", "interval=2"],
        ["--quantize", "int8"],
        ["--n", "2"],
    ],
    ids=lambda options: options[0],
)
def test_options_that_the_file_of_an_edit_says_are_refused_beside_again(drawn, edited, options):
    result = CliRunner().invoke(app, ["edit", str(drawn), "--again", str(edited), *options])
    assert result.exit_code == 2 and f"{options[0]} would make another picture" in result.output.replace("\n", " ")


def test_what_stays_to_the_last_bit_is_no_jpegs(drawn):
    said = "a JPEG keeps no pixel to the last bit"
    assert said in edit(drawn, "--caption", AFTER, "--out", "out.jpg").output.replace("\n", " ")
    assert said not in edit(drawn, "--strength", "0.1", "--out", "out.jpg").output.replace("\n", " ")


def test_a_picture_of_another_program_is_changed_with_captions_given(foreign):
    edit(foreign, "--caption", AFTER, "--box", "0,0,500,500")
    assert pixels("out.png").shape == (75, 100, 3) and (pixels("out.png")[38:] == pixels(foreign)[38:]).all()
    edit(foreign, "--caption", AFTER, "--out", "c.png")
    assert read_settings("c.png")["edit"]["kind"] == "image to image"


def test_several_pictures_have_seeds_that_count_on(drawn):
    result = edit(drawn, "--caption", AFTER, "--n", "2", "--out", "some/")

    assert [Path(line).name for line in result.stdout.split()] == ["square-edited-7.png", "square-edited-8.png"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--caption", AFTER], marks=pytest.mark.long),
        pytest.param(["--box", "0,0,500,1000", "--harmonise", "1", "--feather", "2"], marks=pytest.mark.long),
        pytest.param(["--strength", "0.5"], marks=pytest.mark.long),
        ["--caption", AFTER, "--how", "caption"],
        pytest.param(["--outpaint", "144x112", "--place", "0,16"], marks=pytest.mark.long),
        pytest.param(["--variation", "0.5", "--variation-seed", "9"], marks=pytest.mark.long),
    ],
)
def test_an_edit_is_made_again_from_its_file(drawn, options):
    edit(drawn, *options)
    result = CliRunner().invoke(app, ["edit", str(drawn), "--again", "out.png", "--out", "again.png"])

    assert result.exit_code == 0, result.output
    assert (pixels("again.png") == pixels("out.png")).all()
    first, second = read_settings("out.png"), read_settings("again.png")
    assert first["edit"] == second["edit"] and first["seed"] == second["seed"]


def test_an_edit_of_another_picture_is_not_made_again(drawn, foreign):
    edit(drawn, "--caption", AFTER)
    Image.new("RGB", (96, 96)).save("other.png")

    result = CliRunner().invoke(app, ["edit", "other.png", "--again", "out.png"])
    assert result.exit_code == 2 and "is not the one that was changed then" in result.output
    result = CliRunner().invoke(app, ["generate", "out.png"])
    assert result.exit_code == 2 and "is an edit of another picture" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mask", "m.png", "--box", "0,0,1,1"], "give one of them"),
        (["--box", "0,0,500"], "--box '0,0,500': give y_min,x_min,y_max,x_max"),
        (["--box", "500,0,100,100"], "`mask_image` has the box"),
        (["--how", "erase"], "--how 'erase' is unknown"),
        (["--how", "redraw", "--outpaint", "192x192"], "ask for outpaint and redraw at once"),
        (["--how", "inpaint"], "needs --mask or --box"),
        (["--how", "outpaint"], "needs --outpaint"),
        (["--outpaint", "100x100"], "--outpaint '100x100'"),
        (["--outpaint", "144x144", "--place", "left"], "--place 'left'"),
        (["--outpaint", "144x144", "--place", "90,0"], "does not lie whole"),
        (["--strength", "2"], "`strength` is 2.0"),
        (["--caption", caption(SQUARE, background="plain red")], "differ in `background`"),
        (["--caption", "a red circle"], "plain text, which the bundled model does not understand"),
        (["--variation", "2"], "`variation` is 2.0"),
        (["--mask", "none.png"], "none.png"),
        (["--guidance", "nan"], "--guidance nan"),
        (["--how", "caption"], "say the same: nothing is to change"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(drawn, monkeypatch, options, message):
    def loading(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(sys.modules["ideoflow.cli.edit"], "load", loading)
    assert message in edit(drawn, *options, fails=2).output.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "brings no caption along: give --caption"),
        (["--caption", AFTER, "--how", "redraw"], "give --before"),
        (["--caption", AFTER, "--variation", "0.5"], "was not made by ideoflow"),
    ],
)
def test_pictures_of_other_programs_say_what_they_lack(foreign, options, message):
    assert message in edit(foreign, *options, fails=2).output.replace("\n", " ")


def test_what_is_no_picture_is_refused():
    Path("notes.png").write_text("words")
    assert "is not a picture" in edit("notes.png", fails=2).output
    assert "missing.png" in edit("missing.png", fails=2).output
