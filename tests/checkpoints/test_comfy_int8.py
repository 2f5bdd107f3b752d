"""ComfyUI's int8, rotated or not: read exactly, kept in a byte a weight, and refused where a note does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLModel as TheirQwen3VLModel

from ideoflow import Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints import CheckpointError, open_checkpoint
from ideoflow.checkpoints.comfy_int8 import ComfyInt8
from ideoflow.checkpoints.load import WeightOnlyRotatedInt8Linear
from ideoflow.distributed.tensor_parallel import check_tensor
from ideoflow.ops.quantized_linear import Int8Linear
from ideoflow.ops.rotated_linear import RotatedInt8Linear, rotate
from ideoflow.pipeline.qwen3_vl import Qwen3VLModel

from .forms import Weights, is_linear, load_transformer, original_config, original_weights, random_model, write_config
from .forms_low_bit import blocks_only, comfy_int8, comfy_int8_values, hadamard, note_tensor

GROUPS = {"plain": None, "rotated": 16, "rotated in large groups": 64}


@pytest.fixture(scope="module")
def model() -> Ideogram4Transformer2DModel:
    return random_model(7)


def stored_as(
    weights: Weights, group: int | None, each_row: bool, only: Callable[[str], bool] = blocks_only
) -> tuple[Weights, Weights]:
    """A file's tensors, and what each weight stands for."""
    stored: Weights = {}
    values: Weights = {}
    for name, tensor in weights.items():
        if is_linear(name, tensor) and only(name) and tensor.shape[1] % (group or 1) == 0:
            parts = comfy_int8(tensor, group=group, each_row=each_row)
            stored |= {f"{name.removesuffix('.weight')}.{part}": one for part, one in parts.items()}
            values[name] = comfy_int8_values(parts, group)
        else:
            stored[name] = tensor.clone()
            values[name] = tensor.double()
    return stored, values


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("each_row", [True, False], ids=["a scale for each row", "one scale"])
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_it_loads_what_the_file_stands_for(model, tmp_path, group, each_row, naming):
    own = model.state_dict() if naming == "diffusers" else original_weights(model.state_dict())
    stored, values = stored_as(own, group, each_row)
    save_file(stored, tmp_path / "model.safetensors")
    write_config(tmp_path, dict(model.config) if naming == "diffusers" else original_config(model.config))

    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.form == f"{naming}, int8"
    loaded = load_transformer(checkpoint, dequantize=True).state_dict()

    found = loaded if naming == "diffusers" else original_weights(loaded)
    assert found.keys() == values.keys()
    for name, wanted in values.items():
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_it_is_kept_in_a_byte_a_weight_and_computes_as_the_expanded_model_does(model, tmp_path, group, naming):
    own = model.state_dict() if naming == "diffusers" else original_weights(model.state_dict())
    stored, _ = stored_as(own, group, True)
    save_file(stored, tmp_path / "model.safetensors")
    write_config(tmp_path, dict(model.config) if naming == "diffusers" else original_config(model.config))
    kept, expanded = (load_transformer(open_checkpoint(tmp_path), dequantize=on) for on in (False, True))

    layers = {name: one for name, one in kept.named_modules() if isinstance(one, Int8Linear)}
    assert len(layers) == (14 if group == 64 else 16) and all(
        layer.weight.dtype == torch.int8 for layer in layers.values()
    )
    assert {type(layer) for layer in layers.values()} == {Int8Linear if group is None else RotatedInt8Linear}
    for name, layer in layers.items():
        plain = expanded.get_submodule(name)
        for one in (layer.dequantize(), layer.to_linear().weight, layer.to_linear(torch.float32).weight):
            torch.testing.assert_close(one, plain.weight, rtol=1e-6, atol=1e-6)
        x = torch.randn(2, 5, layer.in_features, requires_grad=True)  # with a gradient, nothing is rounded
        other = x.detach().clone().requires_grad_()
        mine, theirs = layer(x), plain(other)
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)
        mine.square().sum().backward()
        theirs.square().sum().backward()
        torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-2)
        rounded = layer(x.detach())  # where the chip multiplies int8, the input is rounded too
        assert (rounded - theirs).norm() < 0.02 * theirs.norm()


def test_a_text_encoder_keeps_it_and_never_rounds_its_input(tmp_path):
    folder = sketch.path() / "text_encoder"
    weights = load_file(folder / "model.safetensors")
    only = re.compile(r"(model\.)?language_model\.layers\..*proj\.weight").fullmatch
    stored, values = stored_as(weights, 16, True, lambda name: bool(only(name)))
    assert len(stored) > len(values)
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({name: one.float() for name, one in values.items()}, tmp_path / "expanded.safetensors")

    kept = Qwen3VLModel.from_single_file(tmp_path / "model.safetensors", config=folder)
    plain = Qwen3VLModel.from_single_file(tmp_path / "expanded.safetensors", config=folder)

    layers = [layer for layer in kept.modules() if isinstance(layer, RotatedInt8Linear)]
    assert layers and {type(layer) for layer in layers} == {WeightOnlyRotatedInt8Linear}
    assert not any(layer.multiplies(torch.ones(32, layer.in_features)) for layer in layers)
    tokens = torch.arange(7, 19)[None]
    with torch.no_grad():
        mine = kept.language_model(tokens).last_hidden_state
        theirs = plain.language_model(tokens).last_hidden_state
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    assert issubclass(type(kept), TheirQwen3VLModel)


