"""Plain words on the bundled model: what is drawn of them, what is chosen, and what is said not to be understood."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideoflow.captions import CaptionError
from ideoflow.sketch.lexicon import lexicon
from ideoflow.sketch.masks import SHAPES
from ideoflow.sketch.prose import read, write
from ideoflow.sketch.scene import COLOURS
from ideoflow.sketch.world import sample

from .prose_sentences import held_out, made, second, wrong


def test_the_sentences_written_before_the_grammar_are_understood():
    sentences = held_out()
    found = wrong(sentences)
    assert len(sentences) == 162
    assert len(found) <= 0.05 * len(sentences), found


def test_the_sentences_written_after_it_by_another_are_understood():
    sentences = second()
    found = wrong(sentences)
    assert len(sentences) == 102
    assert len(found) <= 0.05 * len(sentences), found


def test_three_hundred_sentences_of_many_wordings_are_understood():
    found = wrong([made(number) for number in range(300)])
    assert len(found) <= 15, found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_shape_in_every_colour_is_drawn_as_it_is_named(shape: str, colour: str):
    ground = "white" if colour != "white" else "black"
    reading = read(f"a {colour} {shape} on {ground}")
    assert [(thing.colour, thing.shape) for thing in reading.things] == [(colour, shape)]
    assert (reading.ground.colours, reading.notes) == ((ground,), ())


def test_the_caption_is_one_that_the_model_was_trained_on():
    assert write("a red heart on pink").caption.data() == {
        "high_level_description": "A red heart on pink.",
        "compositional_deconstruction": {
            "background": "plain pink",
            "elements": [{"type": "obj", "bbox": [200, 200, 800, 800], "desc": "a red heart"}],
        },
    }


def test_places_that_were_said_are_kept():
    things = write("a red heart at the top left, a blue star at the bottom right, on white").caption.data()
    heart, star = (one["bbox"] for one in things["compositional_deconstruction"]["elements"])
    assert max(heart) <= 500 and min(star) >= 500


@pytest.mark.parametrize(
    ("text", "first", "axis"),
    [
        ("a red heart above a blue star", 0, 0),
        ("a red heart below a blue star", 1, 0),
        ("a red heart to the left of a blue star", 0, 1),
        ("a red heart to the right of a blue star", 1, 1),
        ("under a red heart there is a blue star", 0, 0),
        ("a red heart and below it a blue star", 0, 0),
        ("a red heart next to a blue star", 0, 1),
    ],
)
def test_a_relation_places_both_things(text: str, first: int, axis: int):
    boxes = [
        one["bbox"] for one in write(f"{text}, on white").caption.data()["compositional_deconstruction"]["elements"]
    ]
    assert boxes[first][axis + 2] <= boxes[1 - first][axis]


def test_a_thing_on_another_is_drawn_after_it_and_within_it():
    outer, inner = write("a white star on a red circle on black").caption.data()["compositional_deconstruction"][
        "elements"
    ]
    assert (outer["desc"], inner["desc"]) == ("a red circle", "a white star")
    assert outer["bbox"][0] < inner["bbox"][0] and inner["bbox"][2] < outer["bbox"][2]


def test_shapes_keep_their_proportions_in_a_picture_of_another():
    (top, left, bottom, right) = write("a red circle on white", (192, 96)).caption.data()[
        "compositional_deconstruction"
    ]["elements"][0]["bbox"]
    assert abs((right - left) * 192 - (bottom - top) * 96) <= 25 * 192


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("a red heart", "no background was named: it is white"),
        ("a heart on pink", "no colour was named for the heart"),
        ("a red heart and a dragon on pink", "not understood: dragon"),
        ("a red haert and a star on pink", "did you mean heart?"),
        ("a red rectangle on white", "the nearest that the world has"),
        ("a star outline in blue on white", "no outlines of it"),
        ("red stars on white", "how many stars was not said: 3 are drawn"),
        ("a red and white heart on pink", "a thing has one colour here, red; white is left out"),
        ("a red heart on red", "has the colour of the background"),
        ("a red heart on navy", "nearest to navy"),
        ('"SUMMER" in red on white', "more than 5 letters"),
        ('"café" in red on white', "not É"),
        ("a red heart on stripes of blue and white", "their direction was not said"),
        ("six red stars on blue", "the model learned pictures of up to 4 things"),
        ("a red heart on white, on a green background", "a second background, white, is left out"),
        ("no heart, a star on blue", "not understood: no"),
        ("a star on a red circle on black", "the model learned no things that lie on others"),
    ],
)
def test_what_was_chosen_or_left_out_is_said(text: str, note: str):
    assert any(note in said for said in read(text).notes), read(text).notes


@pytest.mark.parametrize(
    "text", ["a dragon", "a dragon on pink", "hello", "", "?", "a photo of my dog", "100 red stars"]
)
def test_a_text_of_which_nothing_can_be_drawn_is_refused_with_what_can(text: str):
    with pytest.raises(CaptionError) as refused:
        read(text)
    assert "hexagon" in str(refused.value) or "1 to 9 things" in str(refused.value)


@given(
    st.lists(st.sampled_from([" ".join(key) for key in lexicon()] + ['"GO"', "dragon", "#A1B2C3", "7"]), max_size=14)
)
def test_any_words_give_a_right_caption_or_an_error_with_all_unknown_words_named(words: list[str]):
    try:
        reading = read(" ".join(words))
    except CaptionError:
        return
    for size in ((128, 128), (192, 96), (96, 192)):
        assert reading.caption(size).check() == []
    assert ("dragon" in words) == ("dragon" in reading.unknown)


@given(st.text(max_size=60))
def test_any_text_gives_a_right_caption_or_an_error(text: str):
    with contextlib.suppress(CaptionError):
        assert read(text).caption().check() == []


def test_the_worlds_own_summaries_are_understood():
    """What `wording` says of a picture, this grammar reads back; words have no colour in it, and exact colours none."""
    read_back = 0
    for picture in map(sample, range(80)):
        summary = picture.caption.get("high_level_description")
        if summary is None or any(element.exact for element in picture.elements):
            continue
        wanted = [(one.colour if one.shape else "", one.outline, one.shape or one.word) for one in picture.elements]
        reading = read(summary)
        found = [(one.colour if one.shape else "", one.outline, one.shape or one.word) for one in reading.things]
        assert found == wanted, summary
        read_back += 1
    assert read_back > 10
