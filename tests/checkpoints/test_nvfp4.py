"""NVIDIA's 4-bit floating point: both orders read exactly, kept in four bits, and refused where nothing says which."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints import CheckpointError, open_checkpoint
from ideoflow.checkpoints.convert import convert
from ideoflow.checkpoints.nvfp4 import NVFP4, untiled
from ideoflow.ops.nvfp4_linear import Nvfp4Linear, expand
from ideoflow.sketch.world import sample

from .forms import Weights, is_linear, load_transformer, original_config, original_weights, random_model, write_config
from .forms_low_bit import blocks_only, note_tensor, nvfp4, nvfp4_values, tiled_places

MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "producer": {"name": "modelopt", "version": "0.47"}}
LAYERS = "_quantization_metadata"


@pytest.fixture(scope="module")
def model() -> Ideogram4Transformer2DModel:
    return random_model(6)


def stored_as(weights: Weights, form: str, prefix: str = "") -> tuple[Weights, dict[str, str], Weights]:
    """A file's tensors and header, and what each weight stands for."""
    stored: Weights = {}
    values: Weights = {}
    layers = {}
    comfy = form != "modelopt"
    for name, tensor in weights.items():
        if not is_linear(name, tensor) or not blocks_only(name):
            stored[prefix + name] = values[name] = tensor.clone()
            continue
        layer = prefix + name.removesuffix(".weight")
        parts = nvfp4(tensor, comfy=comfy)
        values[name] = nvfp4_values(parts, comfy=comfy)
        if form == "comfy":
            parts["comfy_quant"] = note_tensor({"format": "nvfp4"})
        elif form == "comfy, header":
            layers[layer] = {"format": "nvfp4"}
        elif form == "comfy, header without prefix":
            layers[layer.removeprefix(prefix)] = {"format": "nvfp4"}
        else:
            parts["input_scale"] = torch.tensor(0.25)
        stored |= {f"{layer}.{part}": one for part, one in parts.items()}
    header = {LAYERS: json.dumps({"format_version": "1.0", "layers": layers})} if layers else {}
    return stored, header, values


def assert_near(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """One rounding from float64; float32's own product of two scales rounds once more."""
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), wanted, rtol=eps, atol=0)


@pytest.mark.parametrize("form", ["modelopt", "comfy", "comfy, header", "comfy, header without prefix"])
@pytest.mark.parametrize("naming", ["diffusers", "original"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_either_order_and_naming_loads_what_the_file_stands_for(model, tmp_path, form, naming, dtype):
    own = model.state_dict() if naming == "diffusers" else original_weights(model.state_dict())
    prefix = "" if form == "modelopt" else "model.diffusion_model."
    stored, header, values = stored_as(own, form, prefix)
    save_file(stored, tmp_path / "model.safetensors", header)
    config = dict(model.config) if naming == "diffusers" else original_config(model.config)
    write_config(tmp_path, config | ({"quantization_config": MODELOPT} if form == "modelopt" else {}))

    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.form == f"{naming}, nvfp4"
    loaded = load_transformer(checkpoint, dtype=dtype, dequantize=True).state_dict()

    found = loaded if naming == "diffusers" else original_weights(loaded)
    assert found.keys() == values.keys()
    for name, wanted in values.items():
        assert_near(found[name], wanted.to(dtype).double() if name not in blocks(values) else wanted, dtype)


def blocks(weights: Weights) -> set[str]:
    return {name for name, tensor in weights.items() if is_linear(name, tensor) and blocks_only(name)}


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 300), groups=st.integers(1, 20), seed=st.integers(0, 99))
def test_tiles_are_those_of_cublas(rows, groups, seed):
    scales = torch.randint(0, 256, (rows, groups), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    size, places = tiled_places(rows, groups)
    tiled = torch.full((size,), 77, dtype=torch.uint8)
    tiled[places] = scales
    assert torch.equal(untiled(tiled, rows, groups), scales)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 40), groups=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_code_and_scale_expands_to_its_value(rows, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, groups * 8), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(rows, groups, generator=generator) * 448).to(torch.float8_e4m3fn)
    scale = torch.rand((), generator=generator)
    parts = {"weight": codes, "weight_scale": scales, "weight_scale_2": scale}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        wanted = nvfp4_values(parts, comfy=False)
        assert torch.equal(expand(codes, scales, scale, dtype).double(), one_rounding(wanted, parts, dtype))


def one_rounding(wanted: torch.Tensor, parts: Weights, dtype: torch.dtype) -> torch.Tensor:
    """In float32 as the layer has it: the scales' product is rounded first, and the whole once more."""
    exact = (parts["weight_scale"].double() * parts["weight_scale_2"].double())[..., None]
    both = (parts["weight_scale"].float() * parts["weight_scale_2"]).double()[..., None]
    values = torch.nan_to_num(wanted.view(*exact.shape[:2], 16) / exact).mul(2).round() / 2  # multiples of a half
    return (values * both).float().to(dtype).double().view(wanted.shape)


