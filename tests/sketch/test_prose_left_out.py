"""What the grammar of plain words cannot draw is named or refused: never a plausible picture of something else."""

from __future__ import annotations

import pytest

from ideoflow.captions import CaptionError
from ideoflow.sketch import intake, prose
from ideoflow.sketch.prose import read
from ideoflow.sketch.wanted import Thing


def drawn(text: str) -> list[str]:
    return [f"{thing.called} {thing.shape or thing.word}".strip() for thing in read(text).things]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1.5 red hearts", ["1.5"]),
        ("a red 6-pointed star", ["6-pointed"]),
        ("a five-pointed red star", ["five-pointed"]),
        ("a 3d cube in red", ["3d"]),
        ("a 3-d cube in red", ["3-d"]),
        ("a red heart between two and four blue stars", ["two"]),
        ("-3 red stars", ["-3"]),
        ("a heart (red:1.3)", ["1.3"]),
        ("a red heart --ar 16:9", ["ar", "16:9"]),
        ("a red heart position 3", ["position", "3"]),
        ("a red circle, radius 20", ["radius", "20"]),
        ("a 100 px red circle", ["100 px"]),
        ("a red circle 20% large", ["20%"]),
        ("a red heart on three stripes of blue and white", ["three"]),
        ("a red heart, 7, on white", ["7"]),
        ("half a red heart", ["half"]),
        ("half of a red star", ["half"]),
        ("a half-red circle", ["half-red"]),
        ("a heart the colour of the sky", ["sky"]),
        ("a heart the color of the wall", ["wall"]),
        ("a part of a red heart", ["part"]),
        ("a red square with a soft edge", ["soft", "edge"]),
        ("a red heart in each corner", ["corner"]),
        ("a red heart in the corner", ["corner"]),
    ],
)
def test_words_that_nothing_takes_are_named(text: str, named: list[str]):
    assert set(named) <= set(read(text).unknown), read(text)


@pytest.mark.parametrize("said", ["2", "two", "a couple of", "a pair of"])
def test_a_number_that_a_thing_takes_is_not_named(said: str):
    reading = read(f"{said} red hearts on white")
    assert (len(reading.things), reading.notes) == (2, ())


@pytest.mark.parametrize("text", ["a 6-pointed red star", "a five-pointed red star", "a half-red star"])
def test_a_number_within_a_word_does_not_count_things(text: str):
    assert len(read(text).things) == 1


@pytest.mark.parametrize("text", ["half-circle", "half-circles", "half circle", "half-moon"])
def test_a_half_circle_is_a_shape(text: str):
    reading = read(f"a red {text} on white")
    assert {thing.shape for thing in reading.things} == {"half circle"} and not reading.unknown


@pytest.mark.parametrize("word", ["B2", "2B", "X1"])
def test_letters_and_digits_together_are_one_word_to_be_written(word: str):
    assert [thing.word for thing in read(f"the word {word} in red on white").things] == [word]


@pytest.mark.parametrize("place", ["corner", "side", "part", "half", "edge", "area"])
def test_nouns_of_places_say_nothing_after_a_place(place: str):
    assert read(f"a red heart in the top left {place} on white").notes == ()


@pytest.mark.parametrize(
    ("text", "colour", "note"),
    [
        ("a heart that is not red", "red", "left out with 'not': red"),
        ("a heart that isn't red", "red", 'left out with "isn\'t": red'),
        ("a heart, any colour but red", "red", "left out with 'any colour but': red"),
        ("a heart that is neither red nor blue", "blue", "left out with 'neither': red, blue"),
        ("a heart that is not red and blue", "blue", "left out with 'not': red, blue"),
        ("a red heart on a background that is anything but pink", "pink", "left out with 'anything but': pink"),
        ("a red heart not on pink", "pink", "left out with 'not': on, pink"),
        ("a red heart on a background other than white", "white", "left out with 'other than': white"),
        ("two red hearts and no blue stars on white", "blue", "left out with 'no': blue, stars"),
    ],
)
def test_what_is_negated_is_not_drawn_and_said(text: str, colour: str, note: str):
    reading = read(text)
    assert colour not in [*(thing.colour for thing in reading.things if "heart" not in note), *reading.ground.colours]
    assert note in reading.notes


def test_a_background_after_a_negation_is_still_one():
    assert read("a star without a heart on pink").ground.colours == ("pink",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ('the word "   "', "no letters in the quotation marks"),
        ("\"\" on '' ", "no letters in the quotation marks"),
        (f'"{"A" * 41}" in red', "41 characters in quotation marks: at most 40"),
        (f"the word \u201c{'B' * 50}\u201d in red", "50 characters"),
        ("100 stars", "100 stars: a picture has 1 to 9 things"),
        ("3,000 stars", "3,000 stars: a picture has 1 to 9 things"),
        ("zero stars", "zero stars: a picture has 1 to 9 things"),
        ("five stars and six hearts", "and there are 5 already"),
        ("heart.json", "the name of a file"),
        ("examples/captions/heart.json", "the name of a file"),
        ("~/heart.txt", "the name of a file"),
        ("{high_level_description:A heart.,compositional_deconstruction:{background:pink}}", "looks like a caption"),
        ('{"compositional_deconstruction": {"background": "plain pink", "elem', "looks like a caption"),
        ('{"compositional_deconstruction": {"background": "plain pink", "elements": []}}', "is a caption"),
        ('```json\n{"compositional_deconstruction": {"background": "pink", "elements": []}}\n```', "is a caption"),
        ("{type:obj,desc:a red heart", "looks like a caption"),
        ('"elements": [{"bbox": [1, 2, 3, 4], "desc": "a red heart"', "looks like"),
        ("x " * 10_001, "20002 characters: at most 20000"),
    ],
)
def test_what_is_no_words_is_refused_with_the_reason(text: str, reason: str):
    with pytest.raises(CaptionError) as refused:
        read(text)
    assert reason in str(refused.value)


@pytest.mark.parametrize("text", ["a heart: red, on [pink]", "a red heart (small) / white background", '"GO" in red'])
def test_signs_do_not_make_words_a_caption(text: str):
    assert read(text).things


def test_a_flood_of_unknown_words_is_named_by_a_few_and_a_number():
    names = [f"dragon{number}" for number in range(1500)]
    reading = read(" ".join(["a red heart on pink,", *names]))
    assert reading.notes[7:] == ("not understood: dragon7", "not understood: 1492 more words")
    with pytest.raises(CaptionError) as refused:
        read(" ".join(names))
    assert "1492 more words" in str(refused.value) and len(str(refused.value)) < 1000


def test_a_long_name_is_cut_in_notes_and_errors():
    assert max(map(len, read(f"a red heart on pink, {'x' * 5000}").notes)) < 100


def test_reading_does_not_look_over_the_rest_for_each_word(monkeypatch: pytest.MonkeyPatch):
    """Twice the words take twice the steps, not four times."""
    import sys

    def steps(count: int) -> int:
        taken = 0

        def step(frame, event, argument):
            nonlocal taken
            taken += frame.f_code.co_filename in (prose.__file__, intake.__file__)
            return step

        words = "xyz " * count + "a red heart"
        before = sys.gettrace()
        sys.settrace(step)
        try:
            read(words)
        finally:
            sys.settrace(before)
        return taken

    assert steps(400) < 2.5 * steps(200)


def test_messages_have_no_doubled_articles():
    for text in ('the word "GO" in blue on a red circle', '"GO" in red on red', "a star on a gradient of red"):
        said = " ".join(read(text).notes)
        assert "the the" not in said and "gradient need " not in said
    assert str(Thing(word="GO", colour="red")).startswith("the word")
