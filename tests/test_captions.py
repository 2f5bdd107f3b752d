"""Captions: what the schema allows, every way to breach it, what is mended for certain, and the canonical line."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import warnings
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ideoflow.captions import (
    Caption,
    CaptionError,
    CaptionWarning,
    Composition,
    ObjectElement,
    Style,
    TextElement,
    prompt_line,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
colour = st.integers(0, 0xFFFFFF).map("#{:06X}".format)


@st.composite
def boxes(draw) -> list[int]:
    top, bottom = sorted(draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)))
    left, right = sorted(draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)))
    return [top, left, bottom, right]


@st.composite
def elements(draw) -> dict:
    element: dict = {"type": draw(st.sampled_from(["obj", "text"]))}
    if draw(st.booleans()):
        element["bbox"] = draw(boxes())
    if element["type"] == "text":
        element["text"] = draw(text)
    element["desc"] = draw(text)
    if draw(st.booleans()):
        element["color_palette"] = draw(st.lists(colour, min_size=1, max_size=5))
    return element


@st.composite
def styles(draw) -> dict:
    style = {"aesthetics": draw(text), "lighting": draw(text)}
    if draw(st.booleans()):
        style |= {"photo": draw(text), "medium": draw(text)}
    else:
        style |= {"medium": draw(text), "art_style": draw(text)}
    if draw(st.booleans()):
        style["color_palette"] = draw(st.lists(colour, min_size=1, max_size=16))
    return style


@st.composite
def captions(draw) -> dict:
    caption: dict = {}
    if draw(st.booleans()):
        caption["high_level_description"] = draw(text)
    if draw(st.booleans()):
        caption["style_description"] = draw(styles())
    caption["compositional_deconstruction"] = {
        "background": draw(text),
        "elements": draw(st.lists(elements(), max_size=4)),
    }
    return caption


def places(data, path=()):
    """Every place inside a caption's data."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2000, 2000) | st.floats() | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw) -> dict:
    """A caption with up to three of its places changed into anything, removed, or added to."""
    data = draw(captions())
    for _ in range(draw(st.integers(0, 3))):
        if not data:
            break
        path = draw(st.sampled_from([p for p in places(data) if p]))
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "replace":
            parent[path[-1]] = draw(anything)
        elif change == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.sampled_from(["text", "photo", "bbox", "color_palette", "extra"]))] = draw(anything)
    return data


@st.composite
def with_repeated_keys(draw) -> str:
    """A caption as JSON text, some of whose keys stand twice, with the same value or another."""

    def write(value) -> str:
        if isinstance(value, list):
            return "[" + ",".join(map(write, value)) + "]"
        if not isinstance(value, dict):
            return json.dumps(value)
        members = [(key, write(inner)) for key, inner in value.items()]
        if members and draw(st.integers(0, 3)) == 0:
            key, inner = draw(st.sampled_from(members))
            members.append((key, draw(st.sampled_from([inner, '"other"', "null", "[]", "{}"]))))
        return "{" + ", ".join(f"{json.dumps(key)}: {inner}" for key, inner in members) + "}"

    return write(draw(mutated()))


@st.composite
def misspelt(draw) -> str:
    """A caption's line with a few characters taken out, put in or replaced."""
    line = Caption.parse(draw(captions())).line()
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(line)))
        put = draw(st.sampled_from(["", ",", "}", "]", '"', "\\", "NaN", "1e999", "\\ud800", "\ud800", "\n", "\0"]))
        line = line[:place] + put + line[place + draw(st.integers(0, 2)) :]
    return line


def breaches(data) -> list[tuple[str, bool]]:
    return [(breach.path, breach.certain) for breach in Caption.parse(data).check()]


def with_element(**fields) -> dict:
    element = {"type": "obj", "bbox": [100, 200, 300, 400], "desc": "a cup", **fields}
    order = ["type", "bbox", "text", "desc", "color_palette"]
    element = {k: element[k] for k in sorted(element, key=lambda k: order.index(k) if k in order else 9)}
    return {"compositional_deconstruction": {"background": "a table", "elements": [element]}}