def folder_of(model, folder, form="comfy"):
    stored, header, values = stored_as(model.state_dict(), form)
    save_file(stored, folder / "model.safetensors", header)
    write_config(folder, dict(model.config) | ({"quantization_config": MODELOPT} if form == "modelopt" else {}))
    return values


@pytest.mark.parametrize("form", ["modelopt", "comfy"])
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_it_is_kept_in_four_bits_and_gives_what_the_expanded_model_gives(model, tmp_path, form, naming):
    own = model.state_dict() if naming == "diffusers" else original_weights(model.state_dict())
    stored, header, _ = stored_as(own, form)
    save_file(stored, tmp_path / "model.safetensors", header)
    config = dict(model.config) if naming == "diffusers" else original_config(model.config)
    write_config(tmp_path, config | {"quantization_config": MODELOPT} if form == "modelopt" else config)
    kept = load_transformer(open_checkpoint(tmp_path))
    expanded = load_transformer(open_checkpoint(tmp_path), dequantize=True)

    layers = [layer for layer in kept.modules() if isinstance(layer, Nvfp4Linear)]
    assert len(layers) == 16  # seven in each of two blocks, and their modulation
    assert all(layer.weight.dtype == torch.uint8 for layer in layers)

    for name, layer in kept.named_modules():
        if isinstance(layer, Nvfp4Linear):
            x = torch.randn(3, 5, layer.in_features, requires_grad=True)
            other = x.detach().clone().requires_grad_()
            mine, theirs = layer(x), expanded.get_submodule(name)(other)
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
            mine.square().sum().backward()
            theirs.square().sum().backward()
            torch.testing.assert_close(x.grad, other.grad, rtol=1e-6, atol=1e-6)


def test_other_types_change_what_is_computed_and_not_what_is_kept(model, tmp_path):
    folder_of(model, tmp_path)
    kept = load_transformer(open_checkpoint(tmp_path))
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items() if "weight_scale" in name}
    half = copy.deepcopy(kept).to(torch.bfloat16)
    layer = half.layers[0].feed_forward.w1
    assert layer.weight_scale.dtype == torch.float8_e4m3fn and layer.weight_scale_2.dtype == torch.float32
    assert layer.dequantize().dtype == torch.bfloat16
    assert before and all(torch.equal(half.state_dict()[name], tensor) for name, tensor in before.items())


def test_an_adapter_lies_on_it(model, tmp_path):
    folder_of(model, tmp_path)
    kept, plain = (load_transformer(open_checkpoint(tmp_path), dequantize=on) for on in (False, True))
    config = peft.LoraConfig(target_modules=["to_q", "w2"], r=4, init_lora_weights=False)
    torch.manual_seed(0)
    kept.add_adapter(config)
    plain.add_adapter(config)
    plain.load_state_dict({name: one for name, one in kept.state_dict().items() if "lora_" in name}, strict=False)
    for name, layer in kept.named_modules():
        if name.endswith(("to_q", "w2")):
            x = torch.randn(4, layer.in_features)
            torch.testing.assert_close(layer(x), plain.get_submodule(name)(x))


def test_a_pipeline_draws_with_it_what_it_draws_with_the_expanded_weights(tmp_path):
    stored, header, _ = stored_as(sketch.load().transformer.state_dict(), "comfy, header", "model.diffusion_model.")
    save_file(stored, tmp_path / "x.safetensors", header)
    results = []
    for dequantize in (True, False):
        pipe = Ideogram4Pipeline.from_single_file(
            tmp_path / "x.safetensors", config=sketch.path(), dequantize=dequantize
        )
        pipe.set_progress_bar_config(disable=True)
        kept = [part for part in pipe.transformer.modules() if isinstance(part, Nvfp4Linear)]
        assert bool(kept) != dequantize
        generator = torch.Generator().manual_seed(2)
        drawn = pipe(
            sample(3).caption, height=96, width=96, num_inference_steps=2, guidance_scale=3.0, guidance_schedule=None,
            generator=generator, output_type="latent",
        )  # fmt: skip
        results.append(drawn.images)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"NVFP4.*dequantize=True"):
        pipe.save_pretrained(tmp_path / "saved")


def test_convert_expands_it(model, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    values = folder_of(model, source)
    convert(source, tmp_path / "made", "diffusers", dtype=torch.float32)
    found = load_transformer(open_checkpoint(tmp_path / "made")).state_dict()
    for name in blocks(values):
        assert_near(found[name], values[name], torch.float32)


@pytest.mark.parametrize("note", [MODELOPT, {"quant_method": "modelopt"}, {"producer": {"name": "modelopt"}}])
def test_model_optimizers_note_may_stand_beside_the_weights(model, tmp_path, note):
    folder_of(model, tmp_path, "modelopt")
    write_config(tmp_path, dict(model.config))
    with pytest.raises(CheckpointError, match=r"in which of two orders.*modelopt"):
        open_checkpoint(tmp_path)
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(note))
    assert open_checkpoint(tmp_path).form == "diffusers, nvfp4"