@pytest.mark.parametrize("size", [4, 16, 64, 256])
def test_rotations_are_by_the_regular_hadamard_matrix(size):
    assert torch.equal(rotate(torch.eye(size), size), hadamard(size).float())
    x = torch.randn(3, 2 * size)
    torch.testing.assert_close(rotate(rotate(x, size), size), x)
    assert rotate(x.to(torch.bfloat16), size).dtype == torch.bfloat16


def test_matrices_that_were_made_without_gradients_serve_with_them():
    with torch.inference_mode():
        rotate(torch.randn(2, 1024), 1024)
    x = torch.randn(2, 1024, requires_grad=True)
    rotate(x, 1024).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_ranks_do_not_share_columns_that_are_rotated_together(model, tmp_path):
    stored, _ = stored_as(model.state_dict(), 16, True)
    save_file(stored, tmp_path / "model.safetensors")
    write_config(tmp_path, dict(model.config))
    with pytest.raises(ValueError, match="RotatedInt8Linear, which a plan with `tensor` cannot share"):
        check_tensor(load_transformer(open_checkpoint(tmp_path)))


NOTE = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}
DAMAGE: dict[str, tuple[dict[str, Any] | None, dict[str, torch.Tensor], str]] = {
    "no note": (None, {}, "no storage that is known"),
    "another format": ({**NOTE, "format": "int8_blockwise"}, {}, "says 'int8_blockwise'"),
    "groups that do not divide the width": ({**NOTE, "convrot_groupsize": 256}, {}, "power of four that divides"),
    "groups of no power of four": ({**NOTE, "convrot_groupsize": 32}, {}, "power of four that divides"),
    "groups of no number": ({**NOTE, "convrot_groupsize": "16"}, {}, "power of four that divides"),
    "groups of the usual size, which is not said": (
        {"format": "int8_tensorwise", "convrot": True},
        {},
        "groups of 256",
    ),
    "fewer scales": (NOTE, {"weight_scale": torch.ones(3)}, "F32 of shape"),
    "scales of another type": (NOTE, {"weight_scale": torch.ones(64, dtype=torch.float16)}, "F32 of shape"),
    "scales that are no numbers": (NOTE, {"weight_scale": torch.full((64,), torch.nan)}, "not finite"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_does_not_fit_together_is_refused_by_name(model, tmp_path, what):
    note, instead, told = DAMAGE[what]
    stored, _ = stored_as(model.state_dict(), 16, True)
    layer = "layers.1.feed_forward.w2"
    stored.pop(f"{layer}.comfy_quant")
    if note is not None:
        stored[f"{layer}.comfy_quant"] = note_tensor(note)
    stored |= {f"{layer}.{part}": tensor for part, tensor in instead.items()}
    save_file(stored, tmp_path / "model.safetensors")
    write_config(tmp_path, dict(model.config))
    with pytest.raises(CheckpointError, match=told) as error:
        load_transformer(open_checkpoint(tmp_path))
    assert f"{layer}." in str(error.value)


def test_a_note_in_the_header_serves_as_well(model, tmp_path):
    stored, values = stored_as(model.state_dict(), 16, True)
    notes = {
        name.removesuffix(".comfy_quant"): json.loads(bytes(stored.pop(name).tolist()))
        for name in list(stored)
        if name.endswith(".comfy_quant")
    }
    save_file(stored, tmp_path / "x.safetensors", {"_quantization_metadata": json.dumps({"layers": notes})})
    write_config(tmp_path, dict(model.config))
    loaded = load_transformer(open_checkpoint(tmp_path / "x.safetensors"), dequantize=True).state_dict()
    for name, wanted in values.items():
        torch.testing.assert_close(loaded[name].double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("group", [None, 16, 256])
def test_it_is_what_comfyuis_own_library_writes_and_reads(group):
    pytest.importorskip("comfy_kitchen", reason="ComfyUI's kernels are not installed")
    from comfy_kitchen.tensor.int8 import TensorWiseINT8Layout

    weight = torch.randn(48, 512)
    options = {} if group is None else {"convrot": True, "convrot_groupsize": group}
    data, params = TensorWiseINT8Layout.quantize(weight, per_channel=group is not None, **options)
    theirs = TensorWiseINT8Layout.dequantize(data, params)
    note = {"format": "int8_tensorwise", **options}
    parts = {"weight": data, "weight_scale": params.scale, "comfy_quant": note_tensor(note)}
    ours = ComfyInt8().expand(parts, torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (ours - weight).norm() < 0.02 * weight.norm()
