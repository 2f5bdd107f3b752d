"""bitsandbytes' 4 bits: expanded bit for bit as bitsandbytes does it, kept in its layers, saved in its form."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import bitsandbytes
import diffusers
import numpy as np
import peft
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from diffusers.quantizers import DiffusersAutoQuantizer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, Qwen3VLModel

from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints import CheckpointError, open_checkpoint
from ideoflow.checkpoints.nf4 import NF4

from .forms import load_transformer, original_config, original_weights, random_model, write, write_config
from .forms_low_bit import dequantized, four_bits


@pytest.fixture(scope="module")
def model() -> Ideogram4Transformer2DModel:
    return random_model(5)


def assert_same(loaded, weights):
    found = loaded.state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor), name


def write_four_bits(folder, model, naming="diffusers", **options):
    weights = model.state_dict()
    stored = four_bits(weights if naming == "diffusers" else original_weights(weights), **options)
    write(folder / "model.safetensors", stored)
    write_config(folder, dict(model.config) if naming == "diffusers" else original_config(model.config))
    return stored


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("naming", ["diffusers", "original"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_either_naming_loads_bit_for_bit_as_bitsandbytes_expands(model, tmp_path, naming, kind, nested, dtype):
    stored = write_four_bits(tmp_path, model, naming, kind=kind, nested=nested)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.form == f"{naming}, nf4"

    loaded = load_transformer(checkpoint, dtype=dtype, dequantize=True)

    wanted = dequantized(stored, dtype)
    if naming == "original":
        found = original_weights(loaded.state_dict())
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    else:
        assert_same(loaded, wanted)


shapes = st.tuples(st.integers(1, 24), st.integers(1, 24)).map(lambda pair: (pair[0] * 3, pair[1] * 2))


@given(
    shape=shapes,
    block=st.sampled_from([32, 64, 128, 256, 1024]),
    nested=st.booleans(),
    kind=st.sampled_from(["nf4", "fp4"]),
    cut=st.tuples(st.integers(0, 71), st.integers(1, 72)),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_and_any_rows_of_it_are_exact(shape, block, nested, kind, cut):
    """Rows begin inside blocks, and inside blocks of nested scales, and blocks may be cut at the end."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))
    parts = stored_parts(weight, block, nested, kind)
    wanted = dequantized({"a.weight": parts["weight"], **{f"a.{k}": v for k, v in parts.items() if k != "weight"}})

    assert torch.equal(NF4().expand(parts, torch.float32), wanted["a.weight"])
    start, stop = min(cut[0], shape[0] - 1), min(max(cut), shape[0])
    if start < stop:
        rows = NF4().rows(parts, start, stop)
        assert torch.equal(NF4().expand(rows, torch.float32), wanted["a.weight"][start:stop])


def stored_parts(weight, block=64, nested=False, kind="nf4"):
    packed, state = bitsandbytes.functional.quantize_4bit(
        weight, blocksize=block, compress_statistics=nested, quant_type=kind
    )
    return {"weight": packed, **{f"weight.{part}": one for part, one in state.as_dict(packed=True).items()}}