DAMAGE: dict[str, tuple[Callable[[Weights, str], object], str]] = {
    "no scale of the whole": (lambda w, layer: w.pop(f"{layer}.weight_scale_2"), "no storage that is known"),
    "no scales": (lambda w, layer: w.pop(f"{layer}.weight_scale"), "no storage that is known"),
    "fewer scales": (
        lambda w, layer: w.update({f"{layer}.weight_scale": w[f"{layer}.weight_scale"][:64].clone()}), "must be F8_E4M3"
    ),
    "scales of another type": (
        lambda w, layer: w.update({f"{layer}.weight_scale": w[f"{layer}.weight_scale"].float()}), "must be F8_E4M3"
    ),
    "scales that are no numbers": (
        lambda w, layer: w[f"{layer}.weight_scale"].view(torch.uint8).fill_(0x7F), "not finite"
    ),
    "several scales of the whole": (
        lambda w, layer: w.update({f"{layer}.weight_scale_2": torch.ones(3)}), "must be one value"
    ),
    "another width": (
        lambda w, layer: w.update({f"{layer}.weight": w[f"{layer}.weight"][:, :12].clone()}), "no rows of 16 values"
    ),
    "another format": (
        lambda w, layer: w.update({f"{layer}.comfy_quant": note_tensor({"format": "mxfp8"})}), "says 'mxfp8'"
    ),
    "a note that is none": (
        lambda w, layer: w.update({f"{layer}.comfy_quant": torch.arange(9).to(torch.uint8)}), "no note of ComfyUI's"
    ),
    "a note without end": (
        lambda w, layer: w.update({f"{layer}.comfy_quant": torch.zeros(9999, dtype=torch.uint8)}), "longer than"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_what_does_not_fit_together_is_refused_by_name(model, tmp_path, what):
    stored, header, _ = stored_as(model.state_dict(), "comfy")
    layer = "layers.1.feed_forward.w2"
    damage, told = DAMAGE[what]
    damage(stored, layer)
    save_file(stored, tmp_path / "model.safetensors", header)
    write_config(tmp_path, dict(model.config))
    with pytest.raises(CheckpointError, match=told) as error:
        load_transformer(open_checkpoint(tmp_path))
    assert re.search(rf"{re.escape(layer)}\.", str(error.value))


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"layers": 3}', '{"layers": {"a": 1}}', '{"layers": [1]}', "null", "1e999"]
)
def test_a_header_that_is_no_note_is_refused(model, tmp_path, text):
    stored, _, _ = stored_as(model.state_dict(), "comfy, header")
    save_file(stored, tmp_path / "model.safetensors", {LAYERS: text})
    write_config(tmp_path, dict(model.config))
    with pytest.raises(CheckpointError, match=LAYERS):
        open_checkpoint(tmp_path)


def test_rows_of_tiles_are_those_of_the_whole():
    """Rows of a projection that holds queries, keys and values, cut from tiles."""
    weight = torch.randn(96, 64)
    parts = nvfp4(weight, comfy=True) | {"comfy_quant": note_tensor({"format": "nvfp4"})}
    whole = NVFP4().expand(parts, torch.float32)
    for start, stop in ((0, 32), (32, 64), (64, 96)):
        piece = NVFP4().rows(parts, start, stop)
        assert torch.equal(NVFP4().expand(piece, torch.float32), whole[start:stop])
        assert torch.equal(NVFP4().layer(piece, torch.float32).dequantize(), whole[start:stop])


@pytest.mark.parametrize("shape", [(48, 64), (128, 64), (272, 160)])
def test_it_is_what_comfyuis_own_library_writes_and_reads(shape):
    kitchen = pytest.importorskip("comfy_kitchen", reason="ComfyUI's kernels are not installed")
    weight = torch.randn(shape)
    scale = weight.abs().amax() / (448 * 6)
    codes, scales = kitchen.quantize_nvfp4(weight, scale)
    parts = {
        "weight": codes,
        "weight_scale": scales,
        "weight_scale_2": scale,
        "comfy_quant": note_tensor({"format": "nvfp4"}),
    }
    theirs = kitchen.dequantize_nvfp4(codes, scale, scales, torch.float32)
    assert torch.equal(NVFP4().expand(parts, torch.float32), theirs)


@pytest.mark.parametrize("shape", [(48, 64), (272, 160)])
def test_it_is_what_model_optimizers_own_library_writes_and_reads(shape):
    pytest.importorskip("modelopt", reason="NVIDIA Model Optimizer is not installed")
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    weight = torch.randn(shape)
    tensor, scales, scale = NVFP4QTensor.quantize(weight.clone(), 16)
    parts = {"weight": tensor._quantized_data, "weight_scale": scales, "weight_scale_2": scale}
    theirs = tensor.dequantize(torch.float32, scale=scales, double_scale=scale, block_sizes={-1: 16})
    assert torch.equal(NVFP4().expand(parts, torch.float32), theirs)


def test_layers_say_what_they_are():
    layer = NVFP4().layer(nvfp4(torch.randn(16, 32), comfy=False), torch.float32)
    assert isinstance(layer, nn.Linear) and (layer.in_features, layer.out_features) == (32, 16)
    assert layer.to_linear().weight.shape == (16, 32)
