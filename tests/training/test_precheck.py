"""What of a run's settings is refused before a model is loaded, and that targets mean the same with and without one."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
from torch import nn

from ideoflow import Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints.convert import convert
from ideoflow.training import precheck, run
from ideoflow.training.parallel import Group
from ideoflow.training.precheck import check
from ideoflow.training.settings import Settings
from ideoflow.training.targets import choose, linear_layers
from ideoflow.training.trained_adapter import AdapterSettings, add_adapter

ALONE = Group(0, 1, torch.device("cpu"))
CONFIG = json.loads((sketch.path() / "transformer" / "config.json").read_text())


def settings(**options) -> Settings:
    return Settings.read(**{"data": "pictures", **options})


def test_the_configuration_tells_the_names_of_the_linear_layers():
    model = Ideogram4Transformer2DModel.from_config(CONFIG)
    assert linear_layers(CONFIG) == [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        ("attention", {"to_q", "to_k", "to_v", "to_out.0"}),
        ("attention+feed_forward", {"to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3"}),
        ("all", {"to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3", "adaln_modulation"}),
        ([r"layers\.0\..*to_q", "final_layer.linear"], {"to_q", "linear"}),
    ],
)
def test_targets_are_presets_or_patterns(targets, kinds):
    names = choose(linear_layers(CONFIG), targets)
    assert {name.split(".", 3)[-1] if "to_out" in name else name.rsplit(".", 1)[-1] for name in names} == kinds
    assert len(names) == (2 if isinstance(targets, list) else len(kinds) * CONFIG["num_layers"])


@pytest.mark.parametrize(("targets", "message"), [("attn", "matches no linear"), (["layers.(0"], "regular expression")])
def test_a_target_that_is_nothing_is_named(targets, message):
    with pytest.raises(ValueError, match=message):
        choose(linear_layers(CONFIG), targets)


@pytest.fixture(params=["bundled", "folder", "transformer", "file", "original file"])
def model(request, tmp_path) -> str:
    """The bundled model, named in each way that is on this machine."""
    if request.param == "bundled":
        return ""
    if request.param == "file":
        shutil.copytree(sketch.path() / "transformer", tmp_path / "t")
        return str(next((tmp_path / "t").glob("*.safetensors")))
    if request.param == "original file":
        convert(sketch.path() / "transformer", tmp_path / "t.safetensors", "original")
        return str(tmp_path / "t.safetensors")
    return str(sketch.path() / ("" if request.param == "folder" else "transformer"))


def test_targets_that_no_layer_has_are_refused_by_the_configuration_alone(model, monkeypatch):
    monkeypatch.setattr(run, "load_pipeline", lambda *_: pytest.fail("the model is loaded"))
    with pytest.raises(ValueError, match="'nonsense', which matches no linear layer: use attention, "):
        run.prepare(settings(model=model, targets=["attention", "nonsense"]), ALONE)
    check(settings(model=model, targets=["attention", r"layers\.1\..*to_q"]))


def test_targets_say_nothing_where_all_weights_are_trained():
    check(settings(method="full", targets=["nonsense"]))


def test_a_model_that_is_still_to_be_fetched_is_looked_at_later():
    check(settings(model="someone/model", targets=["nonsense"]))


@pytest.mark.parametrize("previews", [["nowhere.json"], ["a cup", "[1, 2]"], [""]])
def test_captions_of_previews_that_cannot_be_drawn_are_refused(previews):
    with pytest.raises(ValueError, match="`previews`"):
        check(settings(previews=previews))


@pytest.mark.parametrize("optimizer", precheck.PACKAGES)
def test_an_optimizer_whose_package_is_not_installed_is_refused(optimizer, monkeypatch):
    check(settings(optimizer=optimizer)) if importlib.util.find_spec(precheck.PACKAGES[optimizer]) else None
    monkeypatch.setattr(precheck, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"`optimizer` {optimizer} needs {precheck.PACKAGES[optimizer]}: `pip install"):
        check(settings(optimizer=optimizer))
    check(settings(optimizer="adamw"))


def test_the_adapter_is_put_on_what_the_configuration_chooses():
    model = Ideogram4Transformer2DModel.from_config(CONFIG)
    add_adapter(model, AdapterSettings(rank=2, targets=[r".*to_v", "final_layer.linear"]))
    wrapped = {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")}
    assert wrapped == set(choose(linear_layers(CONFIG), [r".*to_v", "final_layer.linear"]))
