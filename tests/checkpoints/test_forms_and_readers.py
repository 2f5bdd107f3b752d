"""The table of saved folders: every form of every component, by every reader, holds the weights that it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import bitsandbytes
import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.ops.gguf_linear import GgufLinear
from ideoflow.ops.quantized_linear import QuantizedLinear
from ideoflow.pipeline.autoencoder import Autoencoder
from ideoflow.pipeline.qwen3_vl import Qwen3VLModel

from .forms import Weights, expanded, float8_rows, original_config, original_weights, small_folder, write, write_config
from .forms_low_bit import dequantized, expanded_gguf, four_bits, write_gguf
from .test_components import scaled

MODELS = ("text_encoder", "transformer", "unconditional_transformer", "vae")
Stored = dict[str, Weights]  # of each component


def read(folder: Path) -> Stored:
    return {name: load_file(next((folder / name).glob("*.safetensors"))) for name in MODELS}


def saved(load: Callable[[Path], object], **options: object) -> Callable[[Path, Path], None]:
    return lambda source, target: load(source).save_pretrained(target, **options)


def rewritten(change: Callable[[str, Path, Weights], Weights]) -> Callable[[Path, Path], Stored]:
    """A form that no program here saves: each component's file is written anew; what it stands for is returned."""

    def make(source: Path, target: Path) -> Stored:
        small_folder(target)
        return {name: change(name, target / name, weights) for name, weights in read(source).items()}

    return make


def instead(folder: Path, stored: Weights, **config: object) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    write(folder / "model.safetensors", stored)
    if config:
        write_config(folder, {**json.loads((folder / "config.json").read_text()), **config})


def of_blocks(name: str) -> bool:
    return name.startswith(("layers.", "language_model.layers."))


def as_original(name: str, folder: Path, weights: Weights) -> Weights:
    if "transformer" in name:
        config = json.loads((folder / "config.json").read_text())
        instead(folder, original_weights(weights))
        write_config(folder, original_config(config))
    return weights


def as_float8(name: str, folder: Path, weights: Weights) -> Weights:
    if name == "vae":
        return weights
    stored = float8_rows(weights, of_blocks)
    instead(folder, stored, **({"ideogram_fp8_weight_only": True} if name == "text_encoder" else {}))
    return expanded(stored)


def as_scaled_float8(name: str, folder: Path, weights: Weights) -> Weights:
    if name != "text_encoder":
        return weights
    stored = scaled(weights, old=True)
    instead(folder, stored)
    return expanded(stored)


def as_nf4(name: str, folder: Path, weights: Weights) -> Weights:
    if name == "vae":
        return weights
    stored = four_bits(weights, only=of_blocks, dtype=torch.float32)
    notes = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    instead(folder, stored, **notes)
    return dequantized(stored)


def as_gguf(name: str, folder: Path, weights: Weights) -> Weights:
    if name == "vae":
        return weights
    for file in folder.glob("*.safetensors"):
        file.unlink()
    weights = {
        key: one for key, one in weights.items() if one.ndim <= 4
    }  # the format's most; one of the tower has five
    write_gguf(folder / "model.gguf", weights, "Q8_0", only=of_blocks)
    return expanded_gguf(weights, "Q8_0", of_blocks)


def ours(folder: Path) -> object:
    return Ideogram4Pipeline.from_pretrained(folder)


FORMS: dict[str, Callable[[Path, Path], Stored | None]] = {
    "float32": saved(ours),
    "float16": saved(lambda folder: Ideogram4Pipeline.from_pretrained(folder, dtype=torch.float16)),
    "shards": saved(ours, max_shard_size="1MB"),
    "diffusers'": saved(diffusers.Ideogram4Pipeline.from_pretrained),
    "original": rewritten(as_original),
    "fp8": rewritten(as_float8),
    "scaled fp8": rewritten(as_scaled_float8),
    "nf4": rewritten(as_nf4),
    "GGUF": rewritten(as_gguf),
}
BY_THE_PEER = ("float32", "float16", "shards", "diffusers'")
UNSAVED = ("GGUF",)


