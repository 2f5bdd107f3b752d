"""What commands print of names and values from outside: control characters show, and no line passes for another."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from ideoflow.cli import app, console

ESCAPES = "a\x1b[31m\x07\r\x9b2J\u202e"
SHOWN = "a\\x1b[31m\\x07\\r\\x9b2J\\u202e"


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


@pytest.mark.parametrize("printer", [console.out, console.err])
def test_a_console_prints_no_terminal_escapes_of_others(printer: console.Printer):
    with printer.capture() as captured:
        printer.print(f"[bold]{ESCAPES}", markup=False)
        printer.print(ESCAPES)
    assert captured.get().splitlines() == [f"[bold]{SHOWN}", SHOWN]


def test_letters_of_every_script_stay():
    with console.out.capture() as captured:
        console.out.print("Größe 写 \U0001f3a8 א")
    assert captured.get() == "Größe 写 \U0001f3a8 א\n"


def test_no_line_of_a_message_passes_for_another_message():
    with console.err.capture() as captured:
        console.warn("a\nerror: b\n\x1b[2Jwarning: c")
    assert captured.get().splitlines() == ["warning: a", "  error: b", "  \\x1b[2Jwarning: c"]


NAMED = f"{ESCAPES}\nerror: b"


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", f"{NAMED}.json"),
        ("generate", f"{NAMED}.png"),
        ("generate", "a red dot", "--out", f"{NAMED}.gif"),
        ("generate", "a red dot", "--lora", f"{NAMED}.safetensors"),
        ("generate", "a red dot", "--model", f"./{NAMED}"),
        ("inspect", NAMED),
        ("convert", NAMED, "new", "--to", "diffusers"),
        ("caption", "check", f"{NAMED}.json"),
        ("caption", "fix", f"{NAMED}.json"),
        ("train", f"{NAMED}.toml"),
        ("train", "--data", NAMED),
    ],
    ids=lambda arguments: " ".join(arguments)[:24],
)
def test_a_name_acts_on_no_terminal_and_is_no_line_of_its_own(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    output = run(*arguments)
    assert all(character.isprintable() or character == "\n" for character in output), output
    assert not any(line.startswith("error: b") for line in output.splitlines()), output


def test_names_of_tensors_and_metadata_act_on_no_terminal(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({f"layers.0.{NAMED}": torch.ones(2, 2)}, path, metadata={NAMED: NAMED})
    for command in ("inspect", "convert"):
        more = ("new", "--to", "diffusers") if command == "convert" else ()
        output = run(command, path, *more)
        assert all(character.isprintable() or character == "\n" for character in output), output
        assert not any(line.startswith("error: b") for line in output.splitlines()), output


def test_values_of_a_pictures_settings_act_on_no_terminal(tmp_path: Path):
    from PIL import Image

    from ideoflow.pictures import save_image

    image = Image.new("RGB", (48, 32))
    settings = {"caption": "x", "seed": 1, "width": 48, "height": 32, "loras": [], "preset": NAMED, "device": "cpu"}
    for change in ({"model": NAMED}, {"model": "sketch"}, {"model": "sketch", "unrepeatable": NAMED}, {"torch": NAMED}):
        image.info["ideoflow"] = json.dumps(settings | change)
        output = run("generate", save_image(image, tmp_path / "a.png"), "--out", tmp_path / "b.png")
        assert all(character.isprintable() or character == "\n" for character in output), output
        assert not any(line.startswith("error: b") for line in output.splitlines()), output
