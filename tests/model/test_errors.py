"""Bad input is refused with an error that names the argument, what it got and what it needs."""

from __future__ import annotations

import re

import pytest
import torch

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.packing import Layout

nan = float("nan")


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("hidden_states", lambda x: x[0], ValueError, "(batch, length, in_channels=8), got (14, 8)"),
        ("hidden_states", lambda x: x[..., :7], ValueError, "in_channels=8"),
        ("hidden_states", lambda x: x[:, :0], ValueError, "empty"),
        ("hidden_states", lambda x: x[:0], ValueError, "empty"),
        ("hidden_states", lambda x: x.long(), TypeError, "floating-point"),
        ("hidden_states", lambda x: x.tolist(), TypeError, "tensor, got list"),
        ("encoder_hidden_states", lambda x: x[..., :3], ValueError, "llm_features_dim=20), got (2, 14, 3)"),
        ("encoder_hidden_states", lambda x: x[:, :13], ValueError, "length=14"),
        ("encoder_hidden_states", lambda x: x[:1], ValueError, "batch=2"),
        ("encoder_hidden_states", lambda x: None, TypeError, "tensor, got NoneType"),
        ("timestep", lambda x: x[:1], ValueError, "(batch=2), got (1,)"),
        ("timestep", lambda x: x[:, None].expand(-1, 13), ValueError, "(batch=2, length=14), got (2, 13)"),
        ("timestep", lambda x: x[0], ValueError, "(batch=2), got ()"),
        ("timestep", lambda x: 0.5, TypeError, "tensor, got float"),
        ("timestep", lambda x: x.long(), TypeError, "floating-point"),
        ("timestep", lambda x: x + 1, ValueError, "[0, 1]"),
        ("timestep", lambda x: x - 1, ValueError, "[0, 1]"),
        ("timestep", lambda x: torch.tensor([0.5, nan]), ValueError, "got nan"),
        ("timestep", lambda x: torch.full((2, 14), 1000.0), ValueError, "got 1000"),
        ("position_ids", lambda x: x[..., :2], ValueError, "axes=3"),
        ("position_ids", lambda x: x[:, :5], ValueError, "length=14"),
        ("position_ids", lambda x: x.float(), TypeError, "integers, got torch.float32"),
        ("segment_ids", lambda x: x[:, :5], ValueError, "length=14"),
        ("segment_ids", lambda x: x.double(), TypeError, "integers"),
        ("indicator", lambda x: x[:, :5], ValueError, "length=14"),
        ("indicator", lambda x: x[..., None], ValueError, "got (2, 14, 1)"),
        ("indicator", lambda x: x.bool(), TypeError, "integers, got torch.bool"),
    ],
)
def test_forward_refuses(ours, inputs, name, change, error, message):
    with pytest.raises(error, match=f"`{name}`.*{re.escape(message)}"):
        ours(**inputs | {name: change(inputs[name])})


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_ids_may_be_of_any_integer_type(ours, inputs, dtype):
    inputs["segment_ids"] = inputs["segment_ids"].clamp(0)
    inputs["indicator"][inputs["indicator"] == 0] = 2
    narrow = inputs | {name: inputs[name].to(dtype) for name in ("segment_ids", "indicator")}
    assert torch.equal(ours(**narrow).sample, ours(**inputs).sample)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "`in_channels` must be a positive integer, got 0"),
        ({"num_layers": -1}, "`num_layers`"),
        ({"num_attention_heads": 2.0}, "`num_attention_heads` must be a positive integer, got 2.0"),
        ({"attention_head_dim": 15}, "`attention_head_dim` must be even"),
        ({"attention_head_dim": 2, "num_attention_heads": 1, "mrope_section": (1, 0, 0)}, "at least 4"),
        ({"mrope_section": (4, 2)}, "`mrope_section` must be three"),
        ({"mrope_section": (4, -1, 2)}, "none negative"),
        ({"mrope_section": (4, 4, 2)}, "the h axis would take frequency 10, and a head has 8"),
        ({"mrope_section": (4, 2, 3)}, "the w axis would take frequency 8, and a head has 8"),
    ],
)
def test_the_constructor_refuses(config, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Ideogram4Transformer2DModel(**config | change)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.zeros(4, 20), ValueError, "(text_tokens=5, llm_features_dim=20), got (4, 20)"),
        (torch.zeros(5, 19), ValueError, "llm_features_dim=20"),
        (torch.zeros(1, 5, 20), ValueError, "got (1, 5, 20)"),
        (None, TypeError, "NoneType"),
    ],
)
def test_prepare_refuses(ours, features, error, message):
    with pytest.raises(error, match=f"`encoder_hidden_states`.*{re.escape(message)}"):
        ours.prepare(features, Layout.of_samples([(5, 1, 2)]))


def test_prepare_refuses_features_of_a_layout_without_text(ours):
    with pytest.raises(ValueError, match="text_tokens=0"):
        ours.prepare(torch.zeros(5, 20), Layout.of_samples([(0, 1, 2)]))


@pytest.mark.parametrize(
    ("latents", "times", "error", "message"),
    [
        (torch.zeros(3, 8), torch.rand(2), ValueError, "`latents`.*(image_tokens=4, in_channels=8), got (3, 8)"),
        (torch.zeros(4, 7), torch.rand(2), ValueError, "`latents`.*in_channels=8"),
        (torch.zeros(4, 8), torch.rand(1), ValueError, "`times`.*(segments=2), got (1,)"),
        (torch.zeros(4, 8), torch.rand(2, 1), ValueError, "`times`.*got (2, 1)"),
        (torch.zeros(4, 8), torch.tensor([0.5, nan]), ValueError, "`times`.*[0, 1]"),
        (torch.zeros(4, 8), torch.tensor([0.5, 1.1]), ValueError, "`times`.*got 1.1"),
        (torch.zeros(4, 8), [0.5, 0.5], TypeError, "`times`.*list"),
    ],
)
def test_velocity_refuses(ours, latents, times, error, message):
    context = ours.prepare(None, Layout.of_samples([(0, 1, 2), (0, 2, 1)]))
    name, rest = message.split(".*")
    with pytest.raises(error, match=f"{name}.*{re.escape(rest)}"):
        ours.velocity(latents, times, context)


def test_times_on_another_device_are_not_waited_for(ours):
    """Only host times are looked at: a step must not synchronise with the device."""
    context = ours.prepare(None, Layout.of_samples([(0, 1, 2)]))
    meta = ours.to("meta").velocity(torch.zeros(2, 8, device="meta"), torch.rand(1, device="meta"), context.to("meta"))
    assert meta.shape == (2, 8)
