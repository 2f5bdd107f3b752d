"""Weights of adapters that are no finite numbers, or of adapters not loaded: refused before anything changes."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

CALL = dict(height=32, width=32, num_inference_steps=1, guidance_schedule=None, guidance_scale=1.0)
WRONG = [math.nan, math.inf, -math.inf, "1", None, [1.0]]


@pytest.fixture
def adapted(pipeline):
    """A pipeline with an adapter on its transformer."""
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipeline.transformer.add_adapter(config, adapter_name="x")
    return pipeline


@pytest.mark.parametrize("scale", WRONG, ids=str)
def test_fusing_by_what_is_no_finite_number_changes_no_weight(adapted, scale):
    before = {name: tensor.clone() for name, tensor in adapted.transformer.state_dict().items()}
    with pytest.raises((ValueError, TypeError), match=r"`lora_scale` is .*: give a finite number"):
        adapted.fuse_lora(lora_scale=scale)
    after = adapted.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("scale", WRONG, ids=str)
def test_a_calls_scale_that_is_no_finite_number_is_named(adapted, scale):
    with pytest.raises((ValueError, TypeError), match=r"scale.*: give a finite number"):
        adapted("a cup", attention_kwargs={"scale": scale}, **CALL)


WEIGHTS = {  # what is given, and what the message says
    "nan": (math.nan, r"weight of the adapter 'x'` is nan: give a finite number"),
    "inf": (math.inf, r"weight of the adapter 'x'` is inf: give a finite number"),
    "nan in a list": ([-math.inf], r"weight of the adapter 'x'` is -inf: give a finite number"),
    "nan in a tensor": (torch.tensor(math.nan), r"weight of the adapter 'x'` is tensor\(nan\): give a finite number"),
    "text": ("1", r"weight of the adapter 'x'` is '1': give a finite number"),
    "a tuple": ((1.0,), r"weight of the adapter 'x'` is \(1.0,\): give a finite number"),
    "a list in a list": ([[1.0]], r"weight of the adapter 'x'` is \[1.0\]: give a finite number"),
    "too many": ([1.0, 0.5], r"adapters 'x' have a list of 2 weights: give one number for all, or a list of 1"),
    "none": ([], r"adapters 'x' have a list of 0 weights: give one number for all, or a list of 1"),
}
PARTS = {
    "nan": ({"layers.0": math.nan}, r"weight of the adapter 'x' at 'layers.0'` is nan: give a finite number"),
    "text": ({"layers.0": "1"}, r"weight of the adapter 'x' at 'layers.0'` is '1': give a finite number"),
    "no layer": ({"layer.0": 0.5}, r"adapter 'x' has a weight for 'layer.0': no layer with adapters is called so"),
}
NAMES = {
    "another": (["y"], ValueError, r"`adapter_names` is \['y'\]: give names of adapters that are loaded \('x'\)"),
    "one of two": (["x", "y"], ValueError, r"give names of adapters that are loaded \('x'\)"),
    "twice": (["x", "x"], ValueError, r"name each adapter once"),
    "no text": ([None], TypeError, r"`adapter_names` is \[None\]: give names of adapters"),
    "no names": (None, TypeError, r"`adapter_names` is None: give names of adapters"),
}


def scalings(model):
    """What each adapter acts by in each layer, and which act."""
    return [({**part.scaling}, [*part.active_adapters]) for part in model.modules() if isinstance(part, BaseTunerLayer)]


@pytest.fixture(params=["pipeline", "transformer"])
def owner(request, adapted):
    """What has `set_adapters`, with a weight that is not the default."""
    adapted.set_adapters("x", 0.5)
    return adapted if request.param == "pipeline" else adapted.transformer


@pytest.mark.parametrize("wrong", WEIGHTS)
def test_a_weight_that_is_no_finite_number_is_named_and_changes_nothing(adapted, owner, wrong):
    given, message = WEIGHTS[wrong]
    before = scalings(adapted.transformer)
    with pytest.raises((ValueError, TypeError), match=message):
        owner.set_adapters("x", given)
    assert scalings(adapted.transformer) == before


@pytest.mark.parametrize("wrong", PARTS)
def test_weights_of_layers_are_looked_at_one_by_one(adapted, owner, wrong):
    given, message = PARTS[wrong]
    before = scalings(adapted.transformer)
    with pytest.raises((ValueError, TypeError), match=message):
        owner.set_adapters("x", given if owner is adapted.transformer else {"transformer": given})
    assert scalings(adapted.transformer) == before


@pytest.mark.parametrize("given", [{"transfomer": 0.3}, {"transformer": 0.3, "unet": 0.3}, [{"text_encoder": 0.3}]])
def test_a_weight_of_a_component_without_adapters_is_refused(adapted, given):
    before = scalings(adapted.transformer)
    with pytest.raises(ValueError, match="which has no adapters: give 'transformer'"):
        adapted.set_adapters("x", given)
    assert scalings(adapted.transformer) == before


@pytest.mark.parametrize("wrong", NAMES)
def test_an_adapter_that_is_not_loaded_is_named_and_changes_nothing(adapted, owner, wrong):
    names, error, message = NAMES[wrong]
    before = scalings(adapted.transformer)
    with pytest.raises(error, match=message):
        owner.set_adapters(names, 1.0)
    assert scalings(adapted.transformer) == before


def test_none_is_one_and_layers_that_are_not_named_have_one(adapted, owner):
    owner.set_adapters(["x"], 0.25)
    owner.set_adapters("x", None)
    ones = scalings(adapted.transformer)
    owner.set_adapters("x", 1)
    assert scalings(adapted.transformer) == ones
    parts = {"layers.0.": 0.25}
    owner.set_adapters("x", parts if owner is adapted.transformer else [{"transformer": parts}])
    layers = [name for name, part in adapted.transformer.named_modules() if isinstance(part, BaseTunerLayer)]
    for layer, (one, _), (weighed, _) in zip(layers, ones, scalings(adapted.transformer), strict=True):
        assert weighed["x"] == one["x"] * (0.25 if "layers.0." in layer else 1)


def spoil(model, how):
    """Have an adapter's sum with the last layer's weight not be finite."""
    last = [part for part in model.modules() if isinstance(part, BaseTunerLayer)][-1]
    with torch.no_grad():
        if how == "its scale":
            last.scaling["x"] = math.nan
        elif how == "its matrices":
            last.lora_B["x"].weight[0, 0] = math.inf
        else:
            last.lora_B["x"].weight.fill_(1e30)
            last.lora_A["x"].weight.fill_(1e30)


@pytest.mark.parametrize("how", ["its scale", "its matrices", "their product"])
@pytest.mark.parametrize("owner", ["pipeline", "transformer"], indirect=True)
def test_an_adapter_without_a_finite_sum_is_merged_into_no_layer(adapted, owner, how):
    spoil(adapted.transformer, how)
    before = {name: tensor.clone() for name, tensor in adapted.transformer.state_dict().items()}
    with pytest.raises(ValueError, match=r"not finite in 'layers.*': the adapter 'x' is .*Nothing was merged"):
        owner.fuse_lora()
    after = adapted.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_merging_names_an_adapter_that_is_not_loaded(owner):
    with pytest.raises(ValueError, match=r"`adapter_names` is \['y'\]: give names of adapters that are loaded \('x'\)"):
        owner.fuse_lora(adapter_names=["y"])