def by_their_own_classes(folder: Path) -> dict[str, nn.Module]:
    return {
        "text_encoder": Qwen3VLModel.from_pretrained(folder, subfolder="text_encoder"),
        "transformer": Ideogram4Transformer2DModel.from_pretrained(folder, subfolder="transformer"),
        "vae": Autoencoder.from_pretrained(folder, subfolder="vae"),
    }


def without_an_index(folder: Path) -> object:
    (folder / "model_index.json").rename(folder / "away")
    try:
        return Ideogram4Pipeline.from_pretrained(folder)
    finally:
        (folder / "away").rename(folder / "model_index.json")


def transformer_alone(folder: Path) -> object:
    return Ideogram4Pipeline.from_single_file(folder / "transformer", config=folder)


def saved_again(folder: Path) -> object:
    ours(folder).save_pretrained(folder / "again")
    return ours(folder / "again")


def by_the_peer(folder: Path) -> dict[str, nn.Module]:
    return {
        **diffusers.Ideogram4Pipeline.from_pretrained(folder).components,
        "text_encoder": transformers.Qwen3VLModel.from_pretrained(folder / "text_encoder"),
    }


READERS: dict[str, Callable[[Path], object]] = {
    "pipeline": ours,
    "expanded": lambda folder: Ideogram4Pipeline.from_pretrained(folder, dequantize=True),
    "own classes": by_their_own_classes,
    "no index": without_an_index,
    "transformer alone": transformer_alone,
    "saved again": saved_again,
    "diffusers": by_the_peer,
}


def held(model: nn.Module) -> Weights:
    """The weights of a model's layers, expanded; without what a text encoder leaves in its file."""
    found = {}
    for layer, part in model.named_modules():
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            key = f"{layer}.{name}".lstrip(".")
            if name == "weight" and isinstance(part, (QuantizedLinear, GgufLinear)):
                found[key] = part.dequantize()
            elif name == "weight" and isinstance(part, bitsandbytes.nn.Linear4bit):
                found[key] = bitsandbytes.functional.dequantize_4bit(tensor, tensor.quant_state)
            elif name not in ("weight_scale", "num_batches_tracked", "inv_freq", "original_inv_freq"):
                found[key] = tensor
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], tuple[Path, Stored]]:
    """The folder of a form, made when it is first asked for, and what it stands for."""
    source = small_folder(tmp_path_factory.mktemp("forms") / "source")
    made: dict[str, tuple[Path, Stored]] = {}

    def give(form: str) -> tuple[Path, Stored]:
        if form not in made:
            target = source.parent / f"form {len(made)}"
            made[form] = target, FORMS[form](source, target) or read(source)
        return made[form]

    return give


@pytest.mark.parametrize("form", FORMS)
def test_every_reader_finds_what_a_form_stands_for(folders, form):
    folder, wanted = folders(form)
    for reader, load in READERS.items():
        if (reader == "diffusers" and form not in BY_THE_PEER) or (reader == "saved again" and form in UNSAVED):
            continue
        found = load(folder)
        models = found if isinstance(found, dict) else found.components
        for name in MODELS:
            if name not in models:
                continue
            values = held(models[name])
            missing = [
                key
                for key in wanted[name]
                if key not in values
                and not key.startswith(("visual.", "llm_cond"))
                and "num_batches_tracked" not in key
            ]
            assert values and not missing, (reader, name, missing[:3])
            for key, value in values.items():
                same = torch.allclose(value.double(), wanted[name][key].double(), rtol=1e-6, atol=1e-9)
                assert same, (reader, name, key)


def test_no_form_is_the_whole_weights_again(folders):
    """The table would say nothing of scales, if few bits were not told from many."""
    whole = load_file(sketch.path() / "text_encoder" / "model.safetensors")
    key = "language_model.layers.0.mlp.up_proj.weight"
    for form in ("fp8", "scaled fp8", "nf4", "GGUF"):
        assert not torch.equal(folders(form)[1]["text_encoder"][key].float(), whole[key].float())