def with_style(**fields) -> dict:
    return {"style_description": fields, **with_element()}


PHOTO = {"aesthetics": "calm", "lighting": "soft", "photo": "50 mm", "medium": "photograph"}
ELEMENT = "compositional_deconstruction.elements[0]"


# What is right


@given(captions())
def test_a_right_caption_has_no_breach_and_its_line_is_compact_json(data):
    caption = Caption.parse(data)
    assert caption.check() == []
    assert caption.line() == json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    assert caption.repair() is caption and caption.strict() is caption


@given(captions())
def test_parsing_the_line_gives_the_caption_back(data):
    caption = Caption.parse(data)
    assert Caption.parse(caption.line()) == caption
    assert Caption.parse(json.dumps(data, indent=2)) == caption


@settings(max_examples=200)
@given(mutated() | captions())
def test_no_breach_means_that_the_models_accept_it_and_the_reverse_up_to_order(data):
    try:
        Caption.model_validate(copy.deepcopy(data))
        accepted = True
    except ValidationError:
        accepted = False
    # The models take keys in any order, null for what may be absent, and no other thing that the check reports.
    reported = [b for b in Caption.parse(data).check() if "order" not in b.message and b.message != "is null"]
    assert accepted == (not reported)


def test_built_from_parts_it_writes_the_canonical_line():
    caption = Caption(
        high_level_description="Ein Café",
        style_description=Style(aesthetics="warm", lighting="low", medium="print", art_style="woodcut"),
        compositional_deconstruction=Composition(
            background="a wall",
            elements=[
                ObjectElement(bbox=(10, 20, 300, 400), desc="a cup", color_palette=["#AA3300"]),
                TextElement(text="OPEN", desc="neon letters"),
            ],
        ),
    )
    assert caption.line() == (
        '{"high_level_description":"Ein Café","style_description":{"aesthetics":"warm","lighting":"low",'
        '"medium":"print","art_style":"woodcut"},"compositional_deconstruction":{"background":"a wall","elements":['
        '{"type":"obj","bbox":[10,20,300,400],"desc":"a cup","color_palette":["#AA3300"]},'
        '{"type":"text","text":"OPEN","desc":"neon letters"}]}}'
    )
    assert caption.check() == []


def test_a_photo_stands_before_the_medium_and_a_style_of_art_after_it():
    assert list(json.loads(Caption.parse(with_style(**PHOTO)).line())["style_description"]) == [
        "aesthetics",
        "lighting",
        "photo",
        "medium",
    ]


@pytest.mark.parametrize(
    "parts",
    [
        {"bbox": (300, 0, 200, 10)},
        {"bbox": (0, 0, 1001, 10)},
        {"bbox": (0, 0, True, 10)},
        {"bbox": (0, 0, 1, 1)},  # shares of the picture, and no part of a caption in thousandths
        {"color_palette": ["#abcdef"]},
        {"color_palette": []},
        {"color_palette": ["#000000"] * 6},
        {"colour": "#000000"},
    ],
)
def test_wrong_parts_cannot_be_built(parts):
    with pytest.raises(CaptionError, match=f"^ObjectElement: {next(iter(parts))}"):
        ObjectElement(desc="a cup", **parts)