def test_rows_at_the_borders_of_nested_scales_stay_nested():
    """As in the published model: a third of a fused projection is whole blocks of nested scales."""
    weight = torch.randn(3 * 256, 128)
    parts = stored_parts(weight, nested=True)
    whole = NF4().expand(parts, torch.float32)
    rows = NF4().rows(parts, 256, 512)
    assert rows["weight.absmax"].dtype == torch.uint8 and len(rows["weight.nested_absmax"]) == 2
    assert torch.equal(NF4().expand(rows, torch.float32), whole[256:512])


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_layers_keep_four_bits_and_compute_what_expanded_ones_do(model, inputs_of, tmp_path, naming, nested, dtype):
    write_four_bits(tmp_path, model, naming, nested=nested)
    checkpoint = open_checkpoint(tmp_path)

    kept = load_transformer(checkpoint, dtype=dtype)

    layers = [layer for layer in kept.modules() if isinstance(layer, Linear4bit)]
    assert len(layers) == 2 * 7 and kept.dtype == dtype
    assert kept.layers[1].attention.to_v.weight.numel() == 64 * 64 // 2
    inputs = inputs_of(kept, dtype)
    expanded = load_transformer(checkpoint, dtype=dtype, dequantize=True)
    exact = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=0, atol=0)
    with torch.no_grad():
        wanted = expanded(**inputs).sample
        torch.testing.assert_close(kept(**inputs).sample, wanted, **exact)
        torch.testing.assert_close(copy.deepcopy(kept).to("cpu")(**inputs).sample, wanted, **exact)
        kept.fuse_qkv_projections()
        torch.testing.assert_close(kept(**inputs).sample, wanted, **exact)
    with pytest.raises(ValueError, match="Casting a quantized model"):
        kept.to(torch.float16)


def test_what_is_saved_is_in_bitsandbytes_form_for_us_and_for_the_peer(model, inputs_of, tmp_path):
    """The peer's loader wants a GPU; its quantizer alone, fed the saved tensors, does not."""
    write_four_bits(tmp_path / "a", model, "original", nested=True)
    kept = load_transformer(open_checkpoint(tmp_path / "a"))
    inputs = inputs_of(kept, torch.float32)
    with torch.no_grad():
        wanted = kept(**inputs).sample
        kept.save_pretrained(tmp_path / "b")

        checkpoint = open_checkpoint(tmp_path / "b")
        assert checkpoint.form == "diffusers, nf4" and checkpoint.quantization_config["load_in_4bit"]
        assert torch.equal(load_transformer(checkpoint)(**inputs).sample, wanted)
        if not torch.cuda.is_available():
            with pytest.raises(RuntimeError, match="A GPU is needed"):
                diffusers.Ideogram4Transformer2DModel.from_pretrained(tmp_path / "b")

        config = json.loads((tmp_path / "b" / "config.json").read_text())
        quantizer = DiffusersAutoQuantizer.from_config(config["quantization_config"], pre_quantized=True)
        peer = diffusers.Ideogram4Transformer2DModel(**checkpoint.config)
        quantizer.preprocess_model(model=peer, device_map=None, keep_in_fp32_modules=[])
        saved = load_file(tmp_path / "b" / "diffusion_pytorch_model.safetensors")
        for name, tensor in saved.items():
            if ".weight." in name:
                continue
            if quantizer.check_if_quantized_param(peer, tensor, name, saved):
                quantizer.create_quantized_param(peer, tensor, name, torch.device("cpu"), saved, [])
            else:
                owner, _, last = name.rpartition(".")
                setattr(peer.get_submodule(owner), last, torch.nn.Parameter(tensor))
        for layer in peer.modules():
            if isinstance(layer, Linear4bit):
                layer.support_avx512bf16_for_cpu = False
        torch.testing.assert_close(peer.eval()(**inputs).sample, wanted, rtol=1e-4, atol=1e-4)


