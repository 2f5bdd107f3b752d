"""Captions as people and language models write them: what each form becomes, and that no repair is ever a wrong one."""

from __future__ import annotations

import copy
import itertools
import json
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.captions import Caption, CaptionError, CaptionWarning, ObjectElement, Style, TextElement, prompt_line
from ideoflow.captions.boxes import ORDERS
from ideoflow.captions.colours import meant

PHOTO = {"aesthetics": "calm", "lighting": "soft", "photo": "50 mm", "medium": "photograph"}
ART = {"aesthetics": "calm", "lighting": "soft", "medium": "print", "art_style": "woodcut"}
OBJECT = {"type": "obj", "bbox": [100, 200, 300, 400], "desc": "a cup", "color_palette": ["#FF0000", "#00FF00"]}
LETTERS = {"type": "text", "bbox": [500, 0, 600, 1000], "text": "OPEN", "desc": "neon letters"}
RIGHT: dict[str, Any] = {
    "high_level_description": "A cup under a sign.",
    "style_description": {**ART, "color_palette": ["#0A0B0C"]},
    "compositional_deconstruction": {"background": "a wall", "elements": [OBJECT, LETTERS]},
}
LINE = Caption.parse(RIGHT).line()


def element(
    change: Callable[[dict[str, Any]], Any] | None = None, base: dict[str, Any] = OBJECT, **fields: Any
) -> dict:
    """The caption with its first element changed."""
    one = {**copy.deepcopy(base), **fields}
    if change:
        change(one)
    data = copy.deepcopy(RIGHT)
    data["compositional_deconstruction"]["elements"][0] = one
    return data


def renamed(data: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in data.items()}


def styled(style: dict[str, Any]) -> dict[str, Any]:
    return {**RIGHT, "style_description": style}


def box(value: Any) -> dict[str, Any]:
    return element(bbox=value)


def palette(value: Any) -> dict[str, Any]:
    return element(color_palette=value)


# What is certain is mended, and told in these words