# Every breach, with its place, and whether it is certain what was meant


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, [("compositional_deconstruction", False)]),
        ({**with_element(), "mood": "calm"}, [("mood", False)]),
        ({**with_element(), "high_level_description": "x"}, [("", True)]),
        ({**with_element(), "\x1b\ud800": 1}, [(r"\x1b\ud800", False)]),
        ({"high_level_description": 3, **with_element()}, [("high_level_description", False)]),
        ({"high_level_description": None, **with_element()}, [("high_level_description", True)]),
        ({"high_level_description": "\ud800", **with_element()}, [("high_level_description", False)]),
        ({"style_description": "art", **with_element()}, [("style_description", False)]),
        (
            {"compositional_deconstruction": []},
            [("compositional_deconstruction", False)],
        ),
        (
            {"compositional_deconstruction": {}},
            [("compositional_deconstruction.background", False), ("compositional_deconstruction.elements", False)],
        ),
        (
            {"compositional_deconstruction": {"elements": [], "background": ""}},
            [("compositional_deconstruction", True)],
        ),
        (
            {"compositional_deconstruction": {"background": "", "elements": {}}},
            [("compositional_deconstruction.elements", False)],
        ),
        (
            {"compositional_deconstruction": {"background": "", "elements": ["a cup"]}},
            [(ELEMENT, False)],
        ),
        (with_element(type="object"), [(f"{ELEMENT}.type", True)]),
        (with_element(type="shape"), [(f"{ELEMENT}.type", False)]),
        (with_element(text="A"), [(f"{ELEMENT}.text", False)]),
        (with_element(type="text"), [(f"{ELEMENT}.text", False)]),
        (with_element(desc=None), [(f"{ELEMENT}.desc", False)]),
        (with_element(size=3), [(f"{ELEMENT}.size", False)]),
        (with_element(bbox=None), [(f"{ELEMENT}.bbox", True)]),
        (with_element(bbox=[300, 400, 100, 200]), [(f"{ELEMENT}.bbox", False)]),
        (with_element(bbox=[900, 800, 0, 100]), [(f"{ELEMENT}.bbox", True)]),
        (with_element(bbox=[-5, 0, 1000, 100]), [(f"{ELEMENT}.bbox", True)]),
        (with_element(bbox=[0, 0, 1200, 100]), [(f"{ELEMENT}.bbox", False)]),
        (with_element(bbox=[0.0, 0, 10.0, 10]), [(f"{ELEMENT}.bbox", True)]),
        (with_element(bbox=[0.5, 0, 10, 10]), [(f"{ELEMENT}.bbox", False)]),
        (with_element(bbox=[0.1, 0.2, 0.3, 0.4]), [(f"{ELEMENT}.bbox", False)]),
        (with_element(bbox=[0, 0, True, 10]), [(f"{ELEMENT}.bbox", False)]),
        (with_element(bbox=[0, 0, float("nan"), 10]), [(f"{ELEMENT}.bbox", False)]),
        (with_element(bbox=["0", 0, 10, 10]), [(f"{ELEMENT}.bbox", True)]),
        (with_element(bbox=["a", 0, 10, 10]), [(f"{ELEMENT}.bbox", False)]),
        (with_element(bbox=[0, 0, 10]), [(f"{ELEMENT}.bbox", False)]),
        (with_element(bbox="0 0 10 10"), [(f"{ELEMENT}.bbox", True)]),
        (with_element(bbox=[10, 10, 10, 90]), [(f"{ELEMENT}.bbox", False)]),
        (with_element(bbox=[1100, 0, 1200, 10]), [(f"{ELEMENT}.bbox", False)]),
        (with_element(color_palette=[]), [(f"{ELEMENT}.color_palette", True)]),
        (with_element(color_palette="#000000"), [(f"{ELEMENT}.color_palette", True)]),
        (with_element(color_palette="#000000 dark"), [(f"{ELEMENT}.color_palette", False)]),
        (with_element(color_palette=["#000000"] * 6), [(f"{ELEMENT}.color_palette", False)]),
        (with_element(color_palette=["#ff0000"]), [(f"{ELEMENT}.color_palette[0]", True)]),
        (with_element(color_palette=["#000000", "#F00"]), [(f"{ELEMENT}.color_palette[1]", True)]),
        (with_element(color_palette=["FF0000"]), [(f"{ELEMENT}.color_palette[0]", True)]),
        (with_element(color_palette=["F00"]), [(f"{ELEMENT}.color_palette[0]", False)]),
        (with_element(color_palette=["red"]), [(f"{ELEMENT}.color_palette[0]", True)]),
        (with_element(color_palette=["dark"]), [(f"{ELEMENT}.color_palette[0]", False)]),
        (with_element(color_palette=[7]), [(f"{ELEMENT}.color_palette[0]", False)]),
        (with_style(**PHOTO, art_style="x"), [("style_description", False)]),
        (with_style(aesthetics="a", lighting="b", medium="c"), [("style_description", False)]),
        (
            with_style(aesthetics="a", lighting="b", photo=None, medium="c"),
            [("style_description", False), ("style_description.photo", True)],
        ),
        (
            with_style(aesthetics="a", lighting="b", photo=None, medium="c", art_style="d"),
            [("style_description.photo", True)],
        ),
        (with_style(lighting="b", medium="c", art_style="d"), [("style_description.aesthetics", False)]),
        (with_style(aesthetics="a", lighting="b", art_style="d", medium="c"), [("style_description", True)]),
        (with_style(**PHOTO, color_palette=["#000000"] * 17), [("style_description.color_palette", False)]),
    ],
)
def test_each_breach_is_found_alone_in_its_place(data, expected):
    assert breaches(data) == expected


