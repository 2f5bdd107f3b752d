"""What is imported: nothing heavy where weights are not needed (help, headers, plans ...), and nothing with remarks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "torchao", "bitsandbytes")
CAPTION = Path(__file__).parent.parent / "examples" / "captions" / "heart.json"

LIGHT = {
    "help": ["--help"],
    "version": ["--version"],
    **{
        f"help of {name}": [name, "--help"]
        for name in ("generate", "batch", "serve", "simulate", "plan", "train", "convert", "inspect")
    },
    "help of caption": ["caption", "check", "--help"],
    "inspect a pipeline": ["inspect", "sketch"],
    "inspect, for programs": ["inspect", "sketch", "--json"],
    "inspect tensors": ["inspect", "some.safetensors"],
    "plan": ["plan", "--memory", "9GB"],
    "plan a table": ["plan", "--memory", "9GB", "--memory", "1GB", "--model", "sketch", "--dtype", "float32"],
    "plan on a CPU": ["plan", "--memory", "auto", "--device", "cpu", "--model", "sketch", "--size", "64x64"],
    "inspect nothing": ["inspect", "missing.safetensors"],
    "check": ["caption", "check", str(CAPTION)],
    "lint": ["caption", "lint", str(CAPTION)],
    "write": ["caption", "write", "a red heart on pink"],
    "words that are refused": ["generate", "a dragon on pink"],
    "refused: an endpoint that is none": ["caption", "write", "love", "--endpoint", "here", "--llm", "small"],
    "simulate": ["simulate", "-j", "512x512:turbo", "--cost", "1,1", "--count", "3"],
    "simulate measured steps": ["simulate", "-j", "512x512:4", "--steps", "steps.json", "--count", "3"],
    **{
        f"refused: {' '.join(wrong)}": ["generate", str(CAPTION), *wrong]
        for wrong in (
            ["--size", "100x100"],
            ["--size", "0x0"],
            ["--memory", "lots"],
            ["--lora", str(CAPTION)],
            ["--lora", "heart.safetensors"],
            ["--lora", "heart"],
            ["--lora", "some.safetensors:inf"],
            ["--preset", "trubo"],
            ["--device", "gpu"],
            ["--device", "meta"],
            ["--dtype", "float8"],
            ["--quantize", "int2"],
            ["--model", "sketchh"],
            ["--model", "./nowhere"],
            ["--model", "some.safetensors"],
            ["--model", "~no-such-user/model"],
            ["--guidance", "nan"],
            ["--steps", "1000000000"],
            ["--format", "gif"],
            ["--out", "~no-such-user/a.png"],
            ["--seed", "-1"],
            ["--negative-prompt", "dull"],
            ["missing.json"],
            ["~no-such-user/x.json"],
        )
    },
    **{
        f"refused: {' '.join(wrong)}": wrong
        for wrong in (
            ["plan", "--memory", "0GB"],
            ["plan", "--memory", "much"],
            ["plan", "--memory", "9GB", "--device", "gpu"],
            ["plan", "--memory", "9GB", "--model", "nowhere"],
            ["plan", "--memory", "9GB", "--model", "~no-such-user/x"],
            ["plan", "--memory", "9GB", "--size", "9x9"],
            ["plan", "--memory", "9GB", "--allow", "int2"],
            ["plan", "--memory", "9GB", "--quantize", "int2"],
            ["plan", "--memory", "9GB", "--host-memory", "some"],
            ["plan", "--memory", "9GB", "--dtype", "int2"],
            ["train", "--data", ".", "--optimizer", "adam"],
            ["train", "--data", ".", "--schedule", "up"],
            ["train", "--data", ".", "--device", "gpu"],
            ["train", "--data", ".", "--model", "nowhere"],
            ["train", "--data", "./nowhere"],
            ["train", "--data", ".", "--preview-size", "9x9"],
            ["train", "nowhere.toml"],
            ["train"],
            ["train", "--data", ".", "--learning-rate", "1"],
            ["train", "--data", ".", "--targets", "nonsense"],
            ["train", "--data", ".", "--previews", "nowhere.json"],
            ["convert", "nowhere", "new", "--to", "diffusers"],
            ["convert", "sketch", ".", "--to", "diffusers"],
            ["convert", "sketch", "new", "--to", "diffusers", "--dtype", "int2"],
            ["convert", "sketch", "new", "--to", "pear"],
            ["convert", "~no-such-user/x", "new", "--to", "diffusers"],
            ["inspect", "~no-such-user/x"],
            ["batch", "nowhere.jsonl", "--out", "place"],
            ["batch", ".", "--out", "place"],
            ["batch", "nowhere.jsonl", "--out", "place", "--as", "zip"],
            ["batch", "nowhere.jsonl", "--out", "place", "--shard", "9/8"],
            ["batch", "nowhere.jsonl", "--out", "place", "--size", "9x9"],
            ["caption", "check", "nowhere.json"],
            ["caption", "fix", "~no-such-user/x.json"],
            ["simulate", "-j", "512x512:4", "--cost", "1,1", "--policy", "best"],
        )
    },
    "simulate nonsense": ["simulate", "-j", "512x512", "--cost", "1,1"],
}

# All in one process, one after another: what one of them imports, the next ones have too.
PROGRAM = """
import json, sys
from typer.testing import CliRunner
from ideoflow.cli import app

