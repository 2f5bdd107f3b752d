"""Every form of checkpoint is recognised by what it holds, and loads into the same model."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from ideoflow import Ideogram4Transformer2DModel, checkpoints
from ideoflow.checkpoints import CheckpointError, open_checkpoint
from ideoflow.ops import Float8Linear

from .forms import (
    SMALL,
    expanded,
    float8_rows,
    float8_scaled,
    load_transformer,
    original_config,
    original_weights,
    random_model,
    write,
    write_config,
    write_shards,
)


@pytest.fixture(scope="module")
def model() -> Ideogram4Transformer2DModel:
    return random_model(3)


def assert_same(loaded, weights, tolerance=0.0):
    found = loaded.state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=tolerance, atol=0)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "conditional_transformer."])
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_either_naming_behind_any_prefix(model, tmp_path, prefix, naming):
    weights = model.state_dict()
    stored = weights if naming == "diffusers" else original_weights(weights)
    write(tmp_path / "any name.bin", stored, prefix)
    write_config(tmp_path, SMALL if naming == "diffusers" else original_config(model.config))

    checkpoint = open_checkpoint(tmp_path / "any name.bin")

    assert (checkpoint.naming, checkpoint.prefix, checkpoint.form) == (naming, prefix, naming)
    loaded = load_transformer(checkpoint)
    assert {key: loaded.config[key] for key in SMALL} == {key: model.config[key] for key in SMALL}
    assert_same(loaded, weights)


def test_a_call_without_the_class_or_with_a_path_is_shown_the_call_as_it_is_now(model, tmp_path):
    write(tmp_path / "model.safetensors", model.state_dict())
    write_config(tmp_path, SMALL)
    checkpoint = open_checkpoint(tmp_path)
    call = "load_transformer(open_checkpoint(path), Ideogram4Transformer2DModel)"
    for given in ((checkpoint,), (tmp_path,), (tmp_path, Ideogram4Transformer2DModel), (checkpoint, torch.bfloat16)):
        with pytest.raises(TypeError, match=re.escape(call)):
            checkpoints.load_transformer(*given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_float8_with_a_scale_for_each_row_is_kept_or_expanded(model, tmp_path, naming, dtype):
    weights = model.state_dict()
    stored = float8_rows(weights if naming == "diffusers" else original_weights(weights))
    write(tmp_path / "model.safetensors", stored)
    write_config(tmp_path, SMALL)
    checkpoint = open_checkpoint(tmp_path)
    wanted = expanded(float8_rows(weights))
    assert checkpoint.form == f"{naming}, fp8"

    plain = load_transformer(checkpoint, dtype=dtype, dequantize=True)

    assert_same(plain, wanted, tolerance=torch.finfo(dtype).eps)
    kept = load_transformer(checkpoint, dtype=dtype)
    layers = [name for name, part in kept.named_modules() if isinstance(part, Float8Linear)]
    assert len(layers) == 2 * 8 + 6 and kept.dtype == dtype  # all linear layers but the first
    for name in layers:
        layer = kept.get_submodule(name)
        assert layer.weight.dtype == torch.float8_e4m3fn and layer.compute_dtype == dtype
        torch.testing.assert_close(
            layer.weight.double() * layer.weight_scale.double()[:, None], wanted[f"{name}.weight"], rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("old", [True, False], ids=["scale_weight", "weight_scale"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_comfyui_scaled_float8(model, tmp_path, old, prefix):
    weights = model.state_dict()
    stored = float8_scaled(original_weights(weights), old=old)
    write(tmp_path / "x_fp8_scaled.safetensors", stored, prefix)
    write_config(tmp_path, original_config(model.config))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.form == "original, fp8"

    loaded = load_transformer(checkpoint, dequantize=True)

    assert_same_as_original(loaded, expanded(stored), tolerance=1e-6)
    kept = load_transformer(checkpoint)
    third = kept.layers[1].attention.to_k
    wanted = expanded(stored)["layers.1.attention.qkv.weight"][64:128]
    assert isinstance(third, Float8Linear)
    torch.testing.assert_close(third.dequantize().double(), wanted, rtol=1e-6, atol=0)


def assert_same_as_original(loaded, stored, tolerance):
    found = original_weights(loaded.state_dict())
    assert found.keys() == stored.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=tolerance, atol=0)


def test_unscaled_float8(model, tmp_path):
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in model.state_dict().items()}
    write(tmp_path / "fp8.safetensors", stored)
    write_config(tmp_path, SMALL)

    loaded = load_transformer(open_checkpoint(tmp_path), dequantize=True)

    assert_same(loaded, stored)
    assert isinstance(load_transformer(open_checkpoint(tmp_path)).llm_cond_proj, Float8Linear)


@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_shards(model, tmp_path, naming):
    weights = model.state_dict()
    index = write_shards(tmp_path, weights if naming == "diffusers" else original_weights(weights))
    write_config(tmp_path, SMALL)
    for path in (tmp_path, index):
        assert_same(load_transformer(open_checkpoint(path)), weights)


def test_the_unconditional_branch_can_do_without_the_text_projection(model, tmp_path):
    model.save_pretrained(tmp_path / "unconditional_transformer")
    checkpoint = open_checkpoint(tmp_path, "unconditional_transformer")

    loaded = load_transformer(checkpoint, dtype=torch.bfloat16, text_projection=False)

    assert not [name for name, _ in loaded.named_parameters() if name.startswith("llm_cond")]
    with pytest.raises(RuntimeError, match="text_projection=True"):
        loaded.project_text(torch.randn(3, 64))
    assert_same(loaded, {name: tensor.bfloat16() for name, tensor in model.state_dict().items()})
    loaded.load_state_dict(model.state_dict(), strict=True)
    loaded.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(again["llm_cond_proj.weight"], model.state_dict()["llm_cond_proj.weight"].bfloat16())


def test_a_configuration_is_told_from_the_shapes_where_heads_are_the_published_ones(tmp_path):
    model = random_model(attention_head_dim=256, num_attention_heads=2, mrope_section=(24, 20, 20))
    write(tmp_path / "x.safetensors", original_weights(model.state_dict()))

    checkpoint = open_checkpoint(tmp_path / "x.safetensors")

    assert checkpoint.config == {
        key: model.config[key] for key in SMALL if key not in ("rope_theta", "mrope_section")
    } | {"attention_head_dim": 256, "num_attention_heads": 2}


def test_a_configuration_may_be_given(model, tmp_path):
    file = write(tmp_path / "x.safetensors", model.state_dict())
    with pytest.raises(CheckpointError, match=r"heads of 16 channels .* give `config`"):
        open_checkpoint(file)
    write_config(tmp_path / "other", original_config(model.config))
    for config in (SMALL, tmp_path / "other", tmp_path / "other" / "config.json", original_config(model.config)):
        assert_same(load_transformer(open_checkpoint(file, config=config)), model.state_dict())


def test_variants(model, tmp_path):
    model.save_pretrained(tmp_path, variant="fp16")
    assert_same(load_transformer(open_checkpoint(tmp_path, variant="fp16")), model.state_dict())
    with pytest.raises(CheckpointError, match="variant='fp8'"):
        open_checkpoint(tmp_path, variant="fp8")
    random_model(9).save_pretrained(tmp_path)
    assert_same(load_transformer(open_checkpoint(tmp_path, variant="fp16")), model.state_dict())
    assert_same(load_transformer(open_checkpoint(tmp_path)), random_model(9).state_dict())


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_files_of_a_variant_alone_are_loaded_where_they_are_asked_for(model, tmp_path, shards):
    """As diffusers' own test of saving and loading a variant has it: an OSError, with these words."""
    model.save_pretrained(tmp_path, variant="fp16", **({"max_shard_size": "100KB"} if shards else {}))

    assert_same(Ideogram4Transformer2DModel.from_pretrained(tmp_path, variant="fp16"), model.state_dict())
    with pytest.raises(OSError, match=r"Error no file named diffusion_pytorch_model\.bin found in directory") as error:
        Ideogram4Transformer2DModel.from_pretrained(tmp_path)
    assert isinstance(error.value, CheckpointError) and "pass variant='fp16'" in str(error.value)


def test_both_branches_of_one_file(model, tmp_path):
    other = random_model(8)
    weights = {f"conditional_transformer.{k}": v for k, v in original_weights(model.state_dict()).items()}
    weights |= {f"unconditional_transformer.{k}": v for k, v in original_weights(other.state_dict()).items()}
    file = write(tmp_path / "both.safetensors", weights)
    write_config(tmp_path, SMALL)
    for branch, one in (("transformer", model), ("unconditional_transformer", other)):
        assert_same(load_transformer(open_checkpoint(file, branch)), one.state_dict())


def test_a_header_may_hold_the_configuration(model, tmp_path):
    file = write(tmp_path / "x.safetensors", model.state_dict(), metadata={"ideoflow.config": json.dumps(SMALL)})
    assert_same(load_transformer(open_checkpoint(file)), model.state_dict())
