"""Adapters: what they touch, how they are saved, and that every loader gives them the same strength."""

from __future__ import annotations

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ideoflow import Ideogram4Transformer2DModel, sketch
from ideoflow.packing import Layout
from ideoflow.training.trained_adapter import (
    COMFY_FILE,
    FILE,
    AdapterSettings,
    adapter_weights,
    add_adapter,
    save_adapter,
)


def transformer() -> Ideogram4Transformer2DModel:
    return Ideogram4Transformer2DModel.from_pretrained(sketch.path() / "transformer")


def adapted(**options) -> Ideogram4Transformer2DModel:
    """A transformer with an adapter of random weights."""
    model = transformer()
    torch.manual_seed(5)
    for parameter in add_adapter(model, AdapterSettings(**{"rank": 3} | options)):
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def velocity(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    layout = Layout.of_samples([(5, 4, 3), (7, 2, 6)])
    features = torch.randn(12, model.config.llm_features_dim, generator=generator)
    latents = torch.randn(24, model.config.in_channels, generator=generator)
    return model.velocity(latents, torch.tensor([0.3, 0.8]), model.prepare(features, layout))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_a_new_adapter_changes_nothing_and_alone_learns():
    plain, model = transformer(), transformer()
    parameters = add_adapter(model, AdapterSettings(rank=4))
    assert torch.equal(velocity(model), velocity(plain))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(parameters) and all("lora_" in name for name in trained)
    assert not torch.equal(velocity(adapted()), velocity(plain))


def test_the_seed_alone_decides_the_first_weights():
    one, two, other = transformer(), transformer(), transformer()
    torch.manual_seed(1)
    a = add_adapter(one, AdapterSettings(seed=3))
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    b = add_adapter(two, AdapterSettings(seed=3))
    c = add_adapter(other, AdapterSettings(seed=4))
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))


def test_adapters_of_a_half_precision_model_are_float32():
    model = transformer().bfloat16()
    assert {p.dtype for p in add_adapter(model, AdapterSettings(rank=2))} == {torch.float32}
    assert model.layers[0].attention.to_q.base_layer.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("also", [pytest.param((), marks=pytest.mark.long), ("comfy",)])
@pytest.mark.parametrize(
    "options", [{}, {"alpha": 7.0, "targets": "all"}, {"targets": [r".*to_q", r".*to_v", r".*\.w2"]}]
)
def test_both_forms_have_the_same_effect_in_both_pipelines(tmp_path, options, also):
    model = adapted(**options)
    files = save_adapter(tmp_path, adapter_weights(model), metadata={}, also=also)
    expected = velocity(model)
    assert relative(expected, velocity(transformer())) > 0.02
    ours = sketch.load()
    ours.load_lora_weights(tmp_path, weight_name=files[-1].name)
    assert relative(velocity(ours.transformer), expected) <= 2e-5
    peer = diffusers.Ideogram4Pipeline.from_pretrained(sketch.path())
    peer.load_lora_weights(tmp_path, weight_name=files[-1].name)
    peer.fuse_lora()
    peer.unload_lora_weights()
    plain = transformer()
    plain.load_state_dict(peer.transformer.state_dict())
    assert relative(velocity(plain), expected) <= 2e-5


def test_dora_goes_there_and_back(tmp_path):
    model = adapted(dora=True)
    save_adapter(tmp_path, adapter_weights(model), metadata={})
    assert any("lora_magnitude_vector" in name for name in load_file(tmp_path / FILE))
    pipeline = sketch.load()
    pipeline.load_lora_weights(tmp_path)
    assert relative(velocity(pipeline.transformer), velocity(model)) <= 2e-5
    with pytest.raises(ValueError, match="without `dora`"):
        save_adapter(tmp_path, adapter_weights(model), metadata={}, also=["comfy"])


def test_files_say_what_they_are_and_replace_old_ones(tmp_path):
    metadata = {"base": "some/model", "trigger": "sks", "config": '{"rank": 3}'}
    (tmp_path / FILE).write_bytes(b"old")
    save_adapter(tmp_path, adapter_weights(adapted()), metadata=metadata, also=["comfy"])
    assert {path.name for path in tmp_path.iterdir()} == {FILE, COMFY_FILE}
    for name in (FILE, COMFY_FILE):
        with safe_open(tmp_path / name, "pt") as file:
            assert metadata.items() <= file.metadata().items()
    keys = load_file(tmp_path / COMFY_FILE).keys()
    assert {key.split(".")[0] for key in keys} == {"diffusion_model"}
    assert {key.split(".", 3)[-1].rsplit(".", 2)[0] for key in keys} == {"attention.qkv", "attention.o"}
    with pytest.raises(ValueError, match="holds kohya"):
        save_adapter(tmp_path, adapter_weights(adapted()), metadata={}, also=["kohya"])
