"""`ideoflow caption write`, `describe`, `edit` and `lint`, and `generate --write`: from words to captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ideoflow import Caption
from ideoflow.cli import app
from ideoflow.pictures import read_settings, save_image
from ideoflow.sketch.prose import write
from tests.captions.chat_server import chat_server

from .test_trust import BASE

HEART = write("a red heart on pink").caption
ENDPOINT = ["--endpoint", "http://127.0.0.1:1/v1", "--llm", "small"]


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
        (["write", "a dragon"], "a language model writes: give --endpoint and --llm"),
        (["describe", "missing.png", *ENDPOINT], "missing.png: No such file or directory"),
        (["write", "a heart", "--size", "63x63"], "63"),
        (["describe", "red.png"], "Nothing is sent anywhere without"),
        (["describe", "missing.png", "--endpoint", "http://127.0.0.1:1/v1", "--llm", "small"], "missing.png"),
        (["edit", "{}", "bluer"], "say where it is with --endpoint and --llm"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(arguments: list[str], told: str):
    error = invoke("caption", *arguments, ends=2).stderr
    assert told in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("reply", ["I cannot.", (402, b"{}"), None], ids=str)
def test_a_language_model_that_fails_ends_with_one(reply):
    with chat_server(reply) as server:
        url = "http://127.0.0.1:1/v1" if reply is None else server.url
        error = invoke("caption", "write", "a heart", "--endpoint", url, "--llm", "small", ends=1).stderr
    assert error.startswith("error: small at 127.0.0.1") and error.count("\n") == 1


# Every option that would do nothing, beside what it does nothing: of each command, what was typed, and what is told.
IGNORED = [
    ("caption write x", ["--llm", "small"], "no --endpoint says where"),
    ("caption write x", ["--llm-timeout", "5"], "--llm-timeout is for a language model"),
    ("caption write x", ["--no-layout"], "--no-layout is for a language model"),
    ("caption write x", ["--overwrite"], "there is no --out"),
    ("caption write x", [*ENDPOINT, "--overwrite"], "there is no --out"),
    ("caption describe red.png", [*ENDPOINT, "--overwrite"], "there is no --out"),
    ("caption describe red.png", ["--llm-timeout", "5"], "--llm-timeout is for a language model"),
    ("caption edit {} x", [*ENDPOINT, "--overwrite"], "there is no --out"),
    ("caption edit {} x", ["--llm-timeout", "5"], "--llm-timeout is for a language model"),
    ("caption fix x.json", ["--overwrite"], "there is no --out"),
    ("caption fix red.png", ["--in-place"], "over the picture"),
    ("generate x", ["--llm", "small"], "no --endpoint says where"),
    ("generate x", ["--llm-timeout", "5"], "--llm-timeout is for a language model"),
    ("generate x", [*ENDPOINT, "--no-wrap"], "--no-wrap sends plain text as it is"),
    ("serve", ["--llm", "small"], "no --endpoint says where"),
    ("serve", ["--llm-timeout", "5"], "--llm-timeout is for a language model"),
    *[(f"caption {name}", [option, "1"], "no option") for name in ("write x", "describe red.png", "edit {} x")
      for option in ("--seed", "--temperature", "--model")],
    ("caption lint x.json", ["--endpoint", "x"], "No such option"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "options", "told"), IGNORED)
def test_an_option_that_would_do_nothing_is_refused(command: str, options: list[str], told: str):
    assert told in " ".join(invoke(*command.split(), *options, ends=2).stderr.replace("│", "").split())


@pytest.mark.parametrize("options", [["--write"], ENDPOINT])
def test_a_writer_that_has_no_words_to_write_of_is_told(options: list[str], tmp_path: Path):
    Path("heart.json").write_text(HEART.line())
    told = invoke("generate", "heart.json", "--device", "cpu", "--cuda-graphs", *options, ends=2).stderr
    assert f"warning: {options[0]} has no effect: captions are written of plain text" in told


def test_a_folder_without_a_head_is_refused_before_it_is_opened(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"prompt_enhancer_head": [null, null]}')
    told = invoke("generate", "love", "--model", "model", "--write", ends=2).stderr
    assert told.startswith("error: --write needs the component `prompt_enhancer_head`") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (["a heart", "a dragon"], "a-dragon: not understood: dragon"),
        (["a heart", "  "], "prompt 2 of 2 is empty"),
        (["a heart", '{"compositional_deconstruction": {'], "prompt 2 of 2 is no JSON"),
        (["a heart", "words/"], "words/b.txt: not understood: wyvern"),
        (["a heart", "many.jsonl"], "many.jsonl:2"),
    ],
)
def test_of_several_prompts_the_one_that_fails_is_named(prompts: list[str], told: str):
    Path("words").mkdir()
    Path("words/a.txt").write_text("a star")
    Path("words/b.txt").write_text("a wyvern")
    Path("many.jsonl").write_text(HEART.line() + "\n{\n")
    assert f"error: {told}" in invoke("generate", *prompts, ends=2).stderr


def test_of_several_prompts_the_one_that_a_language_model_fails_at_is_named():
    with chat_server(HEART.line(), "I will not.") as server:
        told = invoke("generate", "love", "war", "--endpoint", server.url, "--llm", "small", ends=1).stderr
    assert "error: war: small at 127.0.0.1" in told


def test_a_missing_folder_is_made():
    invoke("caption", "write", "a red heart on pink", "--out", "new/folder/heart.json")
    assert Path("new/folder/heart.json").read_text() == HEART.line() + "\n"
    told = invoke("caption", "write", "a red heart on pink", "--out", "other/", ends=2).stderr
    assert "other/ is a folder: name a file" in told and not Path("other").exists()


def test_a_picture_of_ours_is_read_as_its_caption():
    drawn = Image.new("RGB", (32, 32), "pink")
    drawn.info["ideoflow"] = json.dumps(BASE | {"caption": HEART.line()})
    save_image(drawn, "heart.png")
    Image.new("RGB", (8, 8)).save("other.png")
    for command in ("check", "lint"):
        assert invoke("caption", command, "heart.png").stdout == "ok heart.png\n"
        assert "carries no ideoflow settings" in invoke("caption", command, "other.png", ends=2).stderr
    assert invoke("caption", "fix", "heart.png").stdout == HEART.line() + "\n"
    invoke("caption", "fix", "heart.png", "--out", "mended/")
    assert Path("mended/heart.json").read_text() == HEART.line() + "\n"
    with chat_server(HEART.line().replace("red heart", "blue heart")) as server:
        asked = ["make it blue", "--endpoint", server.url, "--llm", "small"]
        result = invoke("caption", "edit", "heart.png", *asked)
        assert "carries no ideoflow settings" in invoke("caption", "edit", "other.png", *asked, ends=2).stderr
    assert result.stdout == HEART.line().replace("red heart", "blue heart") + "\n" and len(server.bodies) == 1


def test_without_the_client_the_extra_is_named_and_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ideoflow.captions.writing.endpoint.find_spec", lambda name: None)
    for command in (["caption", "write", "x"], ["generate", "x"], ["serve"]):
        assert "pip install 'ideoflow[write]'" in invoke(*command, *ENDPOINT, ends=1).stderr


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
    told = invoke("generate", "love", *options, "--write", ends=2).stderr
    assert "needs the component `prompt_enhancer_head`" in told
    told = invoke("generate", "love", *options, "--write", "--no-wrap", ends=2).stderr
    assert "--no-wrap sends plain text as it is" in told