@pytest.mark.parametrize(
    ("given", "done"),
    [
        # Around the JSON
        (f"```json\n{LINE}\n```", "took it out of a Markdown fence"),
        (f"```\n{LINE}\n```", "took it out of a Markdown fence"),
        (f"```JSON\n{LINE}", "took it out of a Markdown fence"),
        (f"Here is your caption:\n\n{LINE}\n\nTell me if you like it.", "took it out of other text"),
        (f"Sure {{as asked}}:\n```json\n{LINE}\n```\nDone.", "took it out of other text"),
        (f"{LINE}}}", "took it out of other text"),
        (f"<think>\nA cup, {{maybe}} blue.\n</think>\n\n{LINE}", "left the thinking out"),
        (f"<think>{LINE.replace('cup', 'jug')}</think>{LINE}", "left the thinking out"),
        (f"It should be calm.</think>\n{LINE}", "left the thinking out"),
        (f"<Thinking>so</Thinking>\n```json\n{LINE}\n```", "left the thinking out"),
        (f"[{LINE}]", "took it out of a list"),
        (json.dumps(LINE), "took it out of a string"),
        (f"{LINE}\n{LINE}", "took it out of other text"),  # the same twice
        # No JSON in it
        (LINE.replace("}]", "},]"), "read past trailing commas"),
        (LINE.replace("{", "{ // as asked\n", 1), "read past comments"),
        (LINE.replace("{", "{ /* as\nasked */", 1), "read past comments"),
        (LINE.replace('"', "”").replace("{”", "{“").replace(":”", ":“"), "read past typographic quotation marks"),
        (LINE.replace('"', "“"), "read past typographic quotation marks"),
        (LINE.replace('"', "«"), "read past typographic quotation marks"),
        (LINE.replace('"', "'"), "read past single quotation marks"),
        (repr(RIGHT), "read past single quotation marks"),
        (LINE.replace('"type":', "type:"), "read past keys without quotation marks"),
        # Under another key
        ({"prompt": RIGHT}, "took it out of `prompt`"),
        ({"prompt": LINE, "seed": 3}, "took it out of `prompt`, and left out seed"),
        ({"caption": RIGHT, "file_name": "a.png"}, "took it out of `caption`, and left out file_name"),
        (json.dumps({"output": f"```json\n{LINE}\n```"}), "took it out of `output`"),
        # Keys
        ({**RIGHT, "aspect_ratio": "16:9"}, "left out `aspect_ratio`"),
        ({**RIGHT, "canvas": {"width": 3}}, "left out `canvas`"),
        ({**RIGHT, "layout": [], "generation": {}, "id": 7}, "left out `layout`"),
        (element(id="a-1"), "left out `id`"),
        (element(text=""), "left out the empty `text`"),
        ({"high_level_description": RIGHT["high_level_description"], "style_description": RIGHT["style_description"],
          **RIGHT["compositional_deconstruction"]}, "put `background` and `elements` into"),
        (dict(reversed(RIGHT.items())), "put the keys in the order high_level_description"),
        (styled({**RIGHT["style_description"], "photo": ""}), "left out the empty `photo`"),
        (styled({**RIGHT["style_description"], "photo": None}), "left out `photo`, which was null"),
        (styled(renamed(RIGHT["style_description"], color_palette="colour_palette")),
         "renamed `colour_palette` to `color_palette`"),
        (box(None) | {"compositional_deconstruction": {"background": "a wall", "elements": [
            {**renamed(OBJECT, desc="description")}, LETTERS]}}, "renamed `description` to `desc`"),
        ({**RIGHT, "compositional_deconstruction": {"background": "a wall", "elements": [
            renamed(OBJECT, desc="content"), LETTERS]}}, "renamed `content` to `desc`"),
        ({**RIGHT, "compositional_deconstruction": {"background": "a wall", "elements": [
            OBJECT, renamed(LETTERS, text="content")]}}, "renamed `content` to `text`"),
        ({**RIGHT, "compositional_deconstruction": {"background": "a wall", "elements": [
            OBJECT, renamed(LETTERS, desc="content")]}}, "renamed `content` to `desc`"),
        ({**RIGHT, "compositional_deconstruction": {"background": "a wall", "elements": [
            OBJECT, {k: v for k, v in LETTERS.items() if k != "type"}]}}, "added `type`: 'text'"),
        (element(type="object"), "wrote 'obj' for 'object'"),
        (element(type="OBJ"), "wrote 'obj' for 'OBJ'"),
        # Colours
        (palette(["#ff0000", "#0f0"]), "wrote #FF0000 for '#ff0000'"),
        (palette(["red", "Lime"]), "wrote #00FF00 for 'Lime'"),
        (palette(["rgb(255, 0, 0)", "rgb(0 255 0)"]), "wrote #FF0000 for 'rgb(255, 0, 0)'"),
        (palette(["rgba(255,0,0,1)", "rgb(0%, 100%, 0%)"]), "wrote #FF0000 for 'rgba(255,0,0,1)'"),
        (palette([[255, 0, 0], "0x00FF00"]), "wrote #FF0000 for [255, 0, 0]"),
        (palette(["#FF0000FF", "00ff00"]), "wrote #FF0000 for '#FF0000FF'"),
        (palette("#FF0000, #00FF00"), "wrote the colours as a list: #FF0000, #00FF00"),
        (palette("#FF0000 #00FF00"), "wrote the colours as a list"),
        (palette(["red, rgb(0, 255, 0)"]), "wrote the colours as a list"),
        (palette("red; lime"), "wrote the colours as a list"),
        # Boxes
        (box([100.0, 200.0, 300.0, 400.0]), "wrote [100, 200, 300, 400]"),
        (box("[100, 200, 300, 400]"), "wrote [100, 200, 300, 400]"),
        (box("100 200 300 400"), "wrote [100, 200, 300, 400]"),
        (box(["100", "200", "300", "400"]), "wrote [100, 200, 300, 400]"),
        (box({"y_min": 100, "x_min": 200, "y_max": 300, "x_max": 400}), "wrote [100, 200, 300, 400]"),
        (box({"x1": 200, "y1": 100, "x2": 400, "y2": 300}), "wrote [100, 200, 300, 400]"),
        (box({"left": 200, "top": 100, "right": 400, "bottom": 300}), "wrote [100, 200, 300, 400]"),
        (box({"left": 200, "top": 100, "width": 200, "height": 200}), "wrote [100, 200, 300, 400]"),
        (box({"yMin": 0.1, "xMin": 0.2, "yMax": 0.3, "xMax": 0.4}), "wrote [100, 200, 300, 400]"),
        (box({"y_min": 300, "x_min": 200, "y_max": 100, "x_max": 400}), "wrote [100, 200, 300, 400]"),
    ],
)  # fmt: skip
def test_what_is_certain_becomes_the_right_caption(given: Any, done: str):
    caption = Caption.parse(given)
    repaired, mended = caption.mended()
    assert repaired.line() == LINE
    assert done in "\n".join(breach.mended for breach in mended)
    assert all(breach.certain for breach in caption.check()) and repaired.check() == []
    with pytest.raises(CaptionError):
        caption.strict()


