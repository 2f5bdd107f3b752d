"""The configuration's defaults, checks and shapes, which are told without torch, are those of the model."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.configuration import DEFAULTS, check_config, parameter_shapes


def test_the_defaults_are_those_of_the_constructor():
    parameters = inspect.signature(Ideogram4Transformer2DModel.__init__).parameters
    assert {name: one.default for name, one in parameters.items() if name != "self"} == DEFAULTS


sizes = st.integers(1, 40)


@given(
    st.fixed_dictionaries(
        {
            "in_channels": sizes,
            "num_layers": st.integers(1, 3),
            "attention_head_dim": st.sampled_from([4, 6, 16]),
            "num_attention_heads": st.integers(1, 3),
            "intermediate_size": sizes,
            "adaln_dim": sizes,
            "llm_features_dim": sizes,
            "mrope_section": st.just((1, 1, 0)),
        }
    )
)
@settings(max_examples=20, deadline=None)
def test_the_shapes_are_those_of_the_model_in_its_order(config):
    with torch.device("meta"):
        model = Ideogram4Transformer2DModel(**config)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(parameter_shapes(config).items()) == list(found.items())


def test_the_shapes_without_a_configuration_are_the_published_models():
    with torch.device("meta"):
        model = Ideogram4Transformer2DModel()
    assert parameter_shapes({}) == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_layers": 0},
        {"attention_head_dim": 255},
        {"mrope_section": (24, 20)},
        {"mrope_section": (24, 200, 20)},
        {"attention_head_dim": 2, "num_attention_heads": 1, "mrope_section": (1, 0, 0)},
    ],
    ids=str,
)
def test_what_makes_no_model_makes_no_shapes(wrong):
    with pytest.raises(ValueError) as told:
        Ideogram4Transformer2DModel(**wrong)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        parameter_shapes(wrong)
    with pytest.raises(ValueError) as alone:
        check_config({**DEFAULTS, **wrong})
    assert str(alone.value) == str(told.value)
