"""Picture files: settings in the PNG, names, and writing whole files without overwriting others."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from ideoflow.cli.pictures import Lora, Picture, Settings, from_metadata, save, slug, target, to_metadata

PICTURE = Picture(caption='{"a":"Größe 写"}', width=48, height=32, seed=7, name="sea")
SETTINGS = Settings("sketch", (Lora("a.safetensors", 0.5),), "float32", "cpu", "V4_TURBO_12", guidance=3.0)


def picture(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (48, 32), colour)


def test_a_png_gives_back_the_settings_it_was_written_with(tmp_path: Path):
    path = save(picture(), tmp_path / "a.png", to_metadata(PICTURE, SETTINGS, 1), overwrite=False)
    found = from_metadata(path)
    assert Picture(name="sea", **{key: found[key] for key in ("caption", "width", "height", "seed")}) == PICTURE
    assert Settings(**{key: found[key] for key in vars(SETTINGS)}) == SETTINGS


def test_the_settings_are_json_under_the_key_ideoflow_in_unicode(tmp_path: Path):
    path = save(picture(), tmp_path / "a.png", to_metadata(PICTURE, SETTINGS, 1), overwrite=False)
    with Image.open(path) as image:
        assert json.loads(image.text["ideoflow"])["caption"] == PICTURE.caption
    assert "Größe 写".encode() in path.read_bytes()


def test_a_png_without_settings_says_so(tmp_path: Path):
    path = save(picture(), tmp_path / "a.png", None, overwrite=False)
    with pytest.raises(ValueError, match=r"a\.png carries no ideoflow settings"):
        from_metadata(path)


@pytest.mark.parametrize("text", ["nonsense", "[]", "{}", '{"caption": "x", "loras": [{"path": 1, "weight": 2}]}'])
def test_settings_that_cannot_be_read_say_so(tmp_path: Path, text: str):
    path = save(picture(), tmp_path / "a.png", text, overwrite=False)
    with pytest.raises(ValueError, match="cannot be read"):
        from_metadata(path)


def test_a_file_that_is_no_picture_says_so(tmp_path: Path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ValueError, match="is not a picture of a kind that is read"):
        from_metadata(tmp_path / "a.png")


def test_existing_files_are_kept_and_new_ones_numbered(tmp_path: Path):
    paths = [save(picture(colour), tmp_path / "a.png", None, overwrite=False) for colour in ("red", "green", "blue")]
    assert [path.name for path in paths] == ["a.png", "a-1.png", "a-2.png"]
    assert Image.open(paths[0]).getpixel((0, 0)) == (255, 0, 0)
    assert sorted(os.listdir(tmp_path)) == ["a-1.png", "a-2.png", "a.png"]


def test_overwrite_replaces_the_file(tmp_path: Path):
    save(picture("red"), tmp_path / "a.png", None, overwrite=False)
    assert save(picture("blue"), tmp_path / "a.png", None, overwrite=True) == tmp_path / "a.png"
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (0, 0, 255)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*paths: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        save(picture(), tmp_path / "a.png", None, overwrite=False)
    assert os.listdir(tmp_path) == []


def test_missing_folders_are_made(tmp_path: Path):
    assert save(picture(), tmp_path / "x" / "y" / "a.png", None, overwrite=False).exists()


@pytest.mark.parametrize(
    ("out", "count", "path"),
    [
        ("a.png", 1, "a.png"),
        ("a.png", 3, "a-2.png"),
        ("A.PNG", 1, "A.PNG"),
        ("folder", 1, "folder/sea-7.png"),
        ("folder/", 3, "folder/sea-7.png"),
        ("x/v1.2/", 1, "x/v1.2/sea-7.png"),
        ("{name}/{seed}-{width}x{height}.png", 3, "sea/7-48x32.png"),
        ("{index:03d}.png", 3, "002.png"),
    ],
)
def test_where_the_third_picture_goes(out: str, count: int, path: str):
    assert target(out, PICTURE, 2, count) == Path(path)


@pytest.mark.parametrize("out", ["{colour}.png", "{}.png", "{seed.png", "a.jpg"])
def test_outputs_that_cannot_be(out: str):
    with pytest.raises(ValueError, match="--out"):
        target(out, PICTURE, 0, 1)


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ("A red circle!", "a-red-circle"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "picture"),
        ("!?", "picture"),
        ("Größe 写", "größe-写"),
    ],
)
def test_file_stems_from_free_text(text: str, stem: str):
    assert slug(text) == stem


def test_long_texts_make_short_stems():
    assert len(slug("word " * 100)) <= 48


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("caption", 3),
        ("seed", "1"),
        ("seed", True),
        ("width", float("inf")),
        ("model", ["sketch"]),
        ("loras", [{"path": 3}]),
        ("dtype", "load"),
        ("preset", []),
        ("steps", "3"),
        ("steps", 2.5),
        ("guidance", [1]),
        ("together", "x"),
    ],
)
def test_settings_of_a_wrong_kind_are_refused_by_name(tmp_path: Path, key: str, value: object):
    path = save(picture(), tmp_path / "a.png", to_metadata(PICTURE, SETTINGS, 1), False)
    found = from_metadata(path) | {"loras": []}
    save(picture(), path, json.dumps(found | {key: value}), True)
    with pytest.raises(ValueError, match=r"a\.png carries ideoflow settings that cannot be read"):
        from_metadata(path)
