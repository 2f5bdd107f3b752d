"""What is imported: nothing heavy for help, headers, captions, simulations and refusals, and nothing with remarks."""

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
    **{f"help of {name}": [name, "--help"] for name in ("generate", "simulate", "fit", "train", "convert", "inspect")},
    "help of caption": ["caption", "check", "--help"],
    "inspect a pipeline": ["inspect", "sketch"],
    "inspect, for programs": ["inspect", "sketch", "--json"],
    "inspect tensors": ["inspect", "some.safetensors"],
    "inspect nothing": ["inspect", "missing.safetensors"],
    "check": ["caption", "check", str(CAPTION)],
    "simulate": ["simulate", "-j", "512x512:turbo", "--cost", "1,1", "--count", "3"],
    "simulate measured steps": ["simulate", "-j", "512x512:4", "--steps", "steps.json", "--count", "3"],
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
    wrong = any(word in name for word in ("nothing", "nonsense"))
    assert (code, heavy) == (2 if wrong else 0, []), output
