"""The line that is trained on: that which `ideoflow generate` draws from the same file, and no guess in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ideoflow.captions import Caption
from ideoflow.cli.prompts import Reader
from ideoflow.training.dataset import scan
from ideoflow.training.lines import line_of
from ideoflow.training.precheck import preview_line
from ideoflow.training.survey import UnusableError

CUP = {"type": "obj", "bbox": [100, 200, 300, 400], "desc": "a cup"}
DATA = {"compositional_deconstruction": {"background": "a table", "elements": [CUP]}}
LINE = Caption.parse(DATA).line()


def with_box(box: object) -> dict:
    return {"compositional_deconstruction": {"background": "a table", "elements": [{**CUP, "bbox": box}]}}


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("ending", [".txt", ".json", ".caption"])
@pytest.mark.parametrize(
    "text",
    [
        "a cup on\n a table ",
        LINE,
        f"```json\n{LINE}\n```",
        f"<think>a cup</think>\nHere: {LINE}",
        LINE.replace("}", ",}"),
        LINE.replace('"', "“"),
        json.dumps({"aspect_ratio": "1:1", **DATA}),
        json.dumps(with_box([600, 500, 200, 100])),
        json.dumps(with_box([100, 200, 1800, 1900])),
        json.dumps({"prompt": DATA}),
        LINE.replace('"desc"', '"description"'),
        LINE[:-3],
        json.dumps(DATA["compositional_deconstruction"]),
        '{"title": "a cup"}',
        f"```{LINE[:-3]}```",
    ],
)
def test_a_file_trains_what_it_draws_or_both_refuse_it(tmp_path: Path, text: str, ending: str, wrap: bool):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    (tmp_path / f"a{ending}").write_text(text)
    trained = [example.caption for example in scan(tmp_path, wrap=wrap).examples]
    try:
        drawn = [prompt.text for prompt in Reader(wrap=wrap).read(str(tmp_path / f"a{ending}"))]
    except ValueError:
        drawn = []
    assert [" ".join(line.split()) for line in drawn] == trained


@pytest.mark.parametrize(
    "box", [[600, 500, 200, 100], [100, 200, 1800, 1900], [0.1, 0.2, 0.3, 0.4], [0, 0, 1000, 1010]]
)
def test_a_box_that_may_be_in_another_form_is_not_guessed_but_reported(box: list[float]):
    line, notes = line_of(with_box(box))
    assert json.loads(line) == with_box(box)
    assert len(notes) == 1 and "breaks the schema at compositional_deconstruction.elements[0].bbox" in notes[0]


def test_what_was_done_to_a_caption_is_noted():
    assert line_of(f"Here: {LINE}") == (LINE, ["the caption stands in other text; this was mended."])
    line, notes = line_of(LINE.replace('"desc"', '"description"'))
    assert line == LINE and notes == ["the caption was repaired (`ideoflow caption check` tells how)."]
    line, (note,) = line_of("a cup")
    assert line == Caption.from_text("a cup").line() and "`wrap`" in note
    line, (note,) = line_of("a  cup", wrap=False)
    assert line == "a cup" and "as it is" in note


@pytest.mark.parametrize(
    ("caption", "says"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ({}, "empty"),
        ({"title": "a cup"}, "it has none of high_level_description"),
        (7, "it is a int, neither text nor a JSON object"),
        ([DATA], "it is a list"),
        ("[1, 2]", "a JSON list of 2"),
        ('{"a": ', "it is no JSON"),
        (LINE.replace("[100", f"[{'1' * 4301}"), "a number of 4301 digits is too long"),
        (LINE.replace("[100", "[" * 5000), "nested too deeply"),
        ({"a": {1, 2}}, "holds what JSON cannot"),
        ("a \ud83d cup", "half of a surrogate pair"),
    ],
)
def test_a_caption_that_cannot_be_used_has_one_reason(caption: object, says: str):
    with pytest.raises(UnusableError, match=says):
        line_of(caption)


def test_previews_take_files_and_prompts_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(f"```\n{LINE}\n```")
    assert preview_line("a.json", True) == preview_line(LINE, False) == LINE
    assert preview_line("a cup", True) == Caption.from_text("a cup").line()
    assert preview_line("a cup", False) == "a cup"
    with pytest.raises(ValueError, match=r"`previews`: b\.json: No such file or directory"):
        preview_line("b.json", True)
    with pytest.raises(ValueError, match=r"`previews` .*list of 2"):
        preview_line("[1, 2]", True)
