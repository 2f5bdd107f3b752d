"""The benchmarks run from the command line, at sizes too small to mean anything, and write what they print.

`benchmarks.memory` runs in `tests/fitting/test_measured.py`.
"""

import json
import runpy
import sys

import pytest

STEP = ["--tiny", "--dtype", "float32", "--pixels", "32", "--text", "3", "--rounds", "1"]
TINY = {
    "step": [*STEP, "--no-compile", "--no-memory"],
    "step, compiled": STEP,
    "ablation": [*STEP, "--no-compile"],
    "ablation, profile": [*STEP, "--profile"],
    "full": ["--tiny", "--rounds", "1", "--steps", "2", "--no-compile"],
    "kernels": ["--dtype", "bfloat16", "--tokens", "9", "--rounds", "1", "--no-compile"],
    "previews": ["--rounds", "1", "--pictures", "1"],
    "products": ["--rounds", "1", "--tokens", "16"],
    "caches": ["--count", "1", "--only", "faster"],
    "caption_cache": ["--rounds", "1", "--gigabytes", "0.001", "--pixels", "32"],
    "attention": ["--rounds", "1", "--lengths", "8", "16"],
    "attention, backends": ["--backends", "--tiny", "--rounds", "1"],
    "forms": ["--pictures", "1", "--steps", "1"],
    "loading": ["--tiny", "--repeats", "1", "--cases", "1"],
    "many": ["--count", "4", "--steps", "1", "--rounds", "1"],
    "startup": ["--rounds", "1", "--only", "import ideoflow", "caption check"],
    "traffic": ["--seconds", "1", "--repeats", "1", "--measured", "2", "--load", "9"],
    "training": ["--samples", "2", "--sizes", "2", "--repeats", "1", "--tokens", "1500"],
    "lora": ["--steps", "2", "--prior", "1", "--old", "1", "--asked", "1"],
}

LONG = (
    "step, compiled",
    "ablation, profile",
    "attention, backends",
    "full",
    "traffic",
    "loading",
    "training",
    "lora",
    "forms",
)  # half a minute and more


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in TINY])
def test_a_benchmark_writes_figures(name, tmp_path, monkeypatch, capsys):
    out = tmp_path / "figures.json"
    folder = ["--folder", str(tmp_path / "run")] if name == "lora" else []
    module = f"benchmarks.{name.split(',')[0]}"
    monkeypatch.setattr(sys, "argv", [module, *TINY[name], *folder, "--out", str(out)])

    runpy.run_module(module, run_name="__main__")

    assert json.loads(out.read_text()) and capsys.readouterr().out
