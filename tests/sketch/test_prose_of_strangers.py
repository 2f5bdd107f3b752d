"""Wordings that people type who have seen no other: what is drawn of each, and what is said."""

from __future__ import annotations

import itertools

import pytest

from ideoflow.captions import CaptionError
from ideoflow.sketch import intake, prose
from ideoflow.sketch.prose import read

# What was typed, what was understood of it, and what all the notes are.
TYPED = [
    ("a big red heart in the middle of a white page", "large red heart at the middle, on plain white", []),
    ("a tiny black dot in the centre of a white page", "tiny black circle at the middle, on plain white", []),
    ("two green triangles side by side on white", "green triangle, green triangle, on plain white", []),
    ("three orange circles in a row on gray", "orange circle, orange circle, orange circle, on plain gray", []),
    ("a blue circle outline on white, thick", "blue circle outline, on plain white", ["not understood: thick"]),
    ("a thick blue outline of a circle on white", "blue circle outline, on plain white", []),
    (
        "a circle, blue, with a thick white outline, on black",
        "blue circle, on plain black",
        ["circle: a thing has one colour here; white outline is left out"],
    ),
    (
        "a red heart with a thick blue outline on white",
        "red heart, on plain white",
        ["red heart: a thing has one colour here; blue outline is left out"],
    ),
    (
        "a red square beside a blue circle on white",
        "red square beside blue circle, on plain white",
        ["on which side was not said: the red square is to the left of the blue circle"],
    ),
    (
        "a red square, and next to it a blue circle, on white",
        "blue circle beside red square, on plain white",
        ["on which side was not said: the blue circle is to the right of the red square"],
    ),
    (
        "LOVE written in white above a pink heart on a red background",
        'the word "LOVE" in white above pink heart, on plain red',
        [],
    ),
    (
        '"SALE" in red letters on a yellow background with a black star below',
        'black star below the word "SALE" in red, on plain yellow',
        [],
    ),
    (
        "red circle on top, yellow circle in the middle, green circle at the bottom, black background",
        "red circle at the top, yellow circle at the middle, green circle at the bottom, on plain black",
        [],
    ),
    (
        "a blue circle behind a red square on white",
        "red square on blue circle, on plain white",
        ["the model learned no things that lie on others: the red square may be missing"],
    ),
    ("a red square on white, behind", "red square, on plain white", ["not understood: behind"]),
    (
        "a white ring around a red dot on black",
        "red circle inside white ring, on plain black",
        ["the model learned no things that lie on others: the red circle may be missing"],
    ),
    ("a red heart tilted to the right on white", "red heart, on plain white", ["not understood: tilted to the right"]),
    ("make the background yellow and add a purple diamond", "purple diamond, on plain yellow", []),
    ("a golden star on black", "golden star, on plain black", []),
    ("red heart \u2764\ufe0f on white", "red heart, on plain white", ["not understood: \u2764"]),
    ('"HI" big and bold, green, on white', 'the large word "HI" in green, on plain white', []),
]


@pytest.mark.parametrize(("text", "understood", "notes"), TYPED)
def test_what_a_stranger_types(text: str, understood: str, notes: list[str]):
    reading = read(text)
    assert (reading.understood, list(reading.notes)) == (understood, notes)


@pytest.mark.parametrize("text", ["two green triangles side by side on white", "three red stars in a row on white"])
def test_things_in_a_row_have_one_height(text: str):
    boxes = [one["bbox"] for one in read(text).caption().data()["compositional_deconstruction"]["elements"]]
    assert len({(box[0], box[2]) for box in boxes}) == 1
    assert all(left[3] <= right[1] for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("text", ["red background " * 1300, "on red " * 900, "red behind it " * 700])
def test_a_flood_of_backgrounds_is_refused(text: str):
    with pytest.raises(CaptionError, match="more than 20 backgrounds are named"):
        read(text)


def test_a_flood_of_short_words_is_refused():
    with pytest.raises(CaptionError, match="the words are 9000: at most 3000 are read"):
        read("C " * 9000)


UNITS = ["red background, ", "a dragon on a wyvern, ", "no red and no blue, ", "stripes of red and blue, ", "on a ",
         "gradient from red to blue, ", "above it, ", "left of the right of the ", "red and ", "thick ", "behind ",
         "the word ", "ABC written in ", "one ", "in the middle of a ", "it is ", "dark light ", "a red "]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_reading_takes_steps_as_there_are_words(unit: str):
    """Twice the words take no more than about twice the steps, whatever they are."""
    import sys

    def steps(count: int) -> int:
        taken = 0

        def step(frame, event, argument):
            nonlocal taken
            taken += frame.f_code.co_filename in (prose.__file__, intake.__file__)
            return step

        before = sys.gettrace()
        sys.settrace(step)
        try:
            read(unit * count)
        except CaptionError:
            pass
        finally:
            sys.settrace(before)
        return taken

    steps(8)  # what is read once
    assert steps(160) < 2.6 * steps(80) + 2000