# What is not certain is left, with a message that names what to do


@pytest.mark.parametrize(
    ("given", "path", "says"),
    [
        (box([600, 500, 200, 100]), "bbox", r"\[200, 100, 600, 500\] if its corners are swapped, \[500, 600, 600, 800\]"
         r" if it is x, y, width, height"),
        (box([900, 100, 300, 800]), "bbox", "something else if it is in pixels"),
        (box([600, 900, 0, 300]), "bbox", r"\[600, 0, 900, 300\] if it is y_min, y_max, x_min, x_max"),
        (box([200, 400, 1800, 1900]), "bbox", "looks like pixels of a picture of 1900 x 1800 or more.*--box-size"),
        (box([0, 0, 1000, 1024]), "bbox", r"reaches beyond 1000; write \[0, 0, 1000, 1000\] if it is in thousandths"),
        (box([0.1, 0.2, 0.3, 0.4]), "bbox", r"shares of the picture.*by 1000 and round: \[100, 200, 300, 400\]"),
        (box([0, 0, 1, 1]), "bbox", r"shares of the picture.*by 1000 and round: \[0, 0, 1000, 1000\]"),
        (box("0, 0, 1, 1"), "bbox", r"shares of the picture.*by 1000 and round: \[0, 0, 1000, 1000\]"),
        (box({"x": 200, "y": 100, "width": 200, "height": 200}), "bbox", "give four numbers in a list, y first"),
        (box([[100, 200], [300, 400]]), "bbox", "has 2 entries"),
        (box([100, 200, 300]), "bbox", "has 3 entries"),
        (box([100, 200, 100, 400]), "bbox", "encloses nothing"),
        (element(lambda one: one.update(box=one.pop("bbox"))), "box", "rename it to `bbox` if that is meant"),
        (element(lambda one: one.update(bbox_2d=one.pop("bbox"))), "bbox_2d", "write it as `bbox`, y first.*xyxy"),
        (element(lambda one: one.update(label=one.pop("desc"))), "label", "rename it to `desc` if that is meant"),
        (element(mood="calm"), "mood", "is no key of the schema here.*remove it"),
        ({**RIGHT, "backgroud": "a wall"}, "backgroud", "remove it"),
        ({**RIGHT, "summary": "A cup."}, "summary", "rename it to `high_level_description` if that is meant"),
        (element(lambda one: one.pop("text"), LETTERS), "text", "is missing; add `text`"),
        (element(lambda one: [one.pop("text"), one.pop("desc")], LETTERS, content="OPEN"), "content", "rename it"),
        (element(lambda one: one.pop("type")), "type", "is missing; add `type`"),
        (element(type="shape"), "type", "use one of the two"),
        (styled({**PHOTO, "art_style": "woodcut"}), "", "has both `photo` and `art_style`"),
        (palette(["dark"]), "[0]", "upper-case #RRGGBB is expected"),
        (palette(["red, dark"]), "[0]", "upper-case #RRGGBB is expected"),
        (palette(["rgba(255, 0, 0, 0.5)"]), "[0]", "upper-case #RRGGBB is expected"),
        (palette([[0, 1, 0]]), "[0]", "upper-case #RRGGBB is expected"),
        (palette({"main": "#FF0000"}), "color_palette", "put the colours in a list"),
        (palette("red, lime, blue, cyan, gold, navy"), "color_palette", "has 6 colours, more than the 5 allowed"),
    ],
)  # fmt: skip
def test_what_is_not_certain_is_left_with_a_message(given: Any, path: str, says: str):
    caption = Caption.parse(given)
    left = [breach for breach in caption.check() if not breach.certain and breach.path.endswith(path)]
    assert any(re.search(says, str(breach)) for breach in left), [str(breach) for breach in caption.check()]
    assert [str(breach) for breach in caption.repair().check()] == [
        str(breach) for breach in caption.check() if not breach.certain
    ]


