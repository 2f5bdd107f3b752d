"""`ideoflow caption check` and `fix`: what they print, what they write, and the code that they end with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ideoflow.captions import Caption
from ideoflow.cli.caption import app

RIGHT = Caption.from_text("a red dot").line()
BOX = "compositional_deconstruction.elements[0].bbox"
COLOUR = "compositional_deconstruction.elements[0].color_palette[0]"


def caption(**fields) -> str:
    element = {"type": "obj", "desc": "a dot"} | fields
    element = {key: element[key] for key in ("type", "bbox", "desc", "color_palette") if key in element}
    return json.dumps({"compositional_deconstruction": {"background": "red", "elements": [element]}})


SWAPPED = caption(bbox=[900, 800, 0, 100])  # in no other order is this a box
UNCLEAR = caption(color_palette=["dark"])


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, ends_with: int, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=stdin)
    assert result.exit_code == ends_with, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


# check


def test_a_right_caption_ends_with_0():
    assert run("check", write("a.json", RIGHT), ends_with=0).stdout == "ok a.json\n"


def test_every_breach_of_every_file_is_listed_with_its_fix_and_the_code_is_1():
    text = caption(bbox=[900, 800, 0, 100], color_palette=["dark"])
    out = run("check", write("a.json", text), write("b.txt", SWAPPED), ends_with=1).stdout
    assert out.splitlines() == [
        "2 to mend a.json",
        f"  [*] {BOX}: is [900, 800, 0, 100], which has its corners swapped; write [0, 100, 900, 800]",
        f"      {COLOUR}: is 'dark', where upper-case #RRGGBB is expected; write it as upper-case #RRGGBB",
        "1 to mend b.txt",
        f"  [*] {BOX}: is [900, 800, 0, 100], which has its corners swapped; write [0, 100, 900, 800]",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain text", "a.json is the plain text 'plain text', not a JSON caption"),
        (b"", "a.json is empty, not a JSON caption"),
        (b'{"a":1 "b":2}', "a.json is no JSON: expected a comma or '}' at line 1, column 8"),
        (b"\xff\xfe{", "a.json is not UTF-8"),
        (None, "a.json: No such file"),
    ],
)
def test_what_cannot_be_read_ends_with_2_and_the_other_files_are_checked(content: bytes | None, message: str):
    if content is not None:
        Path("a.json").write_bytes(content)
    result = run("check", "a.json", write("b.json", SWAPPED), ends_with=2)
    assert message in result.stderr and "1 to mend b.json" in result.stdout


def test_lines_of_a_jsonl_file_are_named_by_number():
    lines = [RIGHT, "", SWAPPED, "plain"]
    result = run("check", write("a.jsonl", "\n".join(lines)), ends_with=2)
    assert "ok a.jsonl:1\n" in result.stdout and "1 to mend a.jsonl:3\n" in result.stdout
    assert "a.jsonl:4 is the plain text 'plain'" in result.stderr


def test_only_a_newline_ends_a_line_of_a_jsonl_file():
    line = Caption.from_text("a").model_copy(update={"high_level_description": "b\u2028c\x85d"}).line()
    assert run("check", write("a.jsonl", f"{line}\n{line}\n"), ends_with=0).stdout == "ok a.jsonl:1\nok a.jsonl:2\n"


def test_standard_input_is_read():
    assert run("check", "-", stdin="\ufeff" + RIGHT, ends_with=0).stdout == "ok standard input\n"


def test_characters_that_no_terminal_takes_are_shown_escaped():
    out = run("check", write("a.json", r'{"\ud800\u001b[31m":1,"[bold]":2}'), ends_with=1).stdout
    assert r"\ud800\x1b[31m: is no key" in out and "[bold]: is no key" in out


# fix


def test_what_is_mended_and_what_is_left_is_told_and_the_line_goes_to_standard_output():
    text = caption(bbox=[900, 800, 0, 100], color_palette=["dark"])
    result = run("fix", write("a.json", text), ends_with=1)
    assert result.stdout == Caption.parse(text).repair().line() + "\n"
    assert (
        f"mended a.json: {BOX}: wrote [0, 100, 900, 800] for [900, 800, 0, 100]" in result.stderr
        and f"left a.json: {COLOUR}" in result.stderr
    )
    assert Path("a.json").read_text() == text


def test_out_and_in_place_write_the_same_file_and_nothing_else(empty_folder: Path):
    run("fix", write("a.json", SWAPPED), "--out", "b.json", ends_with=0)
    assert Path("a.json").read_text() == SWAPPED
    assert run("fix", "a.json", "--in-place", ends_with=0).stdout == ""
    assert Path("a.json").read_text() == Path("b.json").read_text() == Caption.parse(SWAPPED).repair().line() + "\n"
    assert sorted(os.listdir(empty_folder)) == ["a.json", "b.json"]


def test_each_line_of_a_jsonl_file_is_mended():
    run("fix", write("a.jsonl", f"{SWAPPED}\n{RIGHT}\n"), "-i", ends_with=0)
    assert Path("a.jsonl").read_text() == f"{Caption.parse(SWAPPED).repair().line()}\n{RIGHT}\n"


def test_a_file_with_a_line_that_cannot_be_read_is_left_alone():
    text = f"{SWAPPED}\nplain\n"
    result = run("fix", write("a.jsonl", text), "-i", ends_with=2)
    assert result.stderr == "error: a.jsonl:2 is the plain text 'plain', not a JSON caption.\n"
    assert Path("a.jsonl").read_text() == text


def test_out_makes_its_folder():
    run("fix", write("a.json", SWAPPED), "--out", "new/folder/b.json", ends_with=0)
    assert os.listdir("new/folder") == ["b.json"]


def test_a_failed_write_leaves_the_file_as_it_was(monkeypatch: pytest.MonkeyPatch, empty_folder: Path):
    def full(temporary: Path, _: Path) -> None:
        raise OSError(28, "No space left on device", str(temporary))

    monkeypatch.setattr(os, "replace", full)
    result = run("fix", write("a.json", SWAPPED), "-i", ends_with=1)
    assert result.stderr == "error: a.json: No space left on device\n"
    assert Path("a.json").read_text() == SWAPPED and os.listdir(empty_folder) == ["a.json"]


@pytest.mark.skipif(os.name == "nt", reason="links and modes of POSIX")
def test_in_place_a_link_stays_a_link_and_the_permissions_stay():
    Path(write("a.json", SWAPPED)).chmod(0o640)
    Path("link.json").symlink_to("a.json")
    run("fix", "link.json", "-i", ends_with=0)
    assert Path("link.json").is_symlink()
    assert Path("a.json").stat().st_mode & 0o777 == 0o640
    assert Path("a.json").read_text() != SWAPPED


def test_keys_that_stand_twice_are_not_lost():
    text = '{"compositional_deconstruction":{"background":"a","background":"b","elements":[]}}'
    result = run("fix", write("a.json", text), "-i", ends_with=1)
    assert "left a.json: compositional_deconstruction.background" in result.stderr
    assert Path("a.json").read_text() == text + "\n"


def test_standard_input_is_mended_to_standard_output():
    result = run("fix", "-", stdin=SWAPPED, ends_with=0)
    assert result.stdout == Caption.parse(SWAPPED).repair().line() + "\n"


@pytest.mark.parametrize("arguments", [["a.json", "-i", "--out", "b.json"], ["-", "-i"]])
def test_in_place_needs_a_file_and_no_other(arguments: list[str]):
    write("a.json", SWAPPED)
    assert "--in-place" in run("fix", *arguments, stdin=SWAPPED, ends_with=2).output
    assert Path("a.json").read_text() == SWAPPED


@pytest.mark.parametrize("command", ["check", "fix"])
def test_help_teaches_with_an_example(command: str):
    assert f"ideoflow caption {command} my_caption.json" in run(command, "--help", ends_with=0).stdout


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_out_writes_into_a_pipe_and_leaves_it_one():
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        run("fix", write("a.json", SWAPPED), "--out", "pipe", ends_with=0)
        assert Path("pipe").is_fifo()
        assert os.read(reader, 10_000).decode() == Caption.parse(SWAPPED).repair().line() + "\n"
    finally:
        os.close(reader)


def test_standard_streams_are_utf_8_whatever_the_terminal_is():
    line = Caption.from_text("日本 é").line()
    result = CliRunner(charset="latin-1").invoke(app, ["fix", "-"], input=line.encode())
    assert result.exit_code == 0 and result.stdout_bytes == line.encode() + b"\n"


def test_standard_input_that_is_no_utf_8_is_refused():
    result = CliRunner().invoke(app, ["check", "-"], input=RIGHT.encode().replace(b"red", b"\xff"))
    assert result.exit_code == 2 and "not UTF-8" in result.output


# Several files, and what is never overwritten


def test_several_files_are_mended_into_a_folder_or_one_after_another():
    files = [write("a.json", SWAPPED), write("b.json", RIGHT)]
    lines = [Caption.parse(SWAPPED).repair().line() + "\n", RIGHT + "\n"]
    assert run("fix", *files, ends_with=0).stdout == "".join(lines)
    run("fix", *files, "--out", "mended", ends_with=0)
    assert [Path("mended", name).read_text() for name in files] == lines
    run("fix", *files, "-i", ends_with=0)
    assert [Path(name).read_text() for name in files] == lines


def test_a_file_that_exists_is_kept_unless_overwriting_is_asked_for():
    write("b.json", "mine")
    result = run("fix", write("a.json", SWAPPED), "--out", "b.json", ends_with=2)
    assert "b.json exists already: give --overwrite" in result.stderr and Path("b.json").read_text() == "mine"
    run("fix", "a.json", "--out", "b.json", "--overwrite", ends_with=0)
    assert Path("b.json").read_text() != "mine"


def test_one_file_that_cannot_be_read_keeps_none_of_the_others_from_being_mended():
    result = run("fix", write("a.json", "words"), write("b.json", SWAPPED), "-i", ends_with=2)
    assert "a.json is the plain text 'words'" in result.stderr and Path("a.json").read_text() == "words"
    assert Path("b.json").read_text() == Caption.parse(SWAPPED).repair().line() + "\n"


def test_what_was_renamed_or_taken_off_is_said():
    text = SWAPPED.replace('"desc"', '"description"').replace("[900, 800, 0, 100]", "[1, 2, 3, 4]")
    result = run("fix", write("a.json", f"Here you are:\n```json\n{text}\n```"), ends_with=0)
    assert "mended a.json: the caption: took it out of other text\n" in result.stderr
    assert "elements[0].description: renamed `description` to `desc`\n" in result.stderr
    assert result.stdout.startswith('{"compositional_deconstruction"')


def test_unknown_keys_are_dropped_when_asked():
    text = RIGHT.replace("{", '{"mood":"calm","aspect_ratio":"1:1",', 1)
    result = run("fix", write("a.json", text), ends_with=1)
    assert "left out `aspect_ratio`" in result.stderr and "left a.json: mood" in result.stderr
    result = run("fix", "a.json", "--drop-unknown", ends_with=0)
    assert "left out `mood`" in result.stderr and result.stdout == RIGHT + "\n"


def test_boxes_are_converted_by_one_who_knows_what_they_are():
    write("a.json", caption(bbox=[600, 500, 200, 100]))
    assert '"bbox":[500,600,600,800]' in run("fix", "a.json", "--boxes", "xywh", ends_with=0).stdout
    write("a.json", caption(bbox=[1024, 512, 2048, 768]))
    result = run("fix", "a.json", "--boxes", "xyxy", "--box-size", "2048x1024", ends_with=0)
    assert '"bbox":[500,500,750,1000]' in result.stdout
    for wrong in (["--boxes", "abcd"], ["--box-size", "0x3"], ["--box-size", "large"]):
        assert wrong[0] in run("fix", "a.json", *wrong, ends_with=2).stderr
    assert "which is no box as 'yxyx'" in run("fix", "a.json", "--box-size", "100x100", ends_with=2).stderr
