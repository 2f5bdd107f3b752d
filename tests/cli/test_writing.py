"""`ideoflow caption write`, `describe`, `edit` and `lint`, and `generate --write`: from words to captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ideoflow import Caption
from ideoflow.cli import app
from ideoflow.pictures import read_settings
from ideoflow.sketch.prose import write
from tests.captions.chat_server import chat_server

HEART = write("a red heart on pink").caption


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IDEOFLOW_LLM_KEY", raising=False)


def invoke(*arguments: str, ends: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == ends, result.output
    return result


def test_words_are_written_by_the_bundled_models_grammar():
    result = invoke("caption", "write", "a red heart on pink, and a dragon")
    assert result.stdout == HEART.line() + "\n"
    assert result.stderr == "warning: not understood: dragon\n"


def test_words_are_written_by_a_language_model():
    with chat_server(HEART.line()) as server:
        result = invoke("caption", "write", "love", "--endpoint", server.url, "--llm", "small", "--size", "64x32",
                        "--out", "love.json")  # fmt: skip
    assert Path("love.json").read_text() == HEART.line() + "\n" and result.stdout == ""
    assert "2:1" in server.bodies[0]["messages"][1]["content"]


def test_an_existing_file_is_kept_and_nobody_is_asked():
    Path("love.json").write_text("mine")
    with chat_server(HEART.line()) as server:
        asked = ["caption", "write", "love", "--endpoint", server.url, "--llm", "small", "--out", "love.json"]
        assert "exists already" in invoke(*asked, ends=2).stderr and server.bodies == []
        invoke(*asked, "--overwrite")
    assert Path("love.json").read_text() == HEART.line() + "\n"


def test_a_caption_is_changed_and_what_changed_is_told():
    Path("heart.json").write_text(HEART.line())
    with chat_server(HEART.line().replace("red heart", "blue heart")) as server:
        result = invoke("caption", "edit", "heart.json", "make it blue", "--endpoint", server.url, "--llm", "small")
    assert 'changed elements[0].desc: "a red heart" became "a blue heart"' in result.stderr
    assert result.stdout == HEART.line().replace("red heart", "blue heart") + "\n"


def test_a_picture_is_described():
    Image.new("RGB", (40, 40), "#E53935").save("red.png")
    with chat_server(HEART.line()) as server:
        result = invoke("caption", "describe", "red.png", "--endpoint", server.url, "--llm", "small")
    element = json.loads(result.stdout)["compositional_deconstruction"]["elements"][0]
    assert element["color_palette"] == ["#E53935"] and "measured" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["write", "a heart", "--endpoint", "http://127.0.0.1:1/v1"], "--endpoint needs --llm"),
        (["write", "a heart", "--llm", "small"], "no --endpoint says where"),
        (["write", "a heart", "--endpoint", "127.0.0.1", "--llm", "small"], "is no address"),
        (["write", "a dragon"], "not understood: dragon"),
        (["write", "a heart", "--size", "63x63"], "63"),
        (["describe", "red.png"], "Nothing is sent anywhere without"),
        (["describe", "missing.png", "--endpoint", "http://127.0.0.1:1/v1", "--llm", "small"], "missing.png"),
        (["edit", "{}", "bluer"], "say where it is with --endpoint and --llm"),
        (["write", "a heart", "--endpoint", "http://127.0.0.1:1/v1", "--llm", "small"], "cannot be reached"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(arguments: list[str], told: str):
    error = invoke("caption", *arguments, ends=2).stderr
    assert told in error and error.startswith("error: ") and error.count("\n") == 1


def test_lint_says_what_may_not_be_drawn_a_line_each():
    Path("good.json").write_text(HEART.line())
    tall = HEART.data()
    tall["compositional_deconstruction"]["elements"] = [
        {"type": "text", "bbox": [100, 100, 900, 160], "text": "OPEN ALL NIGHT", "desc": "red letters"}
    ]
    Path("tall.json").write_text(json.dumps(tall))
    Path("words.txt").write_text("a red heart")
    assert invoke("caption", "lint", "good.json").stdout == "ok good.json\n"
    told = invoke("caption", "lint", "good.json", "tall.json", "words.txt", ends=1).stdout.splitlines()
    assert told[0] == "ok good.json" and "x may come first" in told[1] and "is plain text" in told[2]
    Path("cut.json").write_text(HEART.line()[:-3])
    assert "cut off" in invoke("caption", "lint", "cut.json", ends=2).stderr


def test_generate_draws_what_the_language_model_wrote(tiny_folder: Path):
    options = ["--model", str(tiny_folder), "--steps", "1", "--size", "32x32", "--device", "cpu", "--out", "a.png"]
    with chat_server(HEART.line()) as server:
        told = invoke("generate", "love", *options, "--endpoint", server.url, "--llm", "small").stderr
    assert "note: love: the caption was written by small at 127.0.0.1" in told
    assert Caption.parse(read_settings("a.png")["caption"]).line() == HEART.line()


def test_generate_says_where_no_caption_can_be_written(tiny_folder: Path):
    options = ["--model", str(tiny_folder), "--steps", "1", "--size", "32x32", "--device", "cpu", "--out", "a.png"]
    assert (
        "needs the component `prompt_enhancer_head`" in invoke("generate", "love", *options, "--write", ends=2).stderr
    )
    told = invoke("generate", "love", *options, "--write", "--no-wrap", ends=2).stderr
    assert "--no-wrap sends plain text as it is" in told