def test_all_breaches_are_listed_at_once_in_the_order_of_the_schema():
    data = with_style(aesthetics="a")
    data["compositional_deconstruction"]["elements"] = [{"type": "obj"}, {"type": "text", "desc": "b", "bbox": [1]}]
    assert [path for path, _ in breaches(data)] == [
        "style_description",
        "style_description.lighting",
        "style_description.medium",
        "compositional_deconstruction.elements[0].desc",
        "compositional_deconstruction.elements[1]",
        "compositional_deconstruction.elements[1].bbox",
        "compositional_deconstruction.elements[1].text",
    ]


def test_a_breach_tells_what_was_given_what_is_allowed_and_what_to_do():
    (breach,) = Caption.parse(with_element(color_palette=["#f00"])).check()
    assert str(breach) == (
        f"{ELEMENT}.color_palette[0]: is '#f00', where upper-case #RRGGBB is expected; write #FF0000"
    )


@pytest.mark.parametrize("again", ['"b"', "3", "null"])
def test_a_key_repeated_with_another_value_is_found_and_both_values_stay(again):
    line = f'{{"compositional_deconstruction":{{"background":"a","background":{again},"elements":[]}}}}'
    assert breaches(line) == [("compositional_deconstruction.background", False)]
    repaired = Caption.parse(line).repair()
    assert repaired.line() == Caption.parse(line).line() == line
    assert breaches(repaired.line()) == [("compositional_deconstruction.background", False)]


def test_a_key_repeated_with_the_same_value_is_mended():
    line = '{"compositional_deconstruction":{"background":"a","background":"a","elements":[]}}'
    assert breaches(line) == [("compositional_deconstruction.background", True)]
    assert Caption.parse(line).repair().line() == line.replace('"background":"a",', "", 1)


def test_a_part_changed_after_building_is_checked_as_it_now_is():
    caption = Caption.parse(with_element())
    caption.compositional_deconstruction.elements.append({"type": "obj", "desc": "a cup", "bbox": [-9, 0, 1, 5]})
    assert breaches(caption) == [("compositional_deconstruction.elements[1].bbox", True)]
    assert caption.repair().compositional_deconstruction.elements[1].bbox == (0, 0, 1, 5)


def test_a_copy_with_another_value_is_checked_and_written_with_it():
    caption = Caption.parse({"high_level_description": 3, "style_description": "art", **with_element()})
    style = Style(**PHOTO)
    changed = caption.model_copy(update={"style_description": style, "high_level_description": None})
    assert changed.check() == []
    assert changed.line() == Caption.parse(with_style(**PHOTO)).line()
    assert breaches(changed.model_copy(update={"style_description": 3})) == [("style_description", False)]
    assert changed.style_description == style


