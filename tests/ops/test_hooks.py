"""Hooks are looked for anew at each question, over every module there is, and nothing is asked of what has none."""

from __future__ import annotations

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import HookRegistry
from diffusers.hooks import ModelHook as DiffusersHook
from torch import nn

from ideoflow import sketch
from ideoflow.ops.hooks import execution_device, is_hooked, is_offloaded, is_plain, modules_within


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return sketch.load().transformer


def test_the_walk_meets_every_module(model):
    assert {id(part) for part in modules_within(model)} == {id(part) for part in model.modules()}


@pytest.mark.parametrize("name", ["", "layers.3", "layers.0.attention.norm_q", "final_layer.linear"])
def test_a_hook_of_accelerate_is_seen_from_when_it_is_set_until_it_is_gone(model, name):
    part = model.get_submodule(name)
    assert not is_offloaded(model) and is_plain(part, type(part))
    hook = ModelHook()
    hook.execution_device = torch.device("meta")
    add_hook_to_module(part, hook)
    try:
        assert is_offloaded(model) and is_hooked(part) and not is_plain(part, type(part))
        assert execution_device(model) == torch.device("meta")
    finally:
        remove_hook_from_module(part)
    assert not is_offloaded(model) and execution_device(model) == torch.device("cpu")


def test_a_hook_of_diffusers_is_seen_until_it_is_gone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    registry = HookRegistry.check_if_exists_or_initialize(model[1])
    registry.register_hook(DiffusersHook(), "mine")
    assert is_offloaded(model) and is_hooked(model[1])
    registry.remove_hook("mine")
    assert not is_offloaded(model)


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_a_hook_of_torch_makes_a_module_one_that_must_be_called(register):
    layer = nn.Linear(2, 2)
    handle = getattr(layer, register)(lambda *_: None)
    assert is_hooked(layer) and not is_plain(layer, nn.Linear)
    handle.remove()
    assert is_plain(layer, nn.Linear)
