"""What is made of a client's prompt: captions as sent, mended or restored, and words; never a silent wrong reading."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ideoflow.captions import Caption, CaptionError
from ideoflow.captions.sent_prompt import read_prompt
from ideoflow.captions.writing import Written

RIGHT: dict[str, Any] = {
    "high_level_description": "A cup under a sign, at noon.",
    "style_description": {
        "aesthetics": "calm; clear: no people",
        "lighting": "soft",
        "medium": "print",
        "art_style": "woodcut",
        "color_palette": ["#0A0B0C", "#FF0000"],
    },
    "compositional_deconstruction": {
        "background": "",
        "elements": [
            {"type": "obj", "bbox": [100, 200, 300, 400], "desc": "a cat's cup", "color_palette": ["#FF0000"]},
            {"type": "text", "bbox": [500, 0, 600, 1000], "text": "OPEN 9:30", "desc": "neon letters"},
            {"type": "obj", "desc": "a cup without a place"},
        ],
    },
}
LINE = Caption.parse(RIGHT).line()


def stripped(prompt: str) -> str:
    """A prompt as LibreChat sends it on."""
    return re.sub(r"\r\n|\r|\n", " ", prompt).replace('"', "").strip()


def changed(**changes: Any) -> str:
    """The line of the right caption with texts of it changed."""
    data = json.loads(LINE)
    for key, value in changes.items():
        data["compositional_deconstruction"]["elements"][0 if key == "desc" else 1][key] = value
    return Caption.parse(data).line()


# Captions that come whole


@pytest.mark.parametrize(
    ("prompt", "was"),
    [
        (RIGHT, "json"),
        (LINE, "json"),
        (json.dumps(RIGHT, indent=2), "json"),
        (json.dumps(RIGHT, ensure_ascii=True), "json"),
        (f"```json\n{json.dumps(RIGHT, indent=2)}\n```", "repaired"),
        (f"Draw this, please:\n\n{LINE}\n\nThank you!", "repaired"),
        (json.dumps(LINE), "repaired"),
        (json.dumps({"prompt": RIGHT}), "repaired"),
        (LINE[:-1] + ",}", "repaired"),
        (repr(RIGHT).replace('"a cat\'s cup"', r"'a cat\'s cup'"), "repaired"),
        (dict(reversed(RIGHT.items())), "repaired"),
        ({**RIGHT, "aspect_ratio": "16:9"}, "repaired"),
    ],
)
def test_a_caption_is_drawn_as_its_canonical_line(prompt: Any, was: str):
    read = read_prompt(prompt)
    assert (read.line, read.caption, read.was) == (LINE, RIGHT, was)
    assert bool(read.warnings) == (was == "repaired")


def test_the_line_is_a_revision_only_where_it_is_not_what_was_sent():
    assert read_prompt(LINE).revised is None
    assert read_prompt(RIGHT).revised is None
    assert read_prompt(json.dumps(RIGHT, indent=2)).revised == LINE


def test_what_still_breaks_the_schema_is_drawn_and_told():
    data = json.loads(LINE)
    data["compositional_deconstruction"]["elements"][0]["bbox"] = [300, 200, 100, 400]
    read = read_prompt(data)
    assert read.was == "json" and read.caption == data
    assert any(warning.startswith("compositional_deconstruction.elements[0].bbox: ") for warning in read.warnings)


def test_keys_that_are_not_the_schemas_are_left_out_if_asked():
    data = {**RIGHT, "mood": "quiet"}
    assert read_prompt(data).caption == data
    assert read_prompt(data, drop_unknown=True).caption == RIGHT


# Words


@pytest.mark.parametrize("words", ["a red circle", "a cat.png", "/etc/passwd", "24", "null", "a {curly} [thing]: x, y"])
def test_words_become_a_minimal_caption(words: str):
    read = read_prompt(words)
    assert read.was == "wrapped" and read.warnings == ()
    assert read.line == read.revised == Caption.from_text(words).line()


def test_words_are_given_to_the_caption_writer_where_there_is_one():
    def write(words: str, size: tuple[int, int] | None) -> Written:
        return Written(Caption.parse({**RIGHT, "high_level_description": f"{words} of {size}"}), "me", ("no cups",))

    read = read_prompt("a cup", write=write, size=(32, 64))
    assert (read.was, read.caption["high_level_description"]) == ("written", "a cup of (32, 64)")
    assert read.warnings == ("the caption was written by me", "no cups")
    assert read_prompt(LINE, write=write).was == "json"
    assert read.revised == read.line


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        (LINE[:-40], "ends before its last bracket"),
        (LINE + LINE.replace("OPEN", "SHUT"), "2 captions"),
        ('{"shape": "circle"}', "is no caption"),
        ({"shape": "circle"}, "is no caption"),
        ({}, "is no caption"),
        ("a cup \ud800", "surrogate"),
        (LINE.replace("OPEN", r"\ud800"), "surrogate"),
        ({**RIGHT, "high_level_description": "\ud800"}, "surrogate"),
        (LINE.replace("[100", "[NaN"), "NaN"),
        ({**RIGHT, "high_level_description": float("inf")}, "NaN"),
        ("{" + '"a":{' * 100 + "}" * 101, "nested"),
    ],
)
def test_what_cannot_be_read_is_refused(prompt: Any, message: str):
    with pytest.raises(CaptionError, match=message):
        read_prompt(prompt)


# Captions whose quotation marks were lost on the way


@pytest.mark.parametrize(
    "sent",
    [
        LINE,
        json.dumps(RIGHT),
        json.dumps(RIGHT, indent=2),
        json.dumps(RIGHT, indent="\t").replace("\n", "\r\n"),
        f"```json\n{json.dumps(RIGHT, indent=4)}\n```",
        json.dumps(dict(reversed(RIGHT.items()))),
        LINE.replace("#0A0B0C", "#0a0b0c"),
    ],
)
def test_a_caption_without_its_quotation_marks_is_restored(sent: str):
    read = read_prompt(stripped(sent))
    assert (read.caption, read.line, read.was, read.revised) == (RIGHT, LINE, "repaired", LINE)
    assert "quotation marks" in read.warnings[0]


def test_nulls_for_what_may_be_left_out_are_certain():
    data = json.loads(LINE)
    data["compositional_deconstruction"]["elements"][2] |= {"bbox": None, "color_palette": None}
    assert read_prompt(stripped(json.dumps(data))).caption == RIGHT


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (changed(text="SUMMER\nSALE"), "'\\\\\\\\'"),  # or a quotation mark before an n
        (changed(text='"SALE"'), "'\\\\\\\\'"),
        (changed(desc="a cup [blue]"), "'\\['"),
        (changed(desc="a cup } of tea"), "expected a comma"),
        (changed(desc="a cup,desc:blue"), "stands twice"),
        (changed(desc="a cup,colour:blue"), "may be a key"),
        (changed(desc="null"), "`null`"),
        (changed(desc="'a cup'"), "may belong to a text"),
        (LINE[:-1], "expected a comma or a brace"),
        (f"Draw {LINE}", "expected a brace"),
        (LINE + LINE, "follows its last bracket"),
        (LINE.replace("[100,200,300,400]", "[100,200,300]"), "a box of four numbers"),
        (LINE.replace("[100,200,300,400]", "[300,200,100,400]"), "bbox"),
        (LINE.replace('"obj"', '"thing"'), "type"),
        (json.dumps({**RIGHT, "mood": "quiet"}), "one of high_level_description"),
        (json.dumps({"mood": "quiet", **RIGHT}), "one of high_level_description"),
    ],
)
def test_without_quotation_marks_what_is_not_certain_is_words_with_a_warning(sent: str, reason: str):
    prompt = stripped(sent)
    read = read_prompt(prompt)
    assert (read.was, read.line) == ("wrapped", Caption.from_text(prompt).line())
    assert re.search(rf"\(.*{reason}.*\): it was taken for words", read.warnings[0])


def test_bare_keys_with_single_quotation_marks_are_no_loss():
    prompt = re.sub(r"'(\w+)':", r"\1:", repr(RIGHT).replace('"a cat\'s cup"', "'a cup'"))
    assert read_prompt(prompt).line == changed(desc="a cup")


# Words of which texts are made: what could be taken for structure, and what is left of what was taken away.
PIECES = [
    *"{}[]:,\"\\ \n'",
    *("a cup", "null", "x", "#FF0000", "12", "“", "é", "\u2028", "\x00", "n", "u0041", "```", "type", "obj", "unknown"),
    *("text", "desc", "bbox", "background", "elements", "photo", "art_style", "medium", "lighting", "color_palette"),
    *("high_level_description", "style_description", "compositional_deconstruction"),
    *(",desc:", ", medium: ", ",art_style:x", "{background:,elements:[]}", "},", "}]}}", ",{type:obj,desc:"),
]
# A part of a caption in a text: without quotation marks nobody can tell it from a part of the caption.
PART = re.compile(
    r",\s*(color_palette|bbox|style_description)\s*:\s*[\[{n]|\}\s*,\s*\{\s*(type|bbox|text|desc|color_palette)\s*:"
)
texts = st.lists(st.sampled_from(PIECES), max_size=5).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
palettes = st.lists(st.integers(0, 0xFFFFFF).map("#{:06X}".format), min_size=1, max_size=3)
edges = st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted)


@st.composite
def captions(draw: st.DrawFn) -> Caption:
    def element() -> dict[str, Any]:
        one: dict[str, Any] = {"type": draw(st.sampled_from(["obj", "text"])), "desc": draw(texts)}
        if one["type"] == "text":
            one["text"] = draw(texts)
        if draw(st.booleans()):
            (top, bottom), (left, right) = draw(edges), draw(edges)
            one["bbox"] = [top, left, bottom, right]
        return one | ({"color_palette": draw(palettes)} if draw(st.booleans()) else {})

    data: dict[str, Any] = {"high_level_description": draw(texts)} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        style = {key: draw(texts) for key in ("aesthetics", "lighting", "medium")}
        style[draw(st.sampled_from(["photo", "art_style"]))] = draw(texts)
        data["style_description"] = style | ({"color_palette": draw(palettes)} if draw(st.booleans()) else {})
    elements = [element() for _ in range(draw(st.integers(0, 3)))]
    data["compositional_deconstruction"] = {"background": draw(texts), "elements": elements}
    return Caption.parse(data).repair()


def bare(background: str, **more: Any) -> Caption:
    return Caption.parse({**more, "compositional_deconstruction": {"background": background, "elements": []}}).repair()


@settings(max_examples=150, deadline=None)
@given(captions(), st.sampled_from([None, 1, 2]))
@example(bare("null", high_level_description="null"), None)
@example(bare("12"), None)
@example(bare("'x {y}'", high_level_description="'x"), None)
@example(bare("x'", high_level_description="'A"), None)
@example(bare("x,high_level_description:y"), None)
@example(bare("x", high_level_description="```"), 1)
@example(
    bare("x", style_description={"aesthetics": "a", "lighting": "b", "photo": ",art_style:x", "medium": "m"}), None
)
def test_a_stripped_caption_is_read_as_itself_or_as_words_and_never_as_another(caption: Caption, indent: int | None):
    line = caption.line() if indent is None else json.dumps(caption.data(), indent=indent, ensure_ascii=False)
    sent = stripped(line)
    try:
        read = read_prompt(sent)
    except CaptionError:
        return  # refused
    if read.was == "wrapped":
        assert "quotation marks" in read.warnings[0]
    elif indent is None:
        assert read.line == caption.line() or PART.search(sent_texts(caption))
    else:  # spaces at the edges of a text cannot be told from those around it
        assert trimmed(read.caption) == trimmed(caption.data()) or PART.search(sent_texts(caption))


def sent_texts(caption: Caption) -> str:
    """All texts of a caption, each as it is sent."""
    found: list[str] = []

    def collect(value: Any) -> None:
        if isinstance(value, str):
            found.append(stripped(json.dumps(value, ensure_ascii=False)))
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            collect(inner)

    collect(caption.data())
    return "\0".join(found)


def trimmed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: trimmed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [trimmed(inner) for inner in value]
    return value.strip() if isinstance(value, str) else value


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, "{high_level_description:", "}" * 3]), max_size=12).map("".join))
def test_any_text_is_read_or_refused(text: str):
    try:
        read = read_prompt(text)
    except CaptionError:
        return
    json.dumps(read.caption, allow_nan=False).encode()
    read.line.encode()


@pytest.mark.parametrize("filler", [" ", ",", "{", "}", "\\", ", a:", "{high_level_description:", "```", "["])
def test_long_texts_are_read_in_linear_time(filler: str):
    long = "{high_level_description:" + filler * (100_000 // len(filler)) + "x"
    with suppress(CaptionError):
        read_prompt(long)