def test_a_caption_with_breaches_survives_pickling_with_all_that_was_given():
    caption = Caption.parse('{"mood":"calm","mood":"wild"}')
    assert pickle.loads(pickle.dumps(caption)) == caption
    assert pickle.loads(pickle.dumps(caption)).line() == caption.line() == '{"mood":"calm","mood":"wild"}'


# Repair


@pytest.mark.parametrize(
    ("fields", "mended"),
    [
        ({"bbox": [900, 800, 0, 100]}, {"bbox": [0, 100, 900, 800]}),
        ({"bbox": [-5, 0.0, 1000, 100]}, {"bbox": [0, 0, 1000, 100]}),
        ({"color_palette": ["#f0a", "00ff00", "#1A2B3C"]}, {"color_palette": ["#FF00AA", "#00FF00", "#1A2B3C"]}),
        ({"color_palette": []}, {}),
        ({"color_palette": None}, {}),
    ],
)
def test_what_is_certain_is_mended(fields, mended):
    expected = with_element(**mended)
    assert Caption.parse(with_element(**fields)).repair().data() == expected


def test_keys_are_put_in_order_everywhere():
    element = {"color_palette": ["#000000"], "desc": "a", "text": "b", "bbox": [0, 0, 9, 9], "type": "text"}
    style = {"medium": "m", "photo": "p", "lighting": "l", "aesthetics": "a"}
    data = {"compositional_deconstruction": {"elements": [element], "background": "g"}, "style_description": style}
    line = Caption.parse(data).repair().line()
    assert (
        line
        == Caption.parse(data).line()
        == (
            '{"style_description":{"aesthetics":"a","lighting":"l","photo":"p","medium":"m"},"compositional_deconstruction":'
            '{"background":"g","elements":[{"type":"text","bbox":[0,0,9,9],"text":"b","desc":"a",'
            '"color_palette":["#000000"]}]}}'
        )
    )


@settings(max_examples=200)
@given(mutated())
def test_repair_mends_all_that_is_certain_and_adds_no_breach(data):
    before = copy.deepcopy(data)
    caption = Caption.parse(data)
    repaired = caption.repair()
    left = [(b.path, b.message) for b in repaired.check()]
    assert left == [(b.path, b.message) for b in caption.check() if not b.certain]
    assert repaired.repair().line() == repaired.line()
    assert repr(data) == repr(before)


@settings(max_examples=200)
@given(with_repeated_keys())
def test_what_is_repeated_and_not_certain_is_neither_mended_nor_lost(source):
    caption = Caption.parse(source)
    repaired = caption.repair()
    left = [(b.path, b.message) for b in caption.check() if not b.certain]
    assert [(b.path, b.message) for b in repaired.check()] == left
    assert [(b.path, b.message) for b in Caption.parse(repaired.line()).check()] == left
    assert Caption.parse(caption.line()).line() == caption.line()


@settings(max_examples=200)
@given(mutated())
def test_any_caption_far_off_the_schema_still_has_a_line_that_keeps_every_value(data):
    line = Caption.parse(data).line()
    assert "\n" not in line

    def leaves(value):
        if isinstance(value, dict):
            return sorted((repr(k), leaves(v)) for k, v in value.items())
        return [leaves(v) for v in value] if isinstance(value, list) else repr(value)

    if not any(b.message == "is null" for b in Caption.parse(data).check()):
        assert leaves(json.loads(line)) == leaves(data)


# Reading