def test_a_pipeline_in_four_bits_is_saved_with_what_it_left_in_its_files(tmp_path):
    """The unconditional transformer's text projection, which no reader of the saved folder may take for 4 bits."""
    folder = Path(shutil.copytree(sketch.path(), tmp_path / "model"))
    branches = ("transformer", "unconditional_transformer")
    stored = {}
    for branch in branches:
        file = next((folder / branch).glob("*.safetensors"))
        stored[branch] = four_bits(load_file(file), nested=True, only=lambda name: name.startswith(("layers", "llm")))
        file.unlink()
        write(folder / branch / "model.safetensors", stored[branch])
    pipe = Ideogram4Pipeline.from_pretrained(folder)
    assert not list(pipe.unconditional_transformer.llm_cond_proj.parameters())

    pipe.save_pretrained(tmp_path / "saved")

    for branch in branches:
        loaded = load_transformer(open_checkpoint(tmp_path / "saved" / branch), dequantize=True)
        assert_same(loaded, dequantized(stored[branch]))
    config = json.loads((tmp_path / "saved" / branches[1] / "config.json").read_text())["quantization_config"]
    assert {"input_proj", "llm_cond_proj"} < set(config["llm_int8_skip_modules"])
    assert "layers.0.attention.to_q" not in config["llm_int8_skip_modules"]
    call = dict(height=96, width=96, num_inference_steps=2, guidance_scale=2.0, guidance_schedule=None)
    pictures = []
    for one in (pipe, Ideogram4Pipeline.from_pretrained(tmp_path / "saved"), sketch.load()):
        one.set_progress_bar_config(disable=True)
        image = one("a red circle", generator=torch.Generator().manual_seed(5), **call).images[0]
        pictures.append(np.asarray(image).astype(int))
    kept, again, exact = pictures
    assert np.array_equal(kept, again)
    assert 0 < np.abs(kept - exact).mean() < 20


def test_an_adapter_trains_on_four_bits_as_on_expanded_weights(model, inputs_of, tmp_path):
    write_four_bits(tmp_path, model, "diffusers", dtype=torch.float32)
    results = []
    for dequantize in (False, True):
        transformer = load_transformer(open_checkpoint(tmp_path), dequantize=dequantize)
        torch.manual_seed(0)
        transformer.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_v", "w2"], init_lora_weights=False))
        if not dequantize:
            assert type(transformer.layers[0].attention.to_q).__module__ == "peft.tuners.lora.bnb"
        output = transformer(**inputs_of(transformer, torch.float32)).sample
        output.square().mean().backward()
        gradients = {n: p.grad for n, p in transformer.named_parameters() if "lora" in n and p.grad is not None}
        results.append((output.detach(), gradients))
    (kept, kept_gradients), (plain, gradients) = results
    torch.testing.assert_close(kept, plain, rtol=1e-4, atol=1e-5)
    assert gradients and kept_gradients.keys() == gradients.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(kept_gradients[name], value, rtol=1e-3, atol=1e-5)


def test_a_folder_with_a_quantization_config_loads_by_what_it_holds(model, tmp_path):
    """As the published nf4 folder: on any device, whatever the configuration says."""
    stored = write_four_bits(tmp_path, model)
    quantization = diffusers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4").to_dict()
    write_config(tmp_path, {**dict(model.config), "quantization_config": quantization})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.quantization_config == json.loads(json.dumps(quantization))
    assert_same(load_transformer(checkpoint, dequantize=True), dequantized(stored))
    kept = load_transformer(checkpoint, quantization_config=diffusers.BitsAndBytesConfig(load_in_4bit=True))
    assert torch.equal(kept.state_dict()["layers.0.attention.to_q.weight"], stored["layers.0.attention.to_q.weight"])


