"""Strengths of adapters that are no finite numbers: refused by name, before the weights are touched."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig

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