def unquoted(colour: str) -> str:
    """A caption with a colour on a line of its own, which is a comment in other languages."""
    return json.dumps(palette(["red"])).replace('"red"', f"\n{colour}\n", 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LINE[:-4], "it ends before its last bracket, as if it had been cut off"),
        (f"```json\n{LINE[:-4]}\n```", "is no JSON: "),
        (LINE[: LINE.index("OPEN")], "as if it had been cut off .unterminated"),
        (LINE.replace('"', ""), "its quotation marks are gone"),
        (LINE.replace("a cup", 'a "cup"'), "expected a comma or '}' at line 1"),
        (LINE.replace('"', "“").replace("a cup", "a “blue” cup"), "cannot be told from the one that ends it"),
        (f"{LINE}\n{LINE.replace('cup', 'jug')}", "holds 2 captions"),
        (f"[{LINE},{LINE}]", "a JSON list of 2"),
        (f"<think>{LINE}", "thinking without an end"),
        (f"<think>{LINE}</think> I cannot do that.", "no caption after it"),
        (LINE.replace(":", "", 1), "expected a colon after the key 'high_level_description'"),
        (LINE.replace(",", "", 1), "expected a comma"),
        (LINE.replace("[100", f"[{'1' * 4301}"), "a number of 4301 digits is too long at line 1"),
        (LINE.replace("{", "{/*", 1), "a comment without an end"),
        (unquoted("#FF0000"), "a colour without quotation marks at line 2"),
        (unquoted("#0f0"), "a colour without quotation marks at line 2"),
        (f"{LINE}\n{LINE[:-4]}", "a caption and, at line 2, the beginning of another"),
        (f"{LINE[:-4]}\n{LINE}", "a caption and, at line 1, the beginning of another"),
        (f"{LINE}\n{{'high_level_description': oops}}", "a caption and, at line 2, the beginning of another"),
        (f"```json\n{LINE}\n```\n```json\n{LINE.replace(':', '', 3)}\n```", "the beginning of another"),
        ("", "empty"),
        ("a red cup", "plain text 'a red cup'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(text: str, says: str):
    with pytest.raises(CaptionError, match=says):
        Caption.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "a “quoted” cup",
        "one / two // three",
        "a #FF0000 cup, # 1",
        "a <think>bubble</think>",
        "```json",
        "it's {so}, [1,]",
    ],
)
def test_what_looks_like_a_slip_inside_a_text_of_json_is_left_alone(text: str):
    data = element(desc=text)
    assert Caption.parse(json.dumps(data)).check() == []
    assert Caption.parse(f"```\n{json.dumps(data)}\n```").repair().data() == data
    assert Caption.parse(json.dumps(data)[:-1] + ",}").repair().data() == data


def test_every_colour_name_of_css_has_its_colour_in_any_spelling():
    from PIL import ImageColor

    for name in ImageColor.colormap:
        expected = "#{:02X}{:02X}{:02X}".format(*ImageColor.getrgb(name))  # which Pillow remembers in its own way
        for spelled in (name, name.upper(), f" {name[:4]}-{name[4:]}"):
            assert meant(spelled) == expected
    assert [meant(word) for word in ("dark", "transparent", "redd", "", "none")] == [None] * 5