def test_files_are_read_with_or_without_a_byte_order_mark(tmp_path):
    line = Caption.parse(with_element(desc="Überraschung 🎈")).line()
    for name, encoding in (("a.json", "utf-8"), ("b.json", "utf-8-sig")):
        (tmp_path / name).write_text(line, encoding=encoding)
        assert Caption.parse(tmp_path / name).line() == line
        assert Caption.parse(str(tmp_path / name)).line() == line


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a red circle", "plain text 'a red circle', not a JSON object.*Caption.from_text"),
        ("absent.json", "absent.json: No such file"),
        ('{"a":1 "b":2}', "is no JSON: expected a comma or '}' at line 1, column 8"),
        ('{"a":[1,\n 2}', "is no JSON: expected a comma or ']' at line 2, column 3"),
        ('{"a":"x\\q"}', "is no JSON: invalid .escape at line 1"),
        ('{"a":"b', "is no JSON: it ends before its last bracket, as if it had been cut off"),
        ("", "empty, not a JSON object"),
        ("[1, 2]", "a JSON list of 2, not one caption"),
        ('"text"', "not a JSON object"),
        ('{"a":' * 100_000, "nested too deeply|no JSON"),
        ('{"a":' + "[" * 500 + "]" * 500 + "}", "nested 501 levels deep, where 64 are allowed"),
        ('{"a":' + "[" * 500 + "]" * 500 + ',"a":1}', "nested 501 levels deep"),
        ('{"a":' + "9" * 5000 + "}", "a number of 5000 digits is too long at line 1, column 6"),
    ],
)
def test_what_is_no_caption_is_refused_with_a_reason(source, message):
    with pytest.raises(CaptionError, match=message):
        Caption.parse(source)


@pytest.mark.parametrize("value", [{1, 2}, b"a", object(), {(1, 2): 3}, [10**5000]])
def test_a_mapping_that_json_cannot_hold_is_refused(value):
    with pytest.raises(CaptionError, match="holds what JSON cannot"):
        Caption.parse({**with_element(), "extra": value})


def test_a_mapping_that_holds_itself_is_refused():
    data = with_element()
    data["extra"] = data
    with pytest.raises(CaptionError, match="holds what JSON cannot"):
        Caption.parse(data)


def test_mappings_parts_and_arrays_inside_a_mapping_are_read_as_what_they_are():
    element = ObjectElement(bbox=(100, 200, 300, 400), desc="a cup")
    arrays = {"type": "obj", "bbox": np.array([100, 200, 300, 400]), "desc": "a cup"}
    numbers = {"type": "obj", "bbox": [np.int64(100), np.float32(200), 300, 400], "desc": "a cup"}
    for given_element in (element, arrays, MappingProxyType(arrays), numbers):
        data = {
            "compositional_deconstruction": MappingProxyType({"background": "a table", "elements": [given_element]})
        }
        assert Caption.parse(data).repair() == Caption.parse(with_element())


def test_parsing_copies_what_it_is_given():
    data = with_element(bbox=[1])
    caption = Caption.parse(data)
    line = caption.line()
    data["compositional_deconstruction"]["elements"].clear()
    caption.data().clear()
    assert caption.line() == line


def test_files_of_another_encoding_and_other_types_are_refused(tmp_path):
    (tmp_path / "latin.json").write_bytes(b'{"a":"\xe4"}')
    with pytest.raises(CaptionError, match="not UTF-8"):
        Caption.parse(tmp_path / "latin.json")
    with pytest.raises(FileNotFoundError):
        Caption.parse(tmp_path / "absent.json")
    with pytest.raises(TypeError, match="`source` is a int"):
        Caption.parse(3)  # type: ignore[arg-type]


def test_plain_text_is_wrapped_into_a_right_caption():
    caption = Caption.from_text("a red\n circle ")
    assert caption.check() == []
    assert caption.high_level_description == "a red circle"
    with pytest.raises(CaptionError, match="`text` is empty"):
        Caption.from_text("  ")
    with pytest.raises(CaptionError, match="surrogate"):
        Caption.from_text("a \ud83d")
    with pytest.raises(TypeError, match="`text` is a int"):
        Caption.from_text(3)  # type: ignore[arg-type]


