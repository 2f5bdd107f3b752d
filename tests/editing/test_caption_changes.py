"""What has changed between two captions: elements, and with them boxes."""

import copy

import pytest

from ideoflow import Caption
from ideoflow.captions import CaptionError
from ideoflow.editing import changes_between

CIRCLE = {"type": "obj", "bbox": [100, 200, 300, 400], "desc": "a red circle"}
SQUARE = {"type": "obj", "bbox": [500, 200, 800, 400], "desc": "a blue square", "color_palette": ["#0000FF"]}
WORD = {"type": "text", "bbox": [600, 600, 900, 900], "text": "HI", "desc": "black letters"}


def caption(*elements, background="plain yellow", **more):
    return {**more, "compositional_deconstruction": {"background": background, "elements": list(elements)}}


def boxes(found):
    return [list(box) for box in found]


@pytest.mark.parametrize(
    ("before", "after", "gone", "come"),
    [
        ([CIRCLE, SQUARE], [CIRCLE, SQUARE, WORD], [], [WORD]),
        ([CIRCLE, SQUARE, WORD], [CIRCLE, WORD], [SQUARE], []),
        ([CIRCLE, SQUARE], [{**CIRCLE, "bbox": [0, 0, 200, 200]}, SQUARE], [CIRCLE], [{"bbox": [0, 0, 200, 200]}]),
        ([CIRCLE, SQUARE], [{**CIRCLE, "desc": "a green circle"}, SQUARE], [CIRCLE], [CIRCLE]),
        ([SQUARE, WORD], [{**SQUARE, "color_palette": ["#00FF00"]}, WORD], [SQUARE], [SQUARE]),
        ([SQUARE, WORD], [SQUARE, {**WORD, "text": "HO"}], [WORD], [WORD]),
        ([CIRCLE, CIRCLE], [CIRCLE], [CIRCLE], []),
        ([], [CIRCLE], [], [CIRCLE]),
    ],
)
def test_elements_that_are_added_removed_moved_or_changed(before, after, gone, come):
    changes = changes_between(caption(*before), caption(*after))

    assert boxes(changes.gone) == [one["bbox"] for one in gone]
    assert boxes(changes.come) == [one["bbox"] for one in come]


def test_where_the_picture_changes_is_said_once():
    changes = changes_between(caption(CIRCLE), caption({**CIRCLE, "desc": "a star"}))

    assert boxes(changes.boxes) == [CIRCLE["bbox"]]


def test_elements_that_change_places_from_back_to_front_have_changed():
    changes = changes_between(caption(CIRCLE, SQUARE, WORD), caption(SQUARE, CIRCLE, WORD))

    assert {tuple(CIRCLE["bbox"]), tuple(SQUARE["bbox"])} & set(changes.boxes)
    assert tuple(WORD["bbox"]) not in changes.boxes


def test_the_order_of_keys_changes_nothing():
    turned = dict(reversed(WORD.items()))

    assert boxes(changes_between(caption(CIRCLE, turned), caption(WORD)).gone) == [CIRCLE["bbox"]]


def test_summaries_may_differ():
    before = caption(CIRCLE, high_level_description="a circle")
    after = caption(SQUARE, high_level_description="a square")

    assert len(changes_between(Caption.parse(before), Caption.parse(after).line()).boxes) == 2


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (caption(CIRCLE), caption(CIRCLE, background="plain red"), "differ in `background`, which is everywhere"),
        (caption(CIRCLE), caption(CIRCLE, style_description={"medium": "x"}), "differ in `style_description`"),
        (caption(CIRCLE), caption(CIRCLE), "say the same"),
        (caption(CIRCLE), caption(CIRCLE, {"type": "obj", "desc": "a star"}), "has no `bbox`"),
        ("a red circle", caption(CIRCLE), "`before` is no caption"),
        (caption(CIRCLE), "a red circle", "`after` is no caption"),
    ],
)
def test_captions_of_which_no_part_can_be_told_are_refused(before, after, message):
    given = copy.deepcopy((before, after))
    with pytest.raises(CaptionError, match=message):
        changes_between(before, after)
    assert (before, after) == given
