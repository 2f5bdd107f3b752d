"""The table of docs/captions.md, line by line: what is repaired, what is only said, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ideoflow.captions import Caption, CaptionError
from ideoflow.captions.lint import lint
from ideoflow.captions.unquoted import restore

CUP = {"type": "obj", "bbox": [500, 300, 900, 700], "desc": "a white cup", "color_palette": ["#FAFAFA"]}
OPEN = {"type": "text", "bbox": [100, 200, 300, 800], "text": "OPEN", "desc": "red letters"}
RIGHT: dict[str, Any] = {
    "style_description": {"aesthetics": "calm", "lighting": "soft", "medium": "print", "art_style": "woodcut"},
    "compositional_deconstruction": {"background": "a wall", "elements": [CUP, OPEN]},
}
LINE = Caption.parse(RIGHT).line()


def cup(**changes: Any) -> dict[str, Any]:
    return changed({**CUP, **changes})


def changed(*elements: dict[str, Any], **more: Any) -> dict[str, Any]:
    data = json.loads(LINE)
    data["compositional_deconstruction"]["elements"] = [*elements, OPEN]
    return {**data, **more}


REPAIRED = {
    "fence": f"```json\n{LINE}\n```",
    "words around": f"Here is your caption:\n{LINE}\nEnjoy!",
    "thinking": f"<think>a cup, a sign</think>\n{LINE}",
    "trailing commas": LINE.replace("}]}}", "},],},}"),
    "comments": LINE.replace('"compositional', '/* what is where */ "compositional', 1) + " // done",
    "smart quotes": LINE.replace('{"', "{\u201c").replace('":', "\u201d:").replace(',"', ",\u201c"),
    "single quotes": repr(RIGHT),
    "bare keys": LINE.replace('"style_description":', "style_description:").replace('"type":', "type:"),
    "a list of one": f"[{LINE}]",
    "under a key": json.dumps({"prompt": RIGHT}),
    "a string of JSON": json.dumps(LINE),
    "order of keys": json.dumps(dict(reversed(RIGHT.items()))),
    "null": json.dumps({**RIGHT, "high_level_description": None}),
    "photo beside art style": json.dumps(
        {**RIGHT, "style_description": {**RIGHT["style_description"], "photo": ""}}
    ),
    "other names": json.dumps(changed({"type": "object", "bbox": CUP["bbox"], "description": CUP["desc"],
                                       "colors": CUP["color_palette"]})),
    "keys of programs": json.dumps({**RIGHT, "aspect_ratio": "16:9", "canvas": {"width": 3}}),
    "floats": json.dumps(cup(bbox=[500.0, 300.0, 900.0, 700.0])),
    "a box as a string": json.dumps(cup(bbox="500, 300, 900, 700")),
    "named edges": json.dumps(cup(bbox={"x_min": 300, "y_min": 500, "x_max": 700, "y_max": 900})),
    **{f"colour {value}": json.dumps(cup(color_palette=[value])) for value in
       ("#fafafa", "FAFAFA", "rgb(250, 250, 250)")},
    "colours in a string": json.dumps(cup(color_palette="#fafafa")),
}  # fmt: skip


@pytest.mark.parametrize("given", REPAIRED.values(), ids=REPAIRED)
def test_what_is_certain_is_repaired_and_told(given: str):
    caption = Caption.parse(given)
    repaired, done = caption.mended()
    assert repaired.line() == LINE and repaired.check() == []
    assert done and all(breach.done for breach in done)
    assert [breach.certain for breach in caption.check()] == [True] * len(done)


def test_a_name_of_a_colour_is_its_colour():
    repaired, done = Caption.parse(cup(color_palette=["tomato"])).mended()
    assert "#FF6347" in repaired.line() and "wrote #FF6347 for 'tomato'" in str([one.done for one in done])


def test_stripped_quotation_marks_are_put_back_where_it_is_certain():
    assert restore(LINE.replace('"', "")).line() == LINE
    with pytest.raises(CaptionError, match="may be a key or belong to a text"):
        restore(Caption.parse(cup(desc="a cup,size: large")).line().replace('"', ""))


SAID = {
    "a list for the composition": ({"compositional_deconstruction": [CUP]}, "an object is expected"),
    "a list for a string": (cup(desc=["a cup"]), "a string is expected"),
    "unknown keys": (cup(mood="calm"), "is no key of the schema"),
    "both kinds of style": (
        {**RIGHT, "style_description": {**RIGHT["style_description"], "photo": "35 mm"}},
        "has both `photo` and `art_style`",
    ),
    "a missing description": (changed({"type": "obj"}), "is missing"),
    "a colour without a name": (cup(color_palette=["sunset glow"]), "upper-case #RRGGBB is expected"),
    "swapped corners": (cup(bbox=[900, 700, 500, 300]), "has its corners swapped or is written in another way"),
    "pixels": (cup(bbox=[500, 300, 1900, 1700]), "looks like pixels"),
    "shares": (cup(bbox=[0.5, 0.3, 0.9, 0.7]), "looks like shares"),
    "bbox_2d": (changed({"type": "obj", "bbox_2d": [300, 500, 700, 900], "desc": "a cup"}), "--boxes xyxy"),
    "no area": (cup(bbox=[500, 300, 500, 700]), "encloses nothing"),
}


@pytest.mark.parametrize(("given", "told"), SAID.values(), ids=SAID)
def test_what_only_its_author_knows_is_said_and_kept(given: dict[str, Any], told: str):
    caption = Caption.parse(given)
    assert any(told in str(breach) and not breach.certain for breach in caption.check())
    repaired, _ = caption.mended()
    assert any(told in str(breach) for breach in repaired.check()), "and after repair it still is"


def test_x_first_is_suspected():
    wide = {**OPEN, "bbox": [200, 100, 800, 300]}
    assert any("x may come first" in str(line) for line in lint(Caption.parse(changed(CUP) | {
        "compositional_deconstruction": {"background": "a wall", "elements": [wide]}
    })))  # fmt: skip


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (LINE[:-9], "cut off"),
        (f"{LINE}\n{LINE.replace('cup', 'jug')}", "holds 2 captions"),
        (f"[{LINE}, {LINE.replace('cup', 'jug')}]", "a JSON list of 2"),
        (LINE.replace("a white cup", 'a "white" cup'), "no JSON"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested"),
    ],
)
def test_what_cannot_be_read_in_one_way_is_refused_with_the_reason(given: str, why: str):
    with pytest.raises(CaptionError, match=why):
        Caption.parse(given)
