"""Recipes, curves and the card: what a run was made with, what it logged, and how that is told."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from safetensors.torch import save_file

from tools.sketch.card import ROWS, write
from tools.sketch.curve import Curve, plot, read
from tools.sketch.recipe import Recipe


def test_there_is_a_recipe_for_processors_and_one_for_gpus(tmp_path):
    cpu, gpu = Recipe.read("cpu"), Recipe.read("gpu")
    assert (cpu.device, gpu.device) == ("cpu", "cuda") and gpu.steps > cpu.steps
    file = tmp_path / "mine.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in vars(cpu).items()))
    assert Recipe.read(str(file)) == cpu
    file.write_text('device = "cpu"\nlayers = 3\n')
    with pytest.raises(ValueError, match=r"missing .*'steps'.*unknown \['layers'\]"):
        Recipe.read(str(file))
    with pytest.raises(ValueError, match="'cpu', 'gpu' or a TOML file"):
        Recipe.read("tpu")


def test_a_curve_goes_on_and_forgets_the_steps_that_were_lost(tmp_path):
    first = Curve(tmp_path / "a.jsonl", 0)
    for step in (50, 100, 150):
        first.add(step, {"loss": 1 / step})
    before = read(tmp_path / "a.jsonl")[1]["seconds"]
    second = Curve(tmp_path / "a.jsonl", 100)
    assert second.before == before
    second.add(150, {"loss": 0.5})
    lines = read(tmp_path / "a.jsonl")
    assert [line["step"] for line in lines] == [50, 100, 150] and lines[2]["loss"] == 0.5
    assert lines[2]["seconds"] >= before and read(tmp_path / "none.jsonl") == []


def test_a_plot_shows_every_figure_at_its_place():
    lines = [{"step": step, "loss": 1 / step, "other": 3.0} for step in (1, 10, 100)]
    root = ElementTree.fromstring(plot(lines, ["loss", "other", "missing"], "A title"))
    curves = [element for element in root if element.tag.endswith("polyline")]
    assert len(curves) == 2
    points = [tuple(map(float, point.split(","))) for point in curves[0].get("points").split()]
    assert points[0][0] < points[1][0] < points[2][0]
    # Equal factors are equal heights.
    down = points[1][1] - points[0][1]
    assert down > 0 and down == pytest.approx(points[2][1] - points[1][1], abs=0.2)
    assert any("A title" in (element.text or "") for element in root)


def test_the_card_tells_what_the_files_say(tmp_path):
    run, model = tmp_path / "run", tmp_path / "model"
    run.mkdir()
    model.mkdir()
    for number, stage in enumerate(("autoencoder", "decoder", "text", "transformers")):
        Curve(run / f"{stage}.jsonl", 0).add(100 + number, {"conditional": 0.3, "psnr": 26.0})
    save_file({"a": torch.zeros(1000, 1500)}, model / "weights.safetensors")
    scored = {key: [0.912, 0.851, 0.953] for key in ROWS} | {
        "pictures": 200, "elements_overlap": 0.7654, "shapes_overlap": 0.8, "steps": 20, "guidance": 2.0,
    }  # fmt: skip
    write(run, model, scored, Recipe.read("cpu"), "a machine of ours", "One more thing.")
    card = (model / "README.md").read_text()
    for text in (
        "1.5 million parameters",
        "a machine of ours",
        "One more thing.",
        "91.2% | 85.1 to 95.3%",
        "0.765",
        "103",
    ):
        assert text in card
    assert all(word in card for word in ("Data", "Recipe", "Quality", "minutes", "curve.svg"))
    assert not re.search(r"[{}]", card.split("```")[2]) and (model / "curve.svg").exists()
