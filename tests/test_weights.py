"""Keys of weights: another for other weights and for copies, none under adapters."""

from copy import deepcopy

import torch
from torch import nn

from ideoflow.weights import weights_key


def test_keys_change_with_weights_alone():
    model, other = nn.Linear(3, 3), nn.Linear(3, 3)
    key = weights_key(model)

    assert weights_key(model) == key and weights_key(other) != key
    with torch.no_grad():
        model.weight.mul_(2)
    changed = weights_key(model)
    assert changed != key
    assert weights_key(model.to(torch.bfloat16)) != changed


def test_adapters_have_no_key():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].lora_A = nn.ModuleDict()

    assert weights_key(model) is None


def test_a_copy_has_a_key_of_its_own():
    model = nn.Linear(3, 3)
    key = weights_key(model)

    assert weights_key(deepcopy(model)) != key and weights_key(model) == key
