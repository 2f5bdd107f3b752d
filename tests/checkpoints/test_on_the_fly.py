"""Quantizing while loading: the same layers and outputs as by the peer's loader, from any form of checkpoint."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import BitsAndBytesConfig, TorchAoConfig
from safetensors.torch import load_file
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
)

from ideoflow.checkpoints import open_checkpoint
from ideoflow.ops.linear import Linear

from .forms import (
    float8_rows,
    float8_scaled,
    load_transformer,
    original_config,
    original_weights,
    random_model,
    write,
    write_config,
)
from .forms_low_bit import four_bits, write_gguf

CONFIGS = {
    "int8": Int8WeightOnlyConfig,
    "fp8": Float8WeightOnlyConfig,
    "int4": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
}
FORMS = ("diffusers", "original", "fp8", "comfyui", "nf4", "gguf")


@pytest.fixture(scope="module")
def model():
    return random_model(6, in_channels=32, intermediate_size=128)


def write_form(folder, model, form):
    """A file of this form, and the peer's folder with what it stands for."""
    weights, config = model.state_dict(), dict(model.config)
    original = original_weights(weights)
    write_config(folder, original_config(config) if form in ("original", "comfyui") else config)
    if form == "gguf":
        file = write_gguf(folder / "x.gguf", original)
    else:
        stored = {
            "diffusers": lambda: weights,
            "original": lambda: original,
            "fp8": lambda: float8_rows(weights),
            "comfyui": lambda: float8_scaled(original, old=False),
            "nf4": lambda: four_bits(original, nested=True),
        }[form]()
        file = write(folder / "x.safetensors", stored)
    checkpoint = open_checkpoint(file)
    load_transformer(checkpoint, dequantize=True).save_pretrained(folder / "expanded")
    return checkpoint, folder / "expanded"


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_torchao_quantizes_as_it_does_in_the_peers_loader(model, inputs_of, tmp_path, kind, dtype):
    checkpoint, folder = write_form(tmp_path, model, "diffusers")

    ours = load_transformer(checkpoint, dtype=dtype, quantization_config=TorchAoConfig(CONFIGS[kind]()))

    config = TorchAoConfig(CONFIGS[kind]())
    peer = diffusers.Ideogram4Transformer2DModel.from_pretrained(folder, quantization_config=config, torch_dtype=dtype)
    same_quantized_weights(ours, peer)
    inputs = inputs_of(ours, dtype)
    with torch.no_grad():
        found, wanted = ours(**inputs).sample, peer(**inputs).sample
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())
    assert ours.is_quantized and ours.hf_quantizer.quantization_config.quant_method == "torchao"


def same_quantized_weights(ours, peer):
    theirs = dict(peer.named_modules())
    quantized = 0
    for name, layer in ours.named_modules():
        if isinstance(layer, torch.nn.Linear):
            assert type(layer.weight) is type(theirs[name].weight), name
            quantized += type(layer.weight) is not torch.nn.Parameter
            assert torch.equal(dense(layer.weight), dense(theirs[name].weight)), name
    assert quantized == 2 * 8 + 7


def dense(weight):
    return weight.dequantize() if hasattr(weight, "qdata") else weight


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_quantized_from_what_it_stands_for(model, tmp_path, form):
    """Expanded to the type asked for, one weight at a time, then quantized."""
    checkpoint, folder = write_form(tmp_path, model, form)
    quantization = lambda: TorchAoConfig(Int8WeightOnlyConfig())  # noqa: E731

    ours = load_transformer(checkpoint, dtype=torch.bfloat16, quantization_config=quantization())

    peer = diffusers.Ideogram4Transformer2DModel.from_pretrained(
        folder, quantization_config=quantization(), torch_dtype=torch.bfloat16
    )
    same_quantized_weights(ours, peer)


def test_modules_may_be_left_out_and_the_configuration_stays_as_it_was(model, tmp_path):
    checkpoint, _ = write_form(tmp_path, model, "original")
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["adaln_modulation", "input_proj"])
    ours = load_transformer(checkpoint, quantization_config=config)
    assert type(ours.input_proj) is Linear and type(ours.input_proj.weight) is torch.nn.Parameter
    assert type(ours.layers[0].adaln_modulation.weight) is torch.nn.Parameter
    assert type(ours.layers[0].attention.to_q.weight) is not torch.nn.Parameter
    assert config.modules_to_not_convert == ["adaln_modulation", "input_proj"]


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_what_was_quantized_is_saved_for_the_peer(model, inputs_of, tmp_path, kind):
    checkpoint, _ = write_form(tmp_path, model, "original")
    ours = load_transformer(checkpoint, dtype=torch.bfloat16, quantization_config=TorchAoConfig(CONFIGS[kind]()))
    ours.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "diffusion_pytorch_model.safetensors")
    assert any("qdata" in name for name in saved)
    peer = diffusers.Ideogram4Transformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    same_quantized_weights(ours, peer)


def test_projections_that_were_quantized_are_not_fused(model, inputs_of, tmp_path):
    checkpoint, _ = write_form(tmp_path, model, "original")
    ours = load_transformer(checkpoint, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    inputs = inputs_of(ours, torch.float32)
    with torch.no_grad():
        before = ours(**inputs).sample
        ours.fuse_qkv_projections()
        assert torch.equal(ours(**inputs).sample, before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="would quantize")
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_bitsandbytes_says_itself_that_it_quantizes_on_gpus_alone(model, tmp_path, bits):
    checkpoint, _ = write_form(tmp_path, model, "original")
    with pytest.raises(RuntimeError, match="A GPU is needed for quantization"):
        load_transformer(checkpoint, quantization_config=BitsAndBytesConfig(**{bits: True}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="bitsandbytes quantizes while loading on GPUs alone")
@pytest.mark.parametrize(
    "options", [dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"), dict(load_in_8bit=True)], ids=["nf4", "int8"]
)
def test_bitsandbytes_quantizes_as_in_the_peers_loader(model, inputs_of, tmp_path, options):
    checkpoint, folder = write_form(tmp_path, model, "original")
    ours = load_transformer(
        checkpoint, dtype=torch.bfloat16, device="cuda", quantization_config=BitsAndBytesConfig(**options)
    )
    peer = diffusers.Ideogram4Transformer2DModel.from_pretrained(
        folder, torch_dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**options)
    )
    found, wanted = ours.state_dict(), peer.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="would quantize")
def test_int4_of_torchao_that_needs_a_gpu_says_so(model, tmp_path):
    checkpoint, _ = write_form(tmp_path, model, "diffusers")
    config = TorchAoConfig(Int4WeightOnlyConfig(group_size=32, int4_packing_format="plain_int32"))
    with pytest.raises(NotImplementedError, match="does not support device 'cpu'"):
        load_transformer(checkpoint, dtype=torch.bfloat16, quantization_config=config)
