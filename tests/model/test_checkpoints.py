"""Saving and loading: our folders and the peer's are the same, whole or sharded, of any type, on any device map."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ideoflow import Ideogram4Transformer2DModel


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_default_configuration_is_the_peers():
    with torch.device("meta"):
        peer, ours = diffusers.Ideogram4Transformer2DModel(), Ideogram4Transformer2DModel()
    assert dict(ours.config) == dict(peer.config)
    shapes, expected = ({name: x.shape for name, x in model.state_dict().items()} for model in (ours, peer))
    assert shapes == expected
    assert sum(parameter.numel() for parameter in ours.parameters()) == pytest.approx(9.28e9, rel=1e-3)


def test_state_dicts_load_strictly_both_ways(pair):
    peer, ours = pair
    ours.load_state_dict(peer.state_dict(), strict=True)
    peer.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("max_shard_size", ["10GB", "20KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder_of_one_opens_in_the_other(pair, tmp_path, max_shard_size, variant):
    peer, ours = pair
    ours.save_pretrained(tmp_path / "ours", max_shard_size=max_shard_size, variant=variant)
    peer.save_pretrained(tmp_path / "peer", max_shard_size=max_shard_size, variant=variant)
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("ours", "peer")]
    assert files[0] == files[1]
    assert (len(files[0]) > 2) == (max_shard_size == "20KB")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "peer")]
    assert configs[0] == configs[1]

    assert same_weights(Ideogram4Transformer2DModel.from_pretrained(tmp_path / "peer", variant=variant), peer)
    assert same_weights(diffusers.Ideogram4Transformer2DModel.from_pretrained(tmp_path / "ours", variant=variant), ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_weights_load_as_the_type_asked_for(ours, tmp_path, dtype, low_cpu_mem_usage):
    ours.save_pretrained(tmp_path)
    loaded = Ideogram4Transformer2DModel.from_pretrained(
        tmp_path, torch_dtype=dtype, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert loaded.dtype == dtype
    assert same_weights(loaded, ours.to(dtype))


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map_is_followed(ours, inputs, tmp_path, device_map):
    ours.save_pretrained(tmp_path)
    loaded = Ideogram4Transformer2DModel.from_pretrained(tmp_path, device_map=device_map)
    assert torch.equal(loaded.eval()(**inputs).sample, ours(**inputs).sample)


def test_layers_kept_on_disk_are_read_when_they_run(ours, inputs, stream_inputs, tmp_path):
    """Each part moves its own arguments, so the layout and the context pass through accelerate's hooks."""
    ours.save_pretrained(tmp_path / "model")
    parts = [name for name, _ in ours.named_children() if name != "layers"]
    device_map = {name: "cpu" for name in parts} | {"layers.0": "disk", "layers.1": "cpu"}
    loaded = Ideogram4Transformer2DModel.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    ).eval()
    assert loaded.layers[0].attention.to_q.weight.device.type == "meta"
    features, layout, latents, times = stream_inputs(inputs)
    with torch.no_grad():
        # Norms with hooks are called as modules, which round elsewhere.
        assert torch.allclose(loaded(**inputs).sample, ours(**inputs).sample, atol=1e-5)
        expected = ours.velocity(latents, times, ours.prepare(features, layout))
        found = loaded.velocity(latents, times, loaded.prepare(features, layout))
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_model_made_on_the_meta_device_computes_once_it_has_weights(ours, config, inputs):
    with torch.device("meta"):
        empty = Ideogram4Transformer2DModel(**config)
    empty.load_state_dict(ours.state_dict(), strict=True, assign=True)
    assert torch.equal(empty.eval()(**inputs).sample, ours(**inputs).sample)


def test_layers_that_hold_no_plain_weight_work(ours, inputs):
    """Quantized layers: our class calls its parts, and never reads a weight itself."""

    class Quantized(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.scale = nn.Parameter(linear.weight.abs().max() / 127)
            self.register_buffer("packed", (linear.weight / self.scale).round().to(torch.int8))
            self.bias = linear.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.packed * self.scale, self.bias)

    expected = ours(**inputs).sample
    for name, module in list(ours.named_modules()):
        if isinstance(module, nn.Linear):
            ours.set_submodule(name, Quantized(module))
    output = ours(**inputs).sample
    assert 0 < (output - expected).norm() < 0.1 * expected.norm()


@pytest.mark.skipif(torch.cuda.is_available(), reason="would quantize")
def test_a_quantization_config_reaches_the_quantizer(ours, tmp_path):
    """Without the GPU that it needs, loading must fail in the quantizer and not in our class."""
    ours.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="GPU is needed for quantization"):
        Ideogram4Transformer2DModel.from_pretrained(
            tmp_path, quantization_config=diffusers.BitsAndBytesConfig(load_in_8bit=True)
        )
