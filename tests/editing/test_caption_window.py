"""A caption seen through a window: boxes stay where they are in the picture, and those out of sight are left out."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow import Caption
from ideoflow.editing.caption_window import seen_caption

CIRCLE = {"type": "obj", "bbox": [100, 200, 300, 400], "desc": "a red circle"}
WORD = {"type": "text", "bbox": [600, 600, 900, 900], "text": "HI", "desc": "black letters"}
CAPTION = {"compositional_deconstruction": {"background": "plain yellow", "elements": [CIRCLE, WORD]}}


def boxes(caption):
    return [element.get("bbox") for element in caption["compositional_deconstruction"]["elements"]]


def test_the_whole_picture_has_its_own_caption():
    assert seen_caption(CAPTION, (100, 50), (0, 0, 100, 50)) is CAPTION


def test_a_part_has_what_lies_in_it():
    seen = seen_caption(CAPTION, (100, 100), (0, 0, 50, 50))

    assert boxes(seen) == [[200, 400, 600, 800]]
    assert seen["compositional_deconstruction"]["background"] == "plain yellow"


def test_a_larger_picture_has_smaller_boxes():
    assert boxes(seen_caption(CAPTION, (100, 100), (-50, 0, 150, 100))) == [[100, 350, 300, 450], [600, 550, 900, 700]]


def test_a_box_is_cut_at_the_edge():
    assert boxes(seen_caption(CAPTION, (100, 100), (30, 20, 130, 120))) == [[0, 0, 100, 100], [400, 300, 700, 600]]


def test_an_element_of_which_too_little_is_seen_is_left_out():
    assert boxes(seen_caption(CAPTION, (100, 100), (30, 20, 130, 120), least=0.3)) == [[400, 300, 700, 600]]


def test_the_caption_that_was_given_does_not_change():
    before = json.dumps(CAPTION)
    seen_caption(CAPTION, (100, 100), (0, 0, 50, 50))
    assert json.dumps(CAPTION) == before


@pytest.mark.parametrize("form", [json.dumps, Caption.parse, lambda caption: Caption.parse(caption).line()])
def test_captions_of_every_form_are_seen(form):
    assert boxes(seen_caption(form(CAPTION), (100, 100), (0, 0, 50, 50))) == [[200, 400, 600, 800]]


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle",
        '{"compositional_deconstruction": 5}',
        '{"high_level_description": "x"}',
        '{"compositional_deconstruction": {"background": "x", "elements": [{"type": "obj", "desc": "y"}]}}',
        "{ broken",
    ],
)
def test_what_has_no_boxes_stays_as_it_is(prompt):
    assert seen_caption(prompt, (100, 100), (0, 0, 50, 50)) is prompt


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.lists(st.floats(-50, 150), min_size=4, max_size=4))
def test_what_is_seen_is_a_caption_again(edges, window):
    box = [min(edges[0], edges[2]), min(edges[1], edges[3]), max(edges[0], edges[2]) + 1, max(edges[1], edges[3]) + 1]
    box = [min(edge, 1000) for edge in box]
    left, right = sorted(window[:2])
    top, bottom = sorted(window[2:])
    if not (box[0] < box[2] and box[1] < box[3] and right - left > 1 and bottom - top > 1):
        return
    caption = {"compositional_deconstruction": {"background": "x", "elements": [{**CIRCLE, "bbox": box}]}}

    seen = seen_caption(caption, (100, 100), (left, top, right, bottom))

    assert Caption.parse(seen).check() == []
