"""What each prompt of `ideoflow generate` is taken for: a path that is there, a caption, words, or a mistake."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideoflow.captions import Caption, CaptionError, CaptionWarning, prompt_line
from ideoflow.captions.paths import looks_like_path
from ideoflow.cli.prompts import Reader
from ideoflow.pipeline.arguments import lines_of

HEART, STAR = (
    {"compositional_deconstruction": {"background": "plain", "elements": [{"type": "obj", "bbox": box, "desc": desc}]}}
    for box, desc in (([1, 2, 3, 4], "a heart"), ([5, 6, 7, 8], "a star"))
)
LINES = [Caption.parse(one).line() for one in (HEART, STAR)]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("captions").mkdir()
    Path("captions/heart.json").write_text(json.dumps(HEART, indent=1))
    Path("captions/star.json").write_text(json.dumps(STAR))
    Path("captions/notes.md").write_text("not read")
    Path("both.jsonl").write_text("\n".join(LINES) + "\n\n")


def texts(value: str, **options) -> list[str]:
    return [prompt.text for prompt in Reader(**options).read(value)]


# Paths


@pytest.mark.parametrize("value", ["captions", "./captions/", "both.jsonl", str(Path("captions").joinpath("."))])
def test_a_folder_and_a_file_of_lines_give_all_their_captions(value: str):
    assert texts(value) == LINES


def test_each_prompt_is_named_after_its_file():
    assert [prompt.name for prompt in Reader().read("captions")] == ["heart", "star"]
    assert [(prompt.name, prompt.given) for prompt in Reader().read("both.jsonl")] == [
        ("both-1", "both.jsonl:1"),
        ("both-2", "both.jsonl:2"),
    ]


def test_only_line_feeds_end_the_lines_of_a_file_of_captions():
    line = LINES[0].replace("a heart", "a\u2028heart\x85")
    Path("odd.jsonl").write_text(f"{line}\r\n{line}", encoding="utf-8", newline="")
    assert texts("odd.jsonl") == [line, line]


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_pipe_is_read_like_a_file():
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_text(LINES[1]))
    writer.start()
    assert texts("pipe") == [LINES[1]]
    writer.join()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("captions/heart.jsn", "captions/heart.jsn: No such file or directory; did you mean captions/heart.json?"),
        ("captions/hart.json", "did you mean captions/heart.json?"),
        ("captions/heart", "did you mean captions/heart.json?"),
        ("caption/heart.json", "did you mean captions?"),
        ("capitons/", "did you mean captions?"),
        ("both.json", "did you mean both.jsonl?"),
        ("both", "did you mean both.jsonl?"),
        ("./nowhere", "No such file"),
        ("..\\captions\\heart.json", "No such file"),
        ("/nowhere/at all/heart", "No such file"),
        ("my heart.json", "No such file"),
        ("~no-such-user/a.json", "no such user's home folder"),
        ("captions/notes.md", "is no caption: give a .json, .txt"),
        ("empty", "a folder without captions"),
    ],
)
def test_a_path_is_never_taken_for_words(value: str, says: str):
    Path("empty").mkdir()
    with pytest.raises(ValueError) as caught:
        Reader().read(value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "a red heart",
        "heart",
        "a cat / a dog, 3.5 metres apart",
        "black-and-white",
        "/imagine a red heart",
        "a sign that says v2.0",
        "50%",
        "a heart.",
        "“LOVE”",
        "{see} below",
        "猫",
    ][:9],
)
def test_words_stay_words(value: str):
    (prompt,) = Reader().read(value)
    assert prompt.words == value == Caption.parse(prompt.text).high_level_description
    (prompt,) = Reader(wrap=False).read(value)
    assert prompt.words == prompt.text == value


@given(st.lists(st.from_regex(r"[a-z]{1,8}[.,;!]?", fullmatch=True), min_size=2, max_size=9).map(" ".join))
def test_no_sentence_of_words_is_taken_for_a_path(text: str):
    assert not looks_like_path(text)


@given(st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, max_size=4), st.sampled_from("/\\"))
def test_whatever_has_slashes_and_no_spaces_is_a_path(parts: list[str], slash: str):
    assert looks_like_path(slash.join([".", *parts])) and looks_like_path(slash.join([*parts, "x.json"]))


# What a file holds


@pytest.mark.parametrize("ending", [".json", ".txt", ".caption"])
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "```json\n{}\n```",
        "Sure! Here is the caption:\n{}\nEnjoy.",
        "<think>a heart, {{then}} a box</think>\n{}",
        '{{"prompt": {}}}',
        "{}".replace("{}", "{}\n\n"),
    ],
)
def test_a_caption_is_read_wherever_it_stands_in_a_file(ending: str, form: str):
    Path(f"a{ending}").write_text(form.format(LINES[0]))
    (prompt,) = Reader().read(f"a{ending}")
    assert prompt.text == LINES[0] and not prompt.breaches
    assert len(prompt.mended) == (0 if form.strip() == "{}" else 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a red heart", "a.json is no JSON but the plain text 'a red heart'"),
        ("[1,2]", "a.json is a JSON list of 2, not one caption"),
        ("7", "a.json is no JSON but the plain text '7'"),
        ('"a red heart"', "a.json is no JSON but the plain text"),
        ("", "a.json is empty"),
        ("{}", "a.json is no caption: it has none of high_level_description"),
        ('{"title": "a cup", "url": "x"}', "a.json is no caption: it has none of high_level_description"),
        ('{"prompt": "a red heart"}', "a.json is no caption: it has none of high_level_description"),
        (f"{LINES[0]}\n{LINES[1]}", "a.json holds 2 captions: give one, or a .jsonl file with one a line"),
        (LINES[0][:-9], "a.json is no JSON: it ends before its last bracket, as if it had been cut off"),
        ("```json\n" + LINES[0][:-9] + "\n```", "a.json is no JSON"),
        ("<think>" + LINES[0], "a model's thinking without an end"),
        ("<think>hm</think> Sorry, I cannot.", "a model's thinking and no caption after it"),
        (LINES[0].replace('"', ""), "its quotation marks are gone"),
        (
            LINES[0].replace("[1,", f"[{'9' * 4301},"),
            "a.json is no JSON: a number of 4301 digits is too long at line 1",
        ),
        (LINES[0].replace("[1,", "[" * 100), "a.json is no JSON: it is nested too deeply"),
        (LINES[0].replace('"a heart"', '"a "heart""'), "expected a comma or '}' at line 1"),
    ],
)
def test_a_json_file_that_holds_no_caption_is_refused_by_name(text: str, says: str):
    Path("a.json").write_text(text)
    with pytest.raises(ValueError) as caught:
        Reader().read("a.json")
    assert says in str(caught.value)


def test_among_several_files_the_wrong_one_is_named():
    Path("captions/zebra.json").write_text("{")
    with pytest.raises(ValueError, match=r"captions/zebra\.json is no JSON"):
        Reader().read("captions")
    Path("both.jsonl").write_text(f"{LINES[0]}\n{{")
    with pytest.raises(ValueError, match=r"both\.jsonl:2 is no JSON"):
        Reader().read("both.jsonl")


def test_files_of_another_encoding_and_of_an_odd_size_are_refused(tmp_path: Path):
    Path("latin.json").write_bytes(b'{"a":"\xe4"}')
    with pytest.raises(ValueError, match=r"latin\.json is not UTF-8 text"):
        Reader().read("latin.json")
    with Path("huge.txt").open("wb") as file:
        file.truncate(64 * 2**30)  # a hole: it takes no room on the disk
    with pytest.raises(ValueError, match=r"huge\.txt is larger than 4 MiB: no captions are"):
        Reader().read("huge.txt")


# Repair


def test_what_is_certain_is_mended_and_told_and_the_rest_is_left():
    data = {"mood": "calm", "aspect_ratio": "1:1", **HEART}
    (prompt,) = Reader().read(json.dumps(data))
    assert prompt.mended == ("aspect_ratio: left out `aspect_ratio`",)
    assert [breach[:5] for breach in prompt.breaches] == ["mood:"]
    (prompt,) = Reader(drop_unknown=True).read(json.dumps(data))
    assert prompt.text == LINES[0] and not prompt.breaches
    (prompt,) = Reader(fix=False).read(json.dumps(data))
    assert json.loads(prompt.text) == data and not prompt.mended and len(prompt.breaches) == 2


# Prompts in Python


@pytest.mark.parametrize("value", ["captions/heart.json", "captions/heart.jsn", "both.jsonl", "heart", "./x"])
def test_in_python_a_path_is_no_prompt(value: str):
    Path("heart").write_text(LINES[0])
    with pytest.raises(CaptionError, match=r"is the name of a file, not words: give Caption\.parse"):
        prompt_line(value)
    with pytest.raises(TypeError, match=r"give Caption\.parse\('captions/heart\.json'\)"):
        prompt_line(Path("captions/heart.json"))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["```json\n{}\n```", "Here:\n{}", "<think>so</think>{}", "[{}]", '{{"prompt":{}}}'])
def test_in_python_a_caption_among_other_things_is_not_taken_for_words(form: str):
    with pytest.warns(CaptionWarning, match="the caption breaks the schema.*take it out|thinking out|give the caption"):
        assert prompt_line(form.format(LINES[0])) == LINES[0]
    with pytest.raises(CaptionError):
        prompt_line(form.format(LINES[0]), strict=True)


@pytest.mark.parametrize(
    "text", [f"One: {LINES[0]} Two: {LINES[1]}", "```json\n" + LINES[0][:-5] + "\n```", "<think>so</think>no", "[1, 2]"]
)
def test_in_python_what_fails_to_be_one_caption_is_refused(text: str):
    with pytest.raises(CaptionError, match=r"captions|no JSON|thinking|list"):
        prompt_line(text)


def test_in_python_the_wrong_one_of_several_prompts_is_numbered():
    assert lines_of([LINES[0]], strict=True) == [LINES[0]]
    with pytest.raises(CaptionError, match=r"^`prompt\[1\]`: the prompt 'captions/heart\.json' is the name of a file"):
        lines_of([LINES[0], "captions/heart.json"], strict=False)


def test_what_is_no_file_in_a_folder_of_captions_is_refused_not_waited_for(tmp_path: Path):
    Path("captions").mkdir(exist_ok=True)
    os.mkfifo("captions/pipe.json")
    with pytest.raises(ValueError, match=r"captions/pipe\.json has a caption's name and is no file"):
        Reader().read("captions")


def test_a_folder_that_is_linked_into_itself_is_refused():
    Path("round").mkdir()
    Path("round/again.json").symlink_to("../round")
    with pytest.raises(ValueError, match=r"round/again\.json has a caption's name and is no file"):
        Reader().read("round")
