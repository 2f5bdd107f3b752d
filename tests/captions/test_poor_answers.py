"""What a language model writes that is right and yet poor: complained about, then taken with what is poor told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ideoflow.captions import Caption
from ideoflow.captions.writing import WritingError, describe, edit, write

from .chat_server import chat_server
from .test_endpoint import LINE, RIGHT

CUP, OPEN = RIGHT["compositional_deconstruction"]["elements"]


def made_of(*elements: dict[str, Any], **more: Any) -> str:
    data = {**RIGHT, "compositional_deconstruction": {"background": "a wall", "elements": [*elements], **more}}
    return json.dumps(data)


def without(element: dict[str, Any], *keys: str, **more: Any) -> dict[str, Any]:
    return {**{key: value for key, value in element.items() if key not in keys}, **more}


def called(name: str, element: dict[str, Any] = CUP) -> dict[str, Any]:
    return without(element, "bbox", **{name: element["bbox"]})


MANY = [{**CUP, "bbox": [10 * i, 10 * i, 10 * i + 100, 10 * i + 100], "desc": f"cup {i}"} for i in range(40)]
POOR = {
    "no elements": (made_of(), "has none", "nothing but the background is drawn"),
    "no boxes": (made_of(without(CUP, "bbox"), OPEN), "elements[0].bbox: is missing", "elements[0] has no box"),
    "too many": (made_of(*MANY), "has 40", "30 at most"),
    "no words": (made_of({**CUP, "desc": " "}), "desc: is empty", "say what it looks like"),
    "no letters": (made_of({**OPEN, "text": ""}), "text: is empty", "no letters are drawn"),
    "no background": (made_of(CUP, background=""), "background: is empty", "say what lies behind"),
    "x first": (made_of({**OPEN, "bbox": [200, 100, 800, 300]}), "x may come first", "taller than wide"),
    "a tiny box": (made_of({**CUP, "bbox": [500, 300, 505, 700]}), "too small", "make it larger"),
    "bbox_2d": (made_of(called("bbox_2d"), OPEN), "elements[0].bbox_2d: is called `bbox` here", "y first, as it was"),
    "bounding_box": (made_of(called("bounding_box")), "elements[0].bounding_box: is called", "y first, as it was"),
}


@pytest.mark.parametrize(("answer", "complaint", "told"), POOR.values(), ids=POOR)
def test_what_is_poor_is_complained_about_and_a_better_answer_taken(answer: str, complaint: str, told: str):
    with chat_server(answer, LINE) as server:
        written = write("a cup", server.endpoint())
    assert written.caption.line() == LINE and written.notes == ("took 2 attempts",)
    assert complaint in server.bodies[1]["messages"][-1]["content"]


@pytest.mark.parametrize(("answer", "complaint", "told"), POOR.values(), ids=POOR)
def test_what_stays_poor_is_taken_and_said(answer: str, complaint: str, told: str):
    with chat_server(answer) as server:
        written = write("a cup", server.endpoint())
    assert written.caption.check() == [] and len(server.bodies) == 3
    assert any(told in note for note in written.notes), written.notes


def test_a_poor_answer_is_taken_where_later_ones_are_none():
    with chat_server(made_of(), "I cannot.", "{") as server:
        written = write("a cup", server.endpoint())
    assert written.caption.line() == Caption.parse(made_of()).line()


def test_a_flood_of_elements_is_complained_about_and_then_an_error_that_shows_it():
    flood = made_of(*MANY[:1] * 2000)
    with chat_server(flood) as server, pytest.raises(WritingError) as failed:
        write("a cup", server.endpoint())
    assert "2000 elements" in str(failed.value) and flood[:400] in str(failed.value) and len(str(failed.value)) < 1200
    assert all(len(message["content"]) < 9000 for body in server.bodies for message in body["messages"])


def test_an_answer_that_is_far_too_long_is_not_looked_through():
    with chat_server(made_of(*MANY[:1] * 20_000), LINE) as server:
        written = write("a cup", server.endpoint())
    assert written.caption.line() == LINE
    assert "far more than a caption has" in server.bodies[1]["messages"][-1]["content"]


def test_boxes_that_are_the_same_either_way_are_renamed_for_certain():
    square = {**CUP, "bbox": [200, 200, 800, 800]}
    with chat_server(made_of(called("bbox_2d", square))) as server:
        written = write("a cup", server.endpoint())
    assert written.caption.line() == Caption.parse(made_of(square)).line() and len(server.bodies) == 1
    assert written.notes[0] == "mended compositional_deconstruction.elements[0].bbox_2d: renamed `bbox_2d` to `bbox`"


def test_whoever_says_which_edge_comes_first_has_boxes_of_that_name_converted():
    caption = Caption.parse(made_of(called("bbox_2d", {**CUP, "bbox": [300, 500, 700, 900]})))
    (breach,) = caption.check()
    assert not breach.certain and "--boxes xyxy" in breach.fix
    assert caption.with_boxes_from("xyxy").line() == Caption.parse(made_of(CUP)).line()


def test_without_a_layout_none_is_missed_and_what_comes_is_taken_out():
    with chat_server(LINE) as server:
        written = write("a cup", server.endpoint(), layout=False)
    kept = [without(one, "bbox", "color_palette") for one in (CUP, OPEN)]
    assert written.caption.line() == Caption.parse(made_of(*kept)).line() and len(server.bodies) == 1
    assert written.notes == ("left out what was not asked for: bbox, color_palette",)


def test_a_change_is_not_blamed_for_what_the_caption_had_or_the_wish_takes_away():
    before = Caption.parse(made_of(without(CUP, "bbox"), {**OPEN, "desc": ""}))
    after = made_of(without(CUP, "bbox", desc="a blue cup"), {**OPEN, "desc": ""})
    with chat_server(after) as server:
        assert edit(before, "make the cup blue", server.endpoint()).notes == ()
    with chat_server(made_of()) as server:
        assert edit(Caption.parse(RIGHT), "take everything away", server.endpoint()).notes == ()
    with chat_server(made_of(without(CUP, "bbox"), OPEN)) as server:
        assert "elements[0] has no box" in edit(Caption.parse(RIGHT), "x", server.endpoint()).notes[-1]


def test_a_picture_of_nothing_is_described_with_a_warning():
    from PIL import Image

    with chat_server(made_of()) as server:
        written = describe(Image.new("RGB", (64, 64), "#E53935"), server.endpoint())
    assert any("nothing but the background" in note for note in written.notes) and len(server.bodies) == 3


def test_advice_is_told_and_nobody_is_asked_again_for_it():
    quoting = made_of({**CUP, "desc": 'a cup with "TEA" on it'})
    with chat_server(quoting) as server:
        written = write("a cup", server.endpoint())
    assert len(server.bodies) == 1 and any("words in quotation marks" in note for note in written.notes)