# Built in Python


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: ObjectElement(desc="a", bbox=(600, 500, 200, 100)), "ObjectElement: bbox: is [600, 500, 200, 100]"),
        (lambda: ObjectElement(desc="a", color_palette=["red"]), "color_palette[0]: is 'red', where upper-case"),
        (lambda: ObjectElement(), "ObjectElement: desc: is missing; add `desc`."),
        (lambda: ObjectElement(desc="a", colour=1), "ObjectElement: colour: is no key of the schema here"),
        (lambda: ObjectElement(desc=3), "desc: is the number 3, where a string is expected"),
        (lambda: ObjectElement(desc={1}), "holds what JSON cannot"),
        (lambda: TextElement(text=None, desc="a"), "TextElement: text: is missing"),
        (lambda: Style(**PHOTO, art_style="b"), "Style: has both `photo` and `art_style`"),
        (lambda: Style(aesthetics="a"), "Style breaks the schema in 3 places:"),
        (lambda: Caption(compositional_deconstruction=3), "Caption: compositional_deconstruction: is the number 3"),
        (lambda: Caption(), "Caption: compositional_deconstruction: is missing"),
        (
            lambda: Caption(compositional_deconstruction=RIGHT["compositional_deconstruction"], mood=1),
            "mood: is no key",
        ),
    ],
)
def test_parts_that_break_the_schema_are_refused_in_the_words_of_check(build: Callable[[], Any], says: str):
    with pytest.raises(CaptionError) as caught:
        build()
    assert says in str(caught.value) and caught.value.breaches
    assert "pydantic" not in str(caught.value) and "validation error" not in str(caught.value)


# No repair is a wrong one: right captions are broken in every way, and come back or are left

# Without marks of its own: what stands inside of texts is tested above.
words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Pi", "Pf", "Ps", "Pe", "Po"]), max_size=9)
colours = st.integers(0, 0xFFFFFF).map("#{:06X}".format)


@st.composite
def boxes(draw: st.DrawFn) -> list[int]:
    sides = st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)
    (top, bottom), (left, right) = sorted(draw(sides)), sorted(draw(sides))
    # All of a picture of side 1 is asked about, whoever wrote it.
    return [top, left, bottom, right] if (top, left, bottom, right) != (0, 0, 1, 1) else [0, 0, 2, 2]


@st.composite
def captions(draw: st.DrawFn) -> dict[str, Any]:
    def one() -> dict[str, Any]:
        letters = draw(st.booleans())
        made: dict[str, Any] = {"type": "text" if letters else "obj", "bbox": draw(boxes())}
        made |= {"text": draw(words.filter(str.strip))} if letters else {}
        return made | {"desc": draw(words), "color_palette": draw(st.lists(colours, min_size=1, max_size=5))}

    style = draw(st.sampled_from([PHOTO, ART]))
    return {
        "high_level_description": draw(words),
        "style_description": {key: draw(words.filter(str.strip)) for key in style},
        "compositional_deconstruction": {
            "background": draw(words),
            "elements": [one() for _ in range(draw(st.integers(1, 3)))],
        },
    }


