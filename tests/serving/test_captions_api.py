"""The routes that check and repair captions: what `captions/` finds, with its places."""

from __future__ import annotations

import json

import pytest

from ideoflow.captions import Caption

RIGHT = {
    "compositional_deconstruction": {
        "background": "a wall",
        "elements": [{"type": "obj", "bbox": [100, 200, 300, 400], "desc": "a cup", "color_palette": ["#FF0000"]}],
    }
}
LINE = Caption.parse(RIGHT).line()


def broken(**changes):
    data = json.loads(LINE)
    data["compositional_deconstruction"]["elements"][0].update(changes)
    return data


def ask(server, route, caption, **fields):
    body = json.dumps({"caption": caption, **fields})
    answer = server.http.post(f"/v1/captions/{route}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("caption", [RIGHT, LINE, json.dumps(RIGHT, indent=2)])
def test_a_right_caption_is_valid(server, caption):
    found = ask(server, "check", caption)
    assert (found["valid"], found["breaches"], found["caption"]) == (True, [], RIGHT)
    assert 20 < found["tokens"] < len(LINE) + 100


@pytest.mark.parametrize(
    ("caption", "path", "repairable"),
    [
        (broken(color_palette=["red"]), "compositional_deconstruction.elements[0].color_palette[0]", True),
        (broken(bbox=[300, 200, 100, 400]), "compositional_deconstruction.elements[0].bbox", False),
        (broken(mood="calm"), "compositional_deconstruction.elements[0].mood", False),
        ({"high_level_description": "a cup"}, "compositional_deconstruction", False),
        (f"```json\n{LINE}\n```", "", True),
        (LINE.replace('"', ""), "", True),
        ("a cup", "", True),
        (LINE[:-2], "", False),
        ({**RIGHT, "high_level_description": "\ud800"}, "", False),
    ],
)
def test_every_breach_has_its_place_and_whether_it_can_be_repaired(server, caption, path, repairable):
    found = ask(server, "check", caption)
    assert not found["valid"]
    assert [(breach["path"], breach["repairable"]) for breach in found["breaches"]] == [(path, repairable)]
    assert found["breaches"][0]["message"] and found["breaches"][0]["fix"]


def test_places_are_those_that_the_caption_itself_tells(server):
    caption = broken(bbox=[300, 200, 100, 400], color_palette=["red"], description="x", id=4)
    told = [(breach["path"], breach["message"]) for breach in ask(server, "check", caption)["breaches"]]
    assert told == [(breach.path, breach.message) for breach in Caption.parse(caption).check()]


@pytest.mark.parametrize(
    "caption",
    [broken(color_palette=["red"]), f"Here:\n{LINE}", LINE.replace('"', ""), broken(id=3), broken(type="Object")],
)
def test_what_is_certain_is_repaired_and_told(server, caption):
    repaired = ask(server, "repair", caption)
    assert (repaired["line"], repaired["caption"], repaired["breaches"]) == (LINE, RIGHT, [])
    assert len(repaired["changes"]) == 1


def test_what_only_its_author_knows_is_left_and_listed(server):
    repaired = ask(server, "repair", broken(bbox=[300, 200, 100, 400], color_palette=["red"]))
    assert [breach["path"] for breach in repaired["breaches"]] == ["compositional_deconstruction.elements[0].bbox"]
    assert len(repaired["changes"]) == 1


def test_unknown_keys_are_left_out_if_asked(server):
    assert ask(server, "repair", broken(mood="calm"))["caption"] == broken(mood="calm")
    assert ask(server, "repair", broken(mood="calm"), drop_unknown=True)["caption"] == RIGHT


def test_words_become_a_minimal_caption(server):
    repaired = ask(server, "repair", "a red  circle")
    assert repaired["line"] == Caption.from_text("a red circle").line()
    assert repaired["changes"] == ["the caption: wrapped plain text into a minimal caption"]


@pytest.mark.parametrize("caption", [LINE[:-2], f"{LINE}{LINE.replace('cup', 'jug')}"])
def test_what_cannot_be_read_is_refused(server, caption):
    answer = server.http.post("/v1/captions/repair", json={"caption": caption})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_caption"


@pytest.mark.parametrize(
    "body", [{}, {"caption": 3}, {"caption": []}, {"caption": ""}, {"caption": " "}, {"caption": "x", "strict": True}]
)
def test_bodies_of_another_form_are_refused(server, body):
    assert server.http.post("/v1/captions/check", json=body).status_code == 400


def test_numbers_that_are_none_never_reach_an_answer(server):
    body = '{"caption": ' + json.dumps(broken(bbox=[1, 2, float("nan"), 4])) + "}"
    for route in ("check", "repair"):
        answer = server.http.post(f"/v1/captions/{route}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400) and "NaN" not in answer.text.replace("such as NaN", "")