@pytest.mark.long
def test_bitsandbytes_is_not_needed_to_expand(model, tmp_path):
    stored = write_four_bits(tmp_path, model, nested=True)
    torch.save(dequantized(stored), tmp_path / "wanted.pt")
    program = f"""
import sys
from importlib.machinery import PathFinder
hidden, find = {{"bitsandbytes", "gguf", "torchao"}}, PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *a: None if name.split(".")[0] in hidden else find(name, *a))
import torch, ideoflow
loaded = ideoflow.Ideogram4Transformer2DModel.from_pretrained({str(tmp_path)!r})
wanted = torch.load({str(tmp_path / "wanted.pt")!r})
assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in wanted.items())
assert not hidden & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'ideoflow[quant]'" in done.stderr


def note(**changes):
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 64]}
    text = json.dumps({key: value for key, value in {**state, **changes}.items() if value is not ...})
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


NOTE = "layers.0.attention.to_q.weight.quant_state.bitsandbytes__nf4"
BAD = {
    "a negative size": ({NOTE: note(shape=[64, -64])}, "positive numbers"),
    "a size that is no number": ({NOTE: note(shape=["64", 64])}, "positive numbers"),
    "a huge size": ({NOTE: note(shape=[2**62, 64])}, "positive numbers"),
    "no shape": ({NOTE: note(shape=None)}, "is no note"),
    "an empty shape": ({NOTE: note(shape=[])}, "positive numbers"),
    "a shape that needs more": ({NOTE: note(shape=[64, 128])}, "must be U8 with 4096 values"),
    "another shape of as many values": ({NOTE: note(shape=[32, 128])}, r"wants \[64, 64\]"),
    "a block of three": ({NOTE: note(blocksize=3)}, "powers of two"),
    "a block of nothing": ({NOTE: note(blocksize=0)}, "powers of two"),
    "other blocks": ({NOTE: note(blocksize=128)}, "must be F32 with 32 values"),
    "a type of torch's that is none": ({NOTE: note(dtype="load")}, "float32, float16 or bfloat16"),
    "keys that are not known": ({NOTE: note(code="import os")}, "is no note"),
    "no JSON": ({NOTE: torch.full((50,), 0xFF, dtype=torch.uint8)}, "is no note"),
    "deep JSON": ({NOTE: torch.full((4000,), ord("["), dtype=torch.uint8)}, "is no note"),
    "a long note": ({NOTE: torch.full((5000,), ord("["), dtype=torch.uint8)}, "up to 4096 bytes"),
    "a table of 15": ({"layers.0.attention.to_q.weight.quant_map": torch.randn(15)}, "must be F32 with 16 values"),
    "no scales": ({"layers.0.attention.to_q.weight.absmax": None}, "no storage that is known"),
    "no note": ({NOTE: None}, "no storage that is known"),
    "infinite scales": ({"layers.0.attention.to_q.weight.absmax": torch.full((64,), math.inf)}, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_a_hostile_note_is_refused_by_name(model, tmp_path, case):
    changes, message = BAD[case]
    stored = write_four_bits(tmp_path, model) | changes
    write(tmp_path / "model.safetensors", {name: one for name, one in stored.items() if one is not None})
    with pytest.raises(CheckpointError, match=message) as error:
        load_transformer(open_checkpoint(tmp_path))
    assert "layers.0.attention.to_q" in str(error.value)


NESTED = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}


@pytest.mark.parametrize("changes", [{"nested_offset": math.nan}, {"nested_offset": "x"}, {"nested_blocksize": 7},
                                     {"nested_dtype": "int8"}, dict.fromkeys(NESTED, ...)])  # fmt: skip
def test_a_hostile_note_on_nested_scales_is_refused(model, tmp_path, changes):
    stored = write_four_bits(tmp_path, model, nested=True)
    good = stored | {NOTE: note(**NESTED)}
    write(tmp_path / "model.safetensors", good)
    load_transformer(open_checkpoint(tmp_path))
    write(tmp_path / "model.safetensors", stored | {NOTE: note(**{**NESTED, **changes})})
    with pytest.raises(CheckpointError, match=r"layers\.0\.attention\.to_q"):
        open_checkpoint(tmp_path)


def test_a_text_encoder_in_four_bits_is_loaded_by_transformers(tmp_path):
    """On a CPU too: what transformers quantized and saved it opens again, and it computes the same."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    quantized = Qwen3VLModel.from_pretrained(sketch.path() / "text_encoder", quantization_config=config)
    quantized.save_pretrained(tmp_path)
    again = Qwen3VLModel.from_pretrained(tmp_path)
    layer = again.language_model.layers[0].mlp.down_proj
    assert isinstance(layer, Linear4bit)
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        first, second = (one.language_model(ids).last_hidden_state for one in (quantized, again))
    assert torch.equal(first, second)
