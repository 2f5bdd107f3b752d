"""`from_pretrained` and `from_single_file`, of the model and of the pipeline: every form draws the same picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints import CheckpointError
from ideoflow.ops import Float8Linear
from ideoflow.sketch.wording import line
from tools.sketch.score import held_out

from .forms import float8_rows, float8_scaled, original_config, original_weights, write, write_config

BRANCHES = ("transformer", "unconditional_transformer")
CALL = dict(height=96, width=96, num_inference_steps=4, guidance_scale=2.0, guidance_schedule=None)
CAPTION = line(held_out(1)[0].caption)


def draw(pipe) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    image = pipe(CAPTION, generator=torch.Generator().manual_seed(5), **CALL).images[0]
    return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return draw(sketch.load())


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, torch.Tensor]]:
    return {branch: load_file(next((sketch.path() / branch).glob("*.safetensors"))) for branch in BRANCHES}


@pytest.fixture(scope="module")
def configs() -> dict[str, dict]:
    return {branch: json.loads((sketch.path() / branch / "config.json").read_text()) for branch in BRANCHES}


@pytest.fixture
def folder(tmp_path) -> Path:
    """The bundled model's folder, to be changed."""
    return Path(shutil.copytree(sketch.path(), tmp_path / "model"))


def replace(folder, branch, weights, config):
    for file in (folder / branch).glob("*.safetensors"):
        file.unlink()
    write(folder / branch / "model.safetensors", weights)
    write_config(folder / branch, config)


def test_a_pipeline_of_the_original_form_draws_the_same(folder, weights, configs, picture):
    for branch in BRANCHES:
        replace(folder, branch, original_weights(weights[branch]), original_config(configs[branch]))

    assert np.abs(draw(Ideogram4Pipeline.from_pretrained(folder)) - picture).max() <= 1


@pytest.mark.parametrize("dequantize", [False, True])
def test_a_pipeline_in_float8_draws_nearly_the_same(folder, weights, configs, picture, dequantize):
    for branch in BRANCHES:
        replace(folder, branch, float8_rows(original_weights(weights[branch])), original_config(configs[branch]))

    pipe = Ideogram4Pipeline.from_pretrained(folder, dequantize=dequantize)

    assert any(isinstance(part, Float8Linear) for part in pipe.transformer.modules()) != dequantize
    difference = np.abs(draw(pipe) - picture)
    assert 0 < difference.mean() < 5


def test_a_folder_without_an_index_and_a_scheduler(folder, picture):
    (folder / "model_index.json").unlink()
    shutil.rmtree(folder / "scheduler")

    assert np.array_equal(draw(Ideogram4Pipeline.from_pretrained(folder)), picture)

    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match=r"no model_index\.json.* vae are missing \(there is .*transformer"):
        Ideogram4Pipeline.from_pretrained(folder)


@pytest.mark.parametrize("both", [False, True], ids=["one branch", "both branches"])
def test_a_pipeline_from_a_single_file(tmp_path, weights, picture, both):
    stored = original_weights(weights["transformer"])
    if both:
        stored = {f"conditional_transformer.{name}": tensor for name, tensor in stored.items()}
        other = original_weights(weights["unconditional_transformer"])
        stored |= {f"unconditional_transformer.{name}": tensor for name, tensor in other.items()}
    file = write(tmp_path / "model.safetensors", stored, "" if both else "model.diffusion_model.")

    pipe = Ideogram4Pipeline.from_single_file(file, config=sketch.path())

    assert np.abs(draw(pipe) - picture).max() <= 1


def test_two_single_files_of_comfyui(tmp_path, weights, picture):
    files = [
        write(tmp_path / f"{branch}.safetensors", float8_scaled(original_weights(weights[branch]), old=False))
        for branch in BRANCHES
    ]

    pipe = Ideogram4Pipeline.from_single_file(
        files[0], unconditional_transformer=files[1], config=sketch.path(), dtype=torch.float32
    )

    assert isinstance(pipe.unconditional_transformer.layers[0].attention.to_q, Float8Linear)
    assert np.abs(draw(pipe) - picture).mean() < 8


def test_what_no_caption_needs_stays_in_its_file_and_is_saved_again(folder, tmp_path):
    pipe = Ideogram4Pipeline.from_pretrained(folder, dtype=torch.float16)

    assert not list(pipe.text_encoder.visual.parameters())
    assert not list(pipe.unconditional_transformer.llm_cond_proj.parameters())
    for target in (tmp_path / "elsewhere", folder):  # its own folder too, whose files are read while they are written
        pipe.save_pretrained(target)
        for original in sketch.path().rglob("*.safetensors"):
            before, after = load_file(original), load_file(target / original.relative_to(sketch.path()))
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
    opened = diffusers.Ideogram4Pipeline.from_pretrained(folder)
    visual = opened.text_encoder.visual.state_dict()
    saved = load_file(folder / "text_encoder" / "model.safetensors")
    assert visual and all(torch.equal(saved[f"visual.{name}"], tensor.half()) for name, tensor in visual.items())


def test_the_text_encoder_computes_what_that_of_transformers_does(picture):
    ours, peer = sketch.load(), diffusers.Ideogram4Pipeline.from_pretrained(sketch.path())
    ids = torch.arange(20, 60)[None]
    theirs = peer.text_encoder.language_model(ids).last_hidden_state
    assert torch.equal(ours.text_encoder.language_model(ids).last_hidden_state, theirs)


def test_a_model_from_a_hub_cache_without_a_network(hub_cache):
    loaded = Ideogram4Transformer2DModel.from_pretrained(
        "someone/sketch", subfolder="transformer", cache_dir=hub_cache, local_files_only=True
    )

    stored = load_file(sketch.path() / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(loaded.state_dict()[name], tensor.float()) for name, tensor in stored.items())
    with pytest.raises(CheckpointError, match="no such file or folder here, and as a hub id it cannot be fetched"):
        Ideogram4Transformer2DModel.from_pretrained("someone/else", cache_dir=hub_cache, local_files_only=True)
    with pytest.raises(CheckpointError, match="no such folder"):
        Ideogram4Transformer2DModel.from_pretrained(hub_cache / "nothing here")


def test_a_subclass_is_made(folder):
    class Mine(Ideogram4Transformer2DModel):
        pass

    assert type(Mine.from_pretrained(folder / "transformer")) is Mine
    assert type(Mine.from_single_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")) is Mine


def test_arguments_that_do_not_fit_are_refused(folder, weights):
    with pytest.raises(ValueError, match=r"`dtype` is torch\.float8_e4m3fn: give torch\.float32"):
        Ideogram4Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float8_e4m3fn)
    with pytest.raises(TypeError, match="tyop: no such argument"):
        Ideogram4Transformer2DModel.from_pretrained(folder / "transformer", tyop=1)
    replace(folder, "transformer", original_weights(weights["transformer"]), sketch_config())
    with pytest.raises(CheckpointError, match="`device_map` is for checkpoints in diffusers' form"):
        Ideogram4Transformer2DModel.from_pretrained(folder / "transformer", device_map="auto")


def sketch_config() -> dict:
    return json.loads((sketch.path() / "transformer" / "config.json").read_text())


def test_a_lora_file_is_told_from_a_checkpoint(tmp_path):
    save_file({"transformer.layers.0.attention.to_q.lora_A.weight": torch.randn(4, 8)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="looks like a LoRA adapter"):
        Ideogram4Transformer2DModel.from_single_file(tmp_path / "x.safetensors")