commands, heavy = json.loads(sys.argv[1]), json.loads(sys.argv[2])
found = {}
for name, arguments in commands.items():
    done = CliRunner().invoke(app, arguments)
    found[name] = [done.exit_code, done.output, [module for module in heavy if module in sys.modules]]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> dict[str, list]:
    folder = tmp_path_factory.mktemp("light")
    save_file({"one": torch.ones(3, dtype=torch.bfloat16), "two": torch.ones(2).to(torch.float8_e4m3fn)},
              folder / "some.safetensors")  # fmt: skip
    steps = [{"segments": [10 * n], "seconds": 1.0 + n} for n in range(1, 6)]
    (folder / "steps.json").write_text(json.dumps(steps))
    arguments = [json.dumps(LIGHT), json.dumps(HEAVY)]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    assert process.stderr == ""
    return json.loads(process.stdout)


@pytest.mark.parametrize("name", LIGHT)
def test_nothing_heavy_is_imported(done, name):
    code, output, heavy = done[name]
    wrong = any(word in name for word in ("nothing", "nonsense", "refused"))
    assert (code, heavy) == (2 if wrong else 0, []), output
    if wrong and "Usage" not in output:  # what Typer itself refuses
        errors = [line for line in output.splitlines() if not line.startswith("warning: ")]
        assert len(errors) == 1 and errors[0].startswith("error: "), output


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("refused: --size 100x100", "The nearest sizes are 96x96 and 112x112."),
        ("refused: --memory lots", "give a number and a unit"),
        ("refused: --preset trubo", "Did you mean 'V4_TURBO_12'?"),
        ("refused: --device gpu", "Did you mean 'cuda'?"),
        ("refused: --model sketchh", "Did you mean sketch?"),
        ("refused: --lora heart.safetensors", "there is no such folder or file"),
        ("refused: train --data . --optimizer adam", "'adamw'"),
        ("refused: --out ~no-such-user/a.png", "home folder"),
        ("refused: plan --memory 9GB --model nowhere", "or 'sketch'"),
    ],
)
def test_a_refusal_says_what_to_give(done, name, advice):
    assert advice in done[name][1]


QUIET = """
import ideoflow
from ideoflow import sketch

[getattr(ideoflow, name) for name in ideoflow.__all__]
sketch.load()
ideoflow.Ideogram4Pipeline.from_pretrained(sketch.path())
"""


@pytest.mark.slow
def test_nothing_is_said_that_nobody_asked_for():
    """By torchao, bitsandbytes and others that diffusers imports along; no bars where nobody watches."""
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
