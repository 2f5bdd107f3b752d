"""Names of the files that pictures go to."""

from pathlib import Path

import pytest

from ideoflow.cli.jobs import Picture, slug, target

PICTURE = Picture(caption='{"a":"Größe 写"}', width=48, height=32, seed=7, name="sea")


@pytest.mark.parametrize(
    ("out", "count", "form", "path"),
    [
        ("a.png", 1, None, "a.png"),
        ("a.png", 3, None, "a-2.png"),
        ("A.PNG", 1, None, "A.PNG"),
        ("a.jpg", 3, None, "a-2.jpg"),
        ("a.jpeg", 1, "jpeg", "a.jpeg"),
        ("a.webp", 1, None, "a.webp"),
        ("folder", 1, None, "folder/sea-7.png"),
        ("folder", 1, "jpeg", "folder/sea-7.jpg"),
        ("folder/", 3, "webp", "folder/sea-7.webp"),
        ("x.png/", 1, None, "x.png/sea-7.png"),
        ("x/v1.2/", 1, None, "x/v1.2/sea-7.png"),
        ("{name}/{seed}-{width}x{height}.png", 3, None, "sea/7-48x32.png"),
        ("{index:03d}.webp", 3, "webp", "002.webp"),
    ],
)
def test_where_the_third_picture_goes(out: str, count: int, form: str | None, path: str):
    assert target(out, PICTURE, 2, count, form) == Path(path)


@pytest.mark.parametrize("out", ["{colour}.png", "{}.png", "{seed.png", "a.gif", "a.png.txt"])
def test_outputs_that_cannot_be(out: str):
    with pytest.raises(ValueError, match="--out"):
        target(out, PICTURE, 0, 1)


def test_two_file_types_for_one_picture_are_refused():
    with pytest.raises(ValueError, match=r"--out 'a\.png' and --format webp are two file types"):
        target("a.png", PICTURE, 0, 1, "webp")


def test_a_picture_that_its_format_does_not_hold_is_refused():
    wide = Picture(caption="", width=16400, height=3200, seed=1, name="wide")
    with pytest.raises(ValueError, match="at most 16383 pixels a side"):
        target("a.webp", wide, 0, 1)
    assert target("a.png", wide, 0, 1) == Path("a.png")


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