Edges = list[float]
BOXES: dict[str, Callable[[Edges], Any]] = {
    "xyxy": lambda b: [b[1], b[0], b[3], b[2]],
    "xywh": lambda b: [b[1], b[0], b[3] - b[1], b[2] - b[0]],
    "yxhw": lambda b: [b[0], b[1], b[2] - b[0], b[3] - b[1]],
    "cxcywh": lambda b: [(b[1] + b[3]) / 2, (b[0] + b[2]) / 2, b[3] - b[1], b[2] - b[0]],
    "rounded centres": lambda b: [(b[1] + b[3]) // 2, (b[0] + b[2]) // 2, b[3] - b[1], b[2] - b[0]],
    "yyxx": lambda b: [b[0], b[2], b[1], b[3]],
    "xxyy": lambda b: [b[1], b[3], b[0], b[2]],
    "swapped": lambda b: [b[2], b[3], b[0], b[1]],
    "top and bottom swapped": lambda b: [b[2], b[1], b[0], b[3]],
    "left and right swapped": lambda b: [b[0], b[3], b[2], b[1]],
    "text": lambda b: str(b),
    "floats": lambda b: [float(edge) for edge in b],
    "named edges": lambda b: dict(zip(("y_min", "x_min", "y_max", "x_max"), b, strict=True)),
    "corner and size": lambda b: {"x": b[1], "y": b[0], "width": b[3] - b[1], "height": b[2] - b[0]},
    "left, top and size": lambda b: {"left": b[1], "top": b[0], "width": b[3] - b[1], "height": b[2] - b[0]},
    "as it is": lambda b: b,
}


SIZES = [None, (1, 1), (1024, 768), (2048, 2048), (1600, 2000)]


def with_boxes(given: list[Any]) -> dict[str, Any]:
    elements = [{"type": "obj", "bbox": one, "desc": "a cup"} for one in given]
    return {"compositional_deconstruction": {"background": "a table", "elements": elements}}


def boxes_of(data: dict[str, Any]) -> list[Any]:
    return [one["bbox"] for one in data["compositional_deconstruction"]["elements"]]


@settings(max_examples=30, deadline=None)
@given(st.lists(boxes(), min_size=1, max_size=3))
def test_a_box_is_left_or_mended_to_the_one_that_was_meant(meant: list[Edges]):
    """In every order and scale: thousandths, shares, and pixels of several pictures."""
    for form, size in itertools.product(BOXES, SIZES):
        w, h = size or (1000, 1000)
        scaled = [[edge * side / 1000 for edge, side in zip(one, (h, w, h, w), strict=True)] for one in meant]
        if size != (1, 1):
            scaled = [[round(edge) for edge in one] for one in scaled]
        written = [BOXES[form](one) for one in scaled]
        repaired = boxes_of(Caption.parse(with_boxes(written)).repair().data())
        # No one can tell pixels of a small part of a picture from thousandths: there the order is all that is mended.
        same_scale = scaled if size not in (None, (1, 1)) else meant
        for right, left, one, own in zip(meant, written, repaired, same_scale, strict=True):
            assert one in (right, left, own), (form, size, right, left, one)


@pytest.mark.parametrize(
    ("written", "mended"),
    [
        ([[600, 500, 0, 100]], [[0, 100, 600, 500]]),
        ([[600, 100, 0, 700], [1, 2, 3, 4]], [[0, 100, 600, 700], [1, 2, 3, 4]]),
        ([[600, 500, 0, 100], [600, 500, 200, 100]], None),  # one that may be x, y, width, height, so all of them may
        ([[600, 500, 0, 100], [0, 0, 1000, 1024]], None),
        ([[600, 500, 0, 100], [0.1, 0.2, 0.3, 0.4]], None),
        ([[-5, 0, 100, 100]], [[0, 0, 100, 100]]),
        ([[-5, 0, 100, 100], [600, 500, 200, 100]], None),
    ],
)
def test_boxes_of_one_caption_are_in_doubt_together(written: list[Edges], mended: list[Edges] | None):
    assert boxes_of(Caption.parse(with_boxes(written)).repair().data()) == (mended or written)


@settings(deadline=None)
@given(captions(), st.sampled_from(ORDERS), st.sampled_from([None, (1, 1), (4096, 3072), (3333, 9999)]))
def test_boxes_are_converted_from_every_form_by_one_who_knows_it(data: dict[str, Any], order: str, size: Any):
    broken = copy.deepcopy(data)
    for one in broken["compositional_deconstruction"]["elements"]:
        w, h = size or (1000, 1000)
        scaled = [edge * side / 1000 for edge, side in zip(one["bbox"], (h, w, h, w), strict=True)]
        one["bbox"] = BOXES[order](scaled) if order in BOXES else scaled
    assert Caption.parse(broken).with_boxes_from(order, size).data() == data


COLOURS: dict[str, Callable[[list[str]], Any]] = {
    "lower case": lambda some: [one.lower() for one in some],
    "no mark": lambda some: [one[1:] for one in some],
    "joined": ", ".join,
    "joined by spaces": " ".join,
    "joined in a list": lambda some: [";".join(some)],
    "rgb": lambda some: [f"rgb({int(c[1:3], 16)}, {int(c[3:5], 16)}, {int(c[5:], 16)})" for c in some],
    "opaque": lambda some: [f"{one}ff" for one in some],
    "channels": lambda some: [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in some],
}
KEYS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "description": lambda one: renamed(one, desc="description"),
    "content": lambda one: renamed(one, desc="content"),
    "content of letters": lambda one: renamed(one, text="content"),
    "both called content and description": lambda one: renamed(one, desc="description", text="content"),
    "type in words": lambda one: {**one, "type": {"obj": "Object", "text": "TEXT"}[one["type"]]},
    "no type": lambda one: {key: value for key, value in one.items() if key != "type"},
    "no text": lambda one: {key: value for key, value in one.items() if key != "text"},
    "palette": lambda one: renamed(one, color_palette="colors"),
    "id": lambda one: {"id": 7, **one},
    "reversed": lambda one: dict(reversed(one.items())),
    "null": lambda one: {**one, "color_palette": None},
    "as it is": lambda one: one,
}
WHOLES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "under prompt": lambda data: {"prompt": data, "seed": 1},
    "as text under text": lambda data: {"text": json.dumps(data)},
    "with tool keys": lambda data: {"aspect_ratio": "1:1", **data, "canvas": [1], "layout": {}, "generation": 1},
    "flat": lambda data: {
        **{key: value for key, value in data.items() if key != "compositional_deconstruction"},
        **data["compositional_deconstruction"],
    },
    "reversed": lambda data: dict(reversed(data.items())),
    "an empty other style": lambda data: {
        **data, "style_description": {"photo": "", "art_style": "", **data["style_description"]}
    },
    "as it is": lambda data: data,
}  # fmt: skip
TEXTS: dict[str, Callable[[str], str]] = {
    "fence": lambda line: f"```json\n{line}\n```",
    "words": lambda line: f"Here you are: {line}\nIs that right?",
    "thinking": lambda line: f"<think>A {{ and a }}.\n</think>\n{line}",
    "trailing commas": lambda line: line.replace("}", ",}").replace("]", ",]"),
    "typographic": lambda line: line.replace('"', "“"),
    "single": lambda line: line.replace('"', "'"),
    "comments": lambda line: line.replace("{", "{ // so\n").replace("}", "# and\n}"),
    "string": json.dumps,
    "list": lambda line: f"[{line}]",
    "as it is": lambda line: line,
}


