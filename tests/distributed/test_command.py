"""`ideoflow generate --parallel`: the pictures and the words of the command in one process, and plain refusals."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from ideoflow.cli import app
from tests.distributed.conftest import ROOT

CAPTIONS = ROOT / "examples" / "captions"
OPTIONS = ("--seed", 3, "--steps", 5, "--device", "cpu")


def generate(start, ranks, *words, plan=""):
    parallel = ("--parallel", plan) if plan else ()
    processes = start(ranks, "-m", "ideoflow", "generate", *words, *OPTIONS, *parallel)
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, said
    return said


def test_it_draws_what_one_process_draws_and_rank_0_alone_speaks(start, tmp_path):
    generate(start, 1, CAPTIONS / "heart.json", "--size", "96x96", "--out", tmp_path / "first")
    # Two pipelines, one after another: that of the picture that is made again, and one of another type.
    again = tmp_path / "first" / "heart-3.png", CAPTIONS / "go.json", "--size", "96x96", "--size", "96x112"
    said = generate(start, 4, *again, "--out", tmp_path / "shared", plan="guidance=2,context=2")
    generate(start, 1, *again, "--out", tmp_path / "alone")
    drawn = sorted(path.name for path in (tmp_path / "shared").iterdir())
    assert drawn == sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert len(drawn) == 2
    for name in drawn:
        shared, alone = (Image.open(tmp_path / folder / name) for folder in ("shared", "alone"))
        assert np.abs(np.asarray(shared).astype(int) - np.asarray(alone)).max() <= 1
        assert shared.info == alone.info
    assert len(said[0][0].splitlines()) == 2
    assert said[1:] == [("", "")] * 3


@pytest.mark.parametrize(
    ("plan", "more", "told"),
    [
        ("ring=2", (), "is no part of a plan: give each of context, data, guidance, tensor"),
        ("context=2", (), "for 2 processes, and there are 1"),
        ("context=1", (), "shares nothing"),
        ("context=2", ("--compile",), "--parallel and --compile exclude each other"),
        ("guidance=2", ("--cuda-graphs",), "--parallel and --cuda-graphs exclude each other"),
        ("guidance=2", ("--memory", "8GB"), "--parallel and --memory exclude each other"),
        ("tensor=4", (), "`tensor` is 4, but the unconditional branch has 2 heads"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(plan, more, told, tmp_path, monkeypatch):
    if "processes" not in told and "nothing" not in told:
        monkeypatch.setenv("WORLD_SIZE", plan[-1])
    refused(plan, more, told, tmp_path)


def test_adapters_are_refused_where_a_branch_is_shared(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    adapter = tmp_path / "adapter.safetensors"
    save_file({"layers.0.attention.to_q.lora_A.weight": torch.ones(1, 8)}, adapter)
    out = tmp_path / "out"
    out.mkdir()
    refused("context=2", ("--lora", str(adapter)), "--lora acts under --parallel guidance=2 alone", out)


def refused(plan, more, told, tmp_path):
    words = ["generate", str(CAPTIONS / "heart.json"), "--parallel", plan, *more, "--out", str(tmp_path / "o.png")]
    result = CliRunner().invoke(app, [*words, "--device", "cpu"], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []
