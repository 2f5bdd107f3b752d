"""Text encoders and autoencoders of every form: features are those of what the file stands for, or it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints import CheckpointError
from ideoflow.checkpoints.save import FLOAT8 as MARK
from ideoflow.ops import Float8Linear
from ideoflow.pipeline.autoencoder import Autoencoder
from ideoflow.pipeline.qwen3_vl import Qwen3VLModel
from ideoflow.sketch.wording import line
from ideoflow.text_encoder import encode_captions
from tools.sketch.score import held_out

from .forms import Weights, expanded, float8_rows, float8_scaled, is_linear, write, write_shards
from .forms_low_bit import dequantized, encoded, four_bits

TEXT = sketch.path() / "text_encoder"
CAPTION = line(held_out(1)[0].caption)
FLAG = {"ideogram_fp8_weight_only": True}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return {name: tensor.float() for name, tensor in load_file(TEXT / "model.safetensors").items()}


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(sketch.path() / "tokenizer")


@pytest.fixture
def folder(tmp_path) -> Callable[..., Path]:
    """Writes a text encoder's folder."""

    def make(stored: Weights, name: str = "model.safetensors", **config: object) -> Path:
        write(tmp_path / name, stored)
        found = json.loads((TEXT / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**found, **config}))
        return tmp_path

    return make


def of_blocks(name: str) -> bool:
    return name.startswith("language_model.layers.")


def features(model: nn.Module, tokenizer) -> Tensor:
    return encode_captions(model, tokenizer, [CAPTION])[0]


def by_transformers(weights: Weights) -> nn.Module:
    """transformers' own model with these weights in float32."""
    model = transformers.Qwen3VLModel(transformers.Qwen3VLConfig.from_pretrained(TEXT)).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    return model


def scaled(weights: Weights, *, old: bool) -> Weights:
    """ComfyUI's form of the blocks."""
    blocks = {name.removeprefix("language_model."): one for name, one in weights.items() if of_blocks(name)}
    stored = {
        name if name == "scaled_fp8" else f"language_model.{name}": one
        for name, one in float8_scaled(blocks, old=old).items()
    }
    return {**{name: one for name, one in weights.items() if not of_blocks(name)}, **stored}


FLOAT8: dict[str, Callable[[Weights], Weights]] = {
    "rows": lambda weights: float8_rows(weights, of_blocks),
    "scaled, old": lambda weights: scaled(weights, old=True),
    "scaled, new": lambda weights: scaled(weights, old=False),
}


@pytest.mark.parametrize("form", FLOAT8)
def test_float8_with_scales_is_what_it_stands_for(weights, tokenizer, folder, form):
    """The published fp8 repository's text encoder, and ComfyUI's: features are those of the weights times scales."""
    stored = FLOAT8[form](weights)
    path = folder(stored, **(FLAG if form == "rows" else {}))
    wanted = features(by_transformers(expanded(stored)), tokenizer)

    plain = Qwen3VLModel.from_pretrained(path, dequantize=True)

    assert torch.equal(features(plain, tokenizer), wanted)
    kept = Qwen3VLModel.from_pretrained(path)
    layers = [part for part in kept.modules() if isinstance(part, Float8Linear)]
    assert len(layers) == 36 * 7 and all(part.weight.dtype == torch.float8_e4m3fn for part in layers)
    torch.testing.assert_close(features(kept, tokenizer), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().mean()))
    whole = features(by_transformers(weights), tokenizer)
    error = (wanted - whole).norm() / whole.norm()
    assert 0.001 < error < 0.1  # of the rounding, of which noise would be 1 and more


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_of_either_kind_that_is_said_to_have_scales_is_not_used_without(weights, folder, kind):
    bare = {name: one.to(kind) if of_blocks(name) and one.ndim == 2 else one for name, one in weights.items()}
    for stored, flag in ((bare, FLAG), ({**bare, "scaled_fp8": torch.zeros(2).to(kind)}, {})):
        with pytest.raises(CheckpointError, match="fp8 weights without the scales that the file"):
            Qwen3VLModel.from_pretrained(folder(stored, **flag))


def test_a_package_that_weights_need_is_named_in_one_error(weights, folder):
    path = folder(weights, quantization_config={"quant_method": "compressed-tensors"})
    with pytest.raises(CheckpointError, match=r"cannot be loaded here: compressed-tensors.* is required"):
        Qwen3VLModel.from_pretrained(path)


@pytest.mark.parametrize("stored_as", ["plain", "weight_scale_inv", "no scales"])
def test_the_fp8_of_transformers_is_named(weights, folder, stored_as):
    stored = dict(weights)
    if stored_as != "plain":
        for name in (name for name, one in weights.items() if of_blocks(name) and one.ndim == 2):
            stored[name] = weights[name].to(torch.float8_e4m3fn)
            if stored_as == "weight_scale_inv":
                stored[f"{name}_scale_inv"] = torch.full((1, 1), 0.5)
    path = folder(stored, quantization_config={"quant_method": "fp8"})
    with pytest.raises(CheckpointError, match=r"config.json: .* says `quant_method` fp8, .* in bfloat16"):
        Qwen3VLModel.from_pretrained(path)


@pytest.mark.parametrize("note", [{}, {"quant_method": None}, {"quant_method": ["fp8"]}, {"form": "fp8"}, "fp8", [1]])
def test_a_note_on_quantization_that_says_no_method_is_named(weights, folder, note):
    with pytest.raises(CheckpointError, match=r"config.json: (`quantization_config` is|the text encoder cannot)"):
        Qwen3VLModel.from_pretrained(folder(weights, quantization_config=note))


def test_a_method_that_says_too_little_is_named(weights, folder, tmp_path):
    note = {"quantization_config": {"quant_method": "torchao"}}
    with pytest.raises(CheckpointError, match=r"config.json: its `quantization_config` cannot be used \(KeyError"):
        Qwen3VLModel.from_pretrained(folder(weights, **note))
    shutil.copytree(sketch.path() / "transformer", tmp_path / "transformer")
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | note))
    with pytest.raises(CheckpointError, match=r"config.json: its `quantization_config` cannot be used \(KeyError"):
        Ideogram4Transformer2DModel.from_pretrained(config.parent)


def test_an_autoencoder_under_the_originals_names_is_told_what_it_is(tmp_path):
    stored = {
        "encoder.down.0.block.0.conv1.weight": torch.ones(4, 4, 3, 3),
        "decoder.mid.attn_1.q.weight": torch.ones(4, 4),
    }
    for prefix in ("", "vae."):
        save_file({prefix + name: one for name, one in stored.items()}, tmp_path / "ae.safetensors")
        with pytest.raises(CheckpointError, match=r"under the original's names, as ComfyUI has it.*Leave it out"):
            Autoencoder.from_single_file(tmp_path / "ae.safetensors", config=sketch.path() / "vae")


def test_float8_inputs_are_never_rounded(weights, folder):
    """On a GPU too: features are exact but for the weights' rounding."""
    kept = Qwen3VLModel.from_pretrained(folder(FLOAT8["rows"](weights)))
    layer = kept.language_model.layers[0].mlp.up_proj
    assert isinstance(layer, Float8Linear) and not layer.multiplies(torch.randn(64, 128))


def test_a_pipeline_with_a_float8_text_encoder_draws_nearly_the_same(weights, tmp_path):
    model = Path(shutil.copytree(sketch.path(), tmp_path / "model"))
    write(model / "text_encoder" / "model.safetensors", FLOAT8["rows"](weights))
    config = json.loads((TEXT / "config.json").read_text())
    (model / "text_encoder" / "config.json").write_text(json.dumps({**config, **FLAG}))

    pictures = [draw(pipe) for pipe in (sketch.load(), Ideogram4Pipeline.from_pretrained(model))]

    assert 0 < np.abs(pictures[0] - pictures[1]).mean() < 5


def draw(pipe) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    options = dict(height=96, width=96, num_inference_steps=4, guidance_scale=2.0, guidance_schedule=None)
    image = pipe(CAPTION, generator=torch.Generator().manual_seed(5), **options).images[0]
    return np.asarray(image).astype(int)


def test_a_saved_float8_text_encoder_opens_again(weights, tokenizer, folder, tmp_path):
    kept = Qwen3VLModel.from_pretrained(folder(FLOAT8["rows"](weights), **FLAG))
    kept.save_pretrained(tmp_path / "again")
    again = Qwen3VLModel.from_pretrained(tmp_path / "again")
    assert torch.equal(features(again, tokenizer), features(kept, tokenizer))
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["ideogram_fp8_weight_only"] and config["quantization_config"] == MARK
    kept.config.to_json_file(tmp_path / "config.json")
    assert "fp8" not in (tmp_path / "config.json").read_text()


def test_an_expanded_text_encoder_is_saved_for_every_reader(weights, tokenizer, folder, tmp_path):
    stored = FLOAT8["rows"](weights)
    Qwen3VLModel.from_pretrained(folder(stored, **FLAG), dequantize=True).save_pretrained(tmp_path / "again")
    assert "fp8" not in (tmp_path / "again" / "config.json").read_text()
    peer = transformers.Qwen3VLModel.from_pretrained(tmp_path / "again")
    assert torch.equal(features(peer, tokenizer), features(by_transformers(expanded(stored)), tokenizer))


def test_float8_of_a_cast_as_a_whole_needs_no_scales(weights, tokenizer, folder):
    """What programs write that cast every matrix: legitimate, unless the file or its configuration speaks of scales."""
    stored = {
        name: one.to(torch.float8_e4m3fn) if is_linear(name, one) and of_blocks(name) else one
        for name, one in weights.items()
    }
    wanted = features(by_transformers(stored), tokenizer)

    assert torch.equal(features(Qwen3VLModel.from_pretrained(folder(stored), dequantize=True), tokenizer), wanted)
    with pytest.raises(CheckpointError, match=r"without the scales that the file, or its configuration, speaks of"):
        Qwen3VLModel.from_pretrained(folder(stored, **FLAG))
    with pytest.raises(CheckpointError, match="without the scales"):
        Qwen3VLModel.from_pretrained(folder({**stored, "scaled_fp8": torch.ones(2).to(torch.float8_e4m3fn)}))


def test_one_scale_that_is_missing_is_named(weights, folder):
    stored = FLOAT8["rows"](weights)
    del stored["language_model.layers.7.mlp.up_proj.weight_scale"]
    with pytest.raises(CheckpointError, match=r"scales that others have: language_model\.layers\.7\.mlp\.up_proj"):
        Qwen3VLModel.from_pretrained(folder(stored))


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_is_what_bitsandbytes_makes_of_it(weights, tokenizer, folder, nested):
    stored = four_bits(weights, nested=nested, dtype=torch.float32, only=of_blocks)
    path = folder(stored, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    wanted = features(by_transformers(dequantized(stored)), tokenizer)

    plain = Qwen3VLModel.from_pretrained(path, dequantize=True)

    torch.testing.assert_close(features(plain, tokenizer), wanted, rtol=1e-4, atol=1e-3)
    assert getattr(plain.config, "quantization_config", None) is None
    kept = Qwen3VLModel.from_pretrained(path)
    assert kept.is_loaded_in_4bit and kept.config.quantization_config.load_in_4bit
    torch.testing.assert_close(features(kept, tokenizer), wanted, rtol=1e-3, atol=1e-2)


LLAMA = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def llama_name(name: str) -> str:
    """llama.cpp's name of a tensor of the language model."""
    name = name.removeprefix("language_model.")
    if name.startswith("layers."):
        _, number, rest = name.split(".", 2)
        return f"blk.{number}.{LLAMA[rest.rpartition('.')[0]]}.weight"
    return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]


def test_gguf_by_llama_cpp(weights, tokenizer, folder, tmp_path):
    path = folder({"x": torch.ones(1)})
    (path / "model.safetensors").unlink()
    writer = gguf.GGUFWriter(path / "qwen3vl-Q8_0.gguf", "qwen3vl")
    kind = gguf.GGMLQuantizationType.Q8_0
    wanted: Weights = {}
    for name, one in weights.items():
        if not name.startswith("language_model."):
            wanted[name] = one
        elif is_linear(name, one):
            blocks = encoded(one, "Q8_0")
            writer.add_tensor(llama_name(name), blocks, raw_dtype=kind)
            wanted[name] = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
        else:
            writer.add_tensor(llama_name(name), one.numpy())
            wanted[name] = one
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reference = features(by_transformers(wanted), tokenizer)

    assert torch.equal(features(Qwen3VLModel.from_pretrained(path, dequantize=True), tokenizer), reference)
    kept = Qwen3VLModel.from_pretrained(path)
    torch.testing.assert_close(features(kept, tokenizer), reference, rtol=1e-4, atol=1e-3)


NAMINGS: dict[str, Callable[[str], str]] = {
    "behind model.": lambda name: f"model.{name}",
    "language model alone": lambda name: name.removeprefix("language_model."),
    "language model alone behind model.": lambda name: "model." + name.removeprefix("language_model."),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_names_that_other_programs_give(weights, tokenizer, folder, naming):
    stored = {NAMINGS[naming](name): one for name, one in weights.items() if name.startswith("language_model.")}
    stored["lm_head.weight"] = torch.randn(3, 4)
    loaded = Qwen3VLModel.from_pretrained(folder(stored))
    assert torch.equal(features(loaded, tokenizer), features(by_transformers(weights), tokenizer))


def test_shards_and_variants(weights, tokenizer, tmp_path, folder):
    wanted = features(by_transformers(weights), tokenizer)
    path = folder(weights, name="model.fp16.safetensors")
    assert torch.equal(features(Qwen3VLModel.from_pretrained(path, variant="fp16"), tokenizer), wanted)
    with pytest.raises(OSError, match="pass variant='fp16'"):
        Qwen3VLModel.from_pretrained(path)
    (path / "model.fp16.safetensors").unlink()
    write_shards(path, weights)
    assert torch.equal(features(Qwen3VLModel.from_pretrained(path), tokenizer), wanted)


@pytest.mark.parametrize("quantized", [False, True], ids=["whole", "by transformers"])
def test_every_key_is_used_and_none_is_missing(weights, folder, quantized):
    """Also where transformers' loader does the work, which only logs them."""
    name = "language_model.layers.3.mlp.up_proj.weight"
    options = {"attn_implementation": "eager"} if quantized else {}
    for stored, message in (
        ({key: one for key, one in weights.items() if key != name}, rf"missing are .*{name}"),
        ({**weights, "language_model.layers.3.mlp.extra": torch.randn(3)}, r"no place is there for .*3\.mlp\.extra"),
        ({**weights, name: weights[name][:5].clone()}, name),
    ):
        with pytest.raises(CheckpointError, match=message):
            Qwen3VLModel.from_pretrained(folder(stored), **options)


def test_scales_are_not_left_to_a_loader_that_leaves_them_out(weights, folder):
    with pytest.raises(CheckpointError, match=r"weights with scales.*load it without attn_implementation"):
        Qwen3VLModel.from_pretrained(folder(FLOAT8["rows"](weights)), attn_implementation="eager")


def test_the_vision_tower_of_a_float8_file_is_saved_as_what_it_stands_for(weights, folder, tmp_path):
    stored = float8_rows(weights)  # the tower too
    Qwen3VLModel.from_pretrained(folder(stored, **FLAG), dequantize=True).save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    wanted = expanded(stored)
    assert wanted.keys() == again.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(again[name].double(), tensor, rtol=1e-6, atol=0)


def test_an_autoencoder_in_float8_is_what_it_stands_for(tmp_path):
    """A scale a tensor, for convolutions too; the few values of norms and biases stay."""
    shutil.copytree(sketch.path() / "vae", tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    stored, wanted = {}, {}
    for name, one in weights.items():
        if name.endswith("weight") and one.ndim == 4:
            scale = one.float().abs().amax() / 448
            stored[name] = (one.float() / scale).to(torch.float8_e4m3fn)
            stored[name.replace("weight", "weight_scale")] = scale
            wanted[name] = stored[name].float() * scale
        else:
            stored[name] = wanted[name] = one
    save_file(stored, file)
    peer = diffusers.AutoencoderKLFlux2.from_pretrained(sketch.path() / "vae")
    peer.load_state_dict(wanted)

    ours = Autoencoder.from_pretrained(tmp_path / "vae")

    latents = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(ours.decode(latents).sample, peer.decode(latents).sample)
    assert type(ours) is diffusers.AutoencoderKLFlux2
    del stored["decoder.conv_in.weight_scale"]
    save_file(stored, file)
    with pytest.raises(CheckpointError, match=r"without the scales that others have: decoder\.conv_in\.weight"):
        Autoencoder.from_pretrained(tmp_path / "vae")


@pytest.mark.parametrize("device_map", [None, "auto"])
def test_an_autoencoder_with_keys_that_do_not_fit_is_refused(tmp_path, device_map):
    shutil.copytree(sketch.path() / "vae", tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for stored, message in (
        ({key: one for key, one in weights.items() if key != "bn.running_mean"}, r"missing are bn\.running_mean"),
        ({**weights, "extra.weight": torch.randn(3)}, r"no place is there for extra\.weight"),
        ({**weights, "bn.running_var": torch.ones(7)}, r"bn\.running_var.* shape \[7\]"),
    ):
        save_file(stored, file)
        with pytest.raises(CheckpointError, match=message):
            Autoencoder.from_pretrained(tmp_path / "vae", device_map=device_map)


def test_text_encoder_and_autoencoder_from_files_of_their_own(weights, tmp_path):
    """As ComfyUI's users have them; the configurations come from the pipeline's folder."""
    alone = {
        f"model.{name.removeprefix('language_model.')}": one for name, one in weights.items() if "visual" not in name
    }
    text = write(tmp_path / "qwen.safetensors", alone)
    vae = sketch.path() / "vae" / "diffusion_pytorch_model.safetensors"

    pipe = Ideogram4Pipeline.from_single_file(
        sketch.path() / "transformer" / "diffusion_pytorch_model.safetensors",
        config=sketch.path(),
        text_encoder=text,
        vae=vae,
    )

    assert np.array_equal(draw(pipe), draw(sketch.load()))
    original = {"encoder.down.0.block.0.conv1.weight": torch.randn(3)}
    with pytest.raises(CheckpointError, match=r"under the original.s names.*encoder\.down\.0\.block"):
        Ideogram4Pipeline.from_pretrained(sketch.path(), vae=write(tmp_path / "ae.safetensors", original))