def broken_by(draw: st.DataObject, data: dict[str, Any]) -> str:
    """A right caption broken in several of these ways at once."""
    keys, colour, whole, text = (
        draw.draw(st.sampled_from(sorted(ways))) for ways in (KEYS, COLOURS, WHOLES, TEXTS)
    )  # fmt: skip
    broken = copy.deepcopy(data)
    elements = broken["compositional_deconstruction"]["elements"]
    for one in elements:
        one["color_palette"] = COLOURS[colour](one["color_palette"])
    elements[:] = [KEYS[keys](one) for one in elements]
    return TEXTS[text](json.dumps(WHOLES[whole](broken), ensure_ascii=draw.draw(st.booleans())))


@settings(max_examples=150, deadline=None)
@given(st.data(), captions())
def test_what_claims_to_be_certain_gives_the_caption_that_was_broken(draw: st.DataObject, data: dict[str, Any]):
    """And repair is idempotent, and nothing but a CaptionError is ever raised."""
    text = broken_by(draw, data)
    try:
        caption = Caption.parse(text)
    except CaptionError:
        return
    repaired, done = caption.mended()
    assert repaired.repair().line() == repaired.line() and repaired.mended()[1] == []
    if all(breach.certain for breach in caption.check()):
        forgotten = copy.deepcopy(data)
        if any("which was null" in breach.done for breach in done):
            for one in forgotten["compositional_deconstruction"]["elements"]:
                del one["color_palette"]
        assert repaired.data() == forgotten and repaired.check() == []


DAMAGE = ["", *"{}[]\"'#,\0\\", "\u201c", "/*", "//", "<think>", "```", "9" * 4301]


@settings(max_examples=100, deadline=None)
@given(st.data(), captions())
def test_broken_captions_damaged_further_raise_nothing_but_caption_errors(draw: st.DataObject, data: dict[str, Any]):
    text = broken_by(draw, data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(text)))
        put = draw.draw(st.sampled_from(DAMAGE))
        text = text[:at] + put + text[at + draw.draw(st.integers(0, 3)) :]
    try:
        caption = Caption.parse(text)
        caption.check(), caption.repair().strict()
    except CaptionError as error:
        assert " at at " not in str(error)


@settings(max_examples=60, deadline=None)
@given(st.data(), captions())
def test_the_reader_of_prompts_agrees_with_the_reader_of_captions(draw: st.DataObject, data: dict[str, Any]):
    text = broken_by(draw, data)
    try:
        expected = Caption.parse(text).line()
    except CaptionError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptionWarning)
        assert json.loads(prompt_line(text)) == json.loads(expected)