@settings(max_examples=300)
@given(misspelt() | st.text(max_size=40).map("{{{}".format))
def test_any_string_is_parsed_or_refused_as_a_caption(source):
    with contextlib.suppress(CaptionError):
        caption = Caption.parse(source)
        caption.repair()
        assert isinstance(caption.check(), list)
        assert Caption.parse(caption.line()).line() == caption.line()
        caption.line().encode()


def test_strict_lists_every_breach():
    with pytest.raises(CaptionError, match=r"2 places:\n.*bbox.*\n.*color_palette") as caught:
        Caption.parse(with_element(bbox=[1], color_palette=["red"])).strict()
    assert len(caught.value.breaches) == 2


# What the model reads


def quietly(prompt, **options) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return prompt_line(prompt, **options)


def test_right_prompts_pass_in_silence():
    caption = Caption.parse(with_element())
    assert quietly(caption) == quietly(with_element()) == quietly(caption.line()) == caption.line()
    assert quietly(caption.line(), strict=True) == caption.line()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a red circle", "plain text"),
        (json.dumps(with_element(), indent=1), "canonical form"),
        (json.dumps(with_element(bbox=[1])), "elements\\[0\\].bbox"),
        ('{"broken', "no JSON"),
    ],
)
def test_other_strings_pass_unchanged_with_a_warning(prompt, message):
    with pytest.warns(CaptionWarning, match=message):
        assert prompt_line(prompt) == prompt


def test_a_caption_with_breaches_is_warned_about_and_refused_when_strict():
    wrong = with_element(color_palette=["red"])
    with pytest.warns(CaptionWarning, match="'red'"):
        assert '"red"' in prompt_line(wrong)
    for prompt in (wrong, json.dumps(wrong), "plain", '{"broken'):
        with pytest.raises(CaptionError):
            prompt_line(prompt, strict=True)


def test_half_a_surrogate_pair_is_escaped_in_the_line_and_reported():
    data = with_element(desc="a \ud83d", text="b")
    caption = Caption.parse(data)
    assert r'"desc":"a \ud83d"' in caption.line()
    assert breaches(caption.line()) == breaches(data) == [(f"{ELEMENT}.desc", False), (f"{ELEMENT}.text", False)]
    with pytest.warns(CaptionWarning, match="surrogate"):
        prompt_line(data).encode()
    with pytest.raises(CaptionError, match="surrogate"):
        ObjectElement(desc="a \ud83d")


@pytest.mark.parametrize("prompt", [3, None, ["a"], b"{}"])
def test_a_prompt_of_another_type_is_refused(prompt):
    with pytest.raises(TypeError, match="`prompt` is a"):
        prompt_line(prompt)


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(CaptionError, match="surrogate"):
        prompt_line("{\ud800")


def test_the_json_schema_describes_what_the_check_accepts():
    schema = Caption.model_json_schema()
    assert schema["required"] == ["compositional_deconstruction"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Style"]["oneOf"] == [
        {"required": ["photo"], "properties": {"photo": {"type": "string"}}},
        {"required": ["art_style"], "properties": {"art_style": {"type": "string"}}},
    ]
    assert schema["$defs"]["ObjectElement"]["required"] == ["type", "desc"]
    assert schema["$defs"]["TextElement"]["required"] == ["type", "text", "desc"]
    assert list(schema["$defs"]["TextElement"]["properties"]) == ["type", "bbox", "text", "desc", "color_palette"]


@pytest.mark.parametrize("box", [[0.0, 0.0, 1.0, 1.0], [0, 0, 1.0, 0.5], [0, 0, 1, 1.0]])
def test_a_box_in_shares_of_the_picture_is_not_taken_for_thousandths(box):
    caption = Caption.parse(with_element(bbox=box))
    [breach] = [breach for breach in caption.check() if breach.path.endswith("bbox")]
    assert not breach.certain and "multiply by 1000" in breach.fix
    assert caption.repair().data()["compositional_deconstruction"]["elements"][0]["bbox"] == box
