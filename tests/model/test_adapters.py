"""LoRA adapters load, scale, fuse, swap and save as in the peer, whose results on the same weights are expected."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3", "input_proj", "llm_cond_proj", "adaln_modulation"]
FILE = "pytorch_lora_weights.safetensors"


def add(model, seed=0, rank=4, name="default"):
    torch.manual_seed(seed)
    model.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights=False), adapter_name=name
    )


@pytest.fixture
def adapters(pair, tmp_path):
    """Folders of two adapters, saved by the peer and by us, of the same shapes."""
    for model, name, seed in ((pair[0], "peer", 1), (pair[1], "ours", 2)):
        add(model, seed, name=name)
        model.save_lora_adapter(tmp_path / name, adapter_name=name)
        model.unload_lora()
    return {name: tmp_path / name / FILE for name in ("peer", "ours")}


@pytest.fixture
def compare(pair, inputs, real):
    """Assert that ours gives the peer's result, and return it."""

    def check(**kwargs) -> torch.Tensor:
        with torch.no_grad():
            peer, ours = (model(**inputs, **kwargs).sample[real(inputs)] for model in pair)
        assert (ours - peer).abs().max() <= 2e-5 * peer.abs().max()
        return ours

    return check


def test_adapters_of_one_load_in_the_other(pair, adapters, compare):
    base = compare()
    for path in adapters.values():
        for model in pair:
            model.load_lora_adapter(path, prefix=None, adapter_name="style")
        assert not torch.allclose(compare(), base, atol=1e-3)
        for model in pair:
            model.delete_adapters("style")
        assert torch.equal(compare(), base)


def test_a_saved_adapter_is_the_one_that_was_added(pair, tmp_path):
    peer, ours = pair
    for model, name in ((peer, "peer"), (ours, "ours")):
        add(model)
        model.save_lora_adapter(tmp_path / name)
    saved, expected = (load_file(tmp_path / name / FILE) for name in ("ours", "peer"))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


def test_attention_kwargs_scale_the_adapter_of_one_call(pair, adapters, compare):
    base = compare()
    for model in pair:
        model.load_lora_adapter(adapters["peer"], prefix=None)
    full = compare()
    half = compare(attention_kwargs={"scale": 0.5})
    assert not torch.allclose(half, full, atol=1e-3) and not torch.allclose(half, base, atol=1e-3)
    assert torch.allclose(compare(attention_kwargs={"scale": 0.0}), base, atol=1e-5)
    assert torch.equal(compare(), full)


def test_a_scale_of_a_step_and_of_its_preparation(ours, adapters, inputs, stream_inputs):
    ours.load_lora_adapter(adapters["peer"], prefix=None)
    features, layout, latents, times = stream_inputs(inputs)
    kwargs = {"attention_kwargs": {"scale": 0.5}}
    context = ours.prepare(features, layout, **kwargs)
    velocity = ours.velocity(latents, times, context, **kwargs)
    expected = ours(**inputs, **kwargs).sample[inputs["indicator"] == 2]
    assert velocity.abs().sum().item() == pytest.approx(expected.abs().sum().item(), rel=1e-5)
    assert kwargs == {"attention_kwargs": {"scale": 0.5}}
    assert not torch.allclose(ours.velocity(latents, times, context), velocity, atol=1e-3)


def test_two_adapters_are_weighed(pair, adapters, compare):
    for model in pair:
        for name, path in adapters.items():
            model.load_lora_adapter(path, prefix=None, adapter_name=name)
        model.set_adapters(["peer", "ours"], [0.7, 0.2])
    both = compare()
    for model in pair:
        model.set_adapters(["peer"], [0.7])
    assert not torch.allclose(compare(), both, atol=1e-3)
    for model in pair:
        model.disable_adapters()
    base = compare()
    for model in pair:
        model.enable_adapters()
    assert not torch.allclose(compare(), base, atol=1e-3)


def test_fusing_changes_nothing_and_unfusing_restores(pair, adapters, compare):
    base = compare()
    for model in pair:
        model.load_lora_adapter(adapters["ours"], prefix=None)
    separate = compare()
    for model in pair:
        model.fuse_lora()
    assert torch.allclose(compare(), separate, atol=1e-4)
    for model in pair:
        model.unfuse_lora()
        model.unload_lora()
    assert torch.allclose(compare(), base, atol=1e-4)
    assert not any(isinstance(module, BaseTunerLayer) for module in pair[1].modules())


def test_hotswapping_puts_one_adapter_in_the_place_of_another(pair, adapters, compare):
    for model in pair:
        model.load_lora_adapter(adapters["peer"], prefix=None, adapter_name="style")
    first = compare()
    for model in pair:
        model.load_lora_adapter(adapters["ours"], prefix=None, adapter_name="style", hotswap=True)
    second = compare()
    assert not torch.allclose(first, second, atol=1e-3)
    for model in pair:
        model.delete_adapters("style")
        model.load_lora_adapter(adapters["ours"], prefix=None)
    assert torch.allclose(compare(), second, atol=1e-5)


def test_an_adapter_is_respected_while_projections_are_fused(pair, adapters, compare):
    pair[1].fuse_qkv_projections()
    base = compare()
    for model in pair:
        model.load_lora_adapter(adapters["peer"], prefix=None)
    assert not torch.allclose(compare(), base, atol=1e-3)


def test_only_the_adapter_is_trained(ours, inputs):
    ours.requires_grad_(False)
    add(ours)
    ours(**inputs).sample.square().sum().backward()
    trained = {name for name, parameter in ours.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in ours.named_parameters() if "lora_" in name}
