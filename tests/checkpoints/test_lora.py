"""LoRA files: every form gives the pipeline the same adapters, comes back bit for bit, or is refused in plain words."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ideoflow import Caption, Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints import CheckpointError
from ideoflow.checkpoints.lora import HEADER, Adapter, Lora, read_lora
from ideoflow.checkpoints.lora_convert import COMFY_NOTE, PEER_NOTE, convert_lora, to_comfy, to_peer

CONFIG = dict(Ideogram4Transformer2DModel.load_config(sketch.path() / "transformer"))
HIDDEN, WIDE, LAYERS = CONFIG["attention_head_dim"] * CONFIG["num_attention_heads"], CONFIG["intermediate_size"], 7
CAPTION = Caption.parse(Path(__file__).parents[2] / "examples" / "captions" / "heart.json").line()
Tensors = dict[str, Tensor]
Header = dict[str, str]


@dataclass(frozen=True)
class Part:
    """An adapter of one matrix of the original's names."""

    down: Tensor
    up: Tensor
    alpha: float | None


def draw(generator: torch.Generator, rows: int, columns: int, rank: int, alpha: float | None) -> Part:
    down = torch.randn(rank, columns, generator=generator) / columns**0.5
    return Part(down, torch.randn(rows, rank, generator=generator) / 2, alpha)


def original(seed: int = 0, alpha: float | None = 2.5, blocks: bool = False) -> dict[str, Part]:
    """Adapters of different ranks for the original's layers; with `blocks`, q, k and v have a `down` of their own."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in range(LAYERS):
        name = f"layers.{layer}"
        fused = draw(generator, 3 * HIDDEN, HIDDEN, 6, alpha)
        if blocks:
            mask = torch.block_diag(*[torch.ones(HIDDEN, 2)] * 3).bool()
            fused = replace(fused, up=torch.where(mask, fused.up, 0.0))
        found[f"{name}.attention.qkv"] = fused
        found[f"{name}.attention.o"] = draw(generator, HIDDEN, HIDDEN, 4, alpha)
        found[f"{name}.feed_forward.w2"] = draw(generator, HIDDEN, WIDE, 3, alpha)
        found[f"{name}.adaln_modulation"] = draw(generator, 4 * HIDDEN, CONFIG["adaln_dim"], 4, alpha)
    return found


def apart(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The same under diffusers' names."""
    found = {}
    for name, part in parts.items():
        if name.endswith("qkv"):
            for one, up in zip(("to_q", "to_k", "to_v"), part.up.chunk(3), strict=True):
                found[name.replace("qkv", one)] = Part(part.down, up, part.alpha)
        else:
            found[name.replace("attention.o", "attention.to_out.0")] = part
    return found


def spelled(parts: Mapping[str, Part], prefix: str, pair: str = "A B", alpha: bool = True) -> Tensors:
    """Tensors with `prefix` before their names."""
    down, up = (f"lora_{half}.weight" for half in pair.split())
    found: Tensors = {}
    for name, part in parts.items():
        start = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        found[f"{start}.{down}"], found[f"{start}.{up}"] = part.down.clone(), part.up.clone()
        if part.alpha is not None and alpha:
            found[f"{start}.alpha"] = torch.tensor(part.alpha)
    return found


def peft(parts: Mapping[str, Part], prefix: str = "") -> str:
    ranks = {name: len(part.down) for name, part in parts.items()}
    alphas = {name: ranks[name] if part.alpha is None else part.alpha for name, part in parts.items()}
    found: dict[str, Any] = {"r": 4, "lora_alpha": 4, "rank_pattern": ranks, "alpha_pattern": alphas}
    found["target_modules"] = sorted(parts)
    return json.dumps({prefix + key: value for key, value in found.items()})


# Each form's tensors and header, from adapters under the original's names. The first ones diffusers reads too.
FORMS: dict[str, Callable[[dict[str, Part]], tuple[Tensors, Header]]] = {
    "peer": lambda p: (
        spelled(apart(p), "transformer.", alpha=False),
        {HEADER: peft(apart(p), "transformer.")},
    ),
    "comfy": lambda p: (spelled(p, "diffusion_model."), {}),
    "kohya, dotted": lambda p: (spelled(p, "diffusion_model.", "down up"), {}),
    "conditional": lambda p: (spelled(p, "conditional_transformer."), {}),
    "bare, fused": lambda p: (spelled(p, ""), {}),
    # From here on ours alone.
    "single file": lambda p: (spelled(p, "model.diffusion_model."), {}),
    "kohya": lambda p: (spelled(p, "lora_unet_", "down up"), {"ss_network_dim": "6"}),
    "kohya, apart": lambda p: (spelled(apart(p), "lora_unet_", "down up"), {}),
    "lycoris": lambda p: (spelled(p, "lycoris_", "down up"), {}),
    "OneTrainer": lambda p: (spelled(apart(p), "transformer.", "down up"), {}),
    "comfy, apart": lambda p: (spelled(apart(p), "diffusion_model."), {}),
    "conditional, apart": lambda p: (spelled(apart(p), "conditional_transformer.", "down up"), {}),
    "a model's own": lambda p: (spelled(apart(p), "", alpha=False), {HEADER: peft(apart(p))}),
    "peft": lambda p: (spelled(apart(p), "base_model.model.", alpha=False), {}),
}
PEERS = list(FORMS)[:5]


def write(folder: Path, form: str, parts: dict[str, Part], name: str = "adapter.safetensors") -> Path:
    """A file of a form; its name says nothing of it."""
    folder.mkdir(exist_ok=True)
    tensors, header = FORMS[form](parts)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, {"format": "pt"} | header)
    if form == "peft":
        (folder / "adapter_config.json").write_text(peft(apart(parts)))
    return folder / name


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def latents(pipe: Any) -> Tensor:
    call = dict(height=96, width=112, num_inference_steps=2, guidance_schedule=(3.0, 2.0), output_type="latent")
    return pipe(CAPTION, generator=torch.Generator().manual_seed(3), max_sequence_length=512, **call).images


@pytest.fixture(scope="module")
def loaded() -> Any:
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def ours(loaded: Any):
    yield loaded
    loaded.unload_lora_weights()


@pytest.fixture(scope="module")
def peer() -> Any:
    pipe = diffusers.Ideogram4Pipeline.from_pretrained(sketch.path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def bare(loaded: Any) -> Tensor:
    return latents(loaded)


def expanded(*weighed: tuple[float, Mapping[str, Part]]) -> Any:
    """The pipeline with the sums in its weights, made in float64: `W + weight * alpha / rank * up @ down`."""
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    state = {name: tensor.double() for name, tensor in pipe.transformer.state_dict().items()}
    for weight, parts in weighed:
        for name, part in apart(parts).items():
            scale = 1.0 if part.alpha is None else part.alpha / len(part.down)
            state[f"{name}.weight"] = state[f"{name}.weight"] + weight * scale * part.up.double() @ part.down.double()
    pipe.transformer.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return pipe


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return latents(expanded((1.0, original())))


# The same picture from every form


@pytest.mark.parametrize("form", FORMS)
def test_every_form_acts_as_the_sum_of_the_weights(tmp_path, ours, bare, expected, form):
    ours.load_lora_weights(write(tmp_path, form, original()), adapter_name="style")
    drawn = latents(ours)
    assert relative(drawn, expected) <= 2e-5 and relative(drawn, bare) > 1e-2


@pytest.mark.parametrize("form", PEERS)
def test_forms_that_the_peer_reads_act_as_there(tmp_path, ours, peer, bare, form):
    file = write(tmp_path, form, original(seed=1, alpha=3.0, blocks=form == "comfy"))
    for pipe in (ours, peer):
        pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="style")
    drawn, theirs = latents(ours), latents(peer)
    peer.unload_lora_weights()
    assert relative(drawn, theirs) <= 2e-5 < 1e-2 < relative(drawn, bare)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_what_is_read_of_any_form_is_what_the_peers_pipeline_takes(tmp_path, peer, ours, form, alpha):
    """`lora_state_dict` gives diffusers' names, and its own loader the same strength."""
    parts = original(seed=2, alpha=alpha)
    file = write(tmp_path, form, parts)
    tensors, config = type(ours).lora_state_dict(file, return_lora_metadata=True)
    assert tensors.keys() == FORMS["peer"](parts)[0].keys()
    model = diffusers.Ideogram4Transformer2DModel.from_config(dict(CONFIG))
    peer.load_lora_into_transformer(tensors, model, adapter_name="a", metadata=config)
    for name, part in apart(parts).items():
        layer = model.get_submodule(name)
        assert torch.equal(layer.lora_A["a"].weight, part.down) and torch.equal(layer.lora_B["a"].weight, part.up)
        assert layer.scaling["a"] == (1.0 if alpha is None else pytest.approx(alpha / len(part.down), rel=1e-15))


def test_dora_acts_as_in_the_peer(tmp_path, ours, peer, bare):
    tensors = FORMS["peer"](original(alpha=None))[0]
    state = ours.transformer.state_dict()
    for name in apart(original()):
        rows = state[f"{name}.weight"].norm(dim=1)
        tensors[f"transformer.{name}.lora_magnitude_vector"] = rows * (1 + 0.1 * torch.randn(len(rows)))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "dora.safetensors")
    for pipe in (ours, peer):
        pipe.load_lora_weights(tmp_path / "dora.safetensors")
    drawn, theirs = latents(ours), latents(peer)
    peer.unload_lora_weights()
    assert relative(drawn, theirs) <= 2e-5 < 1e-2 < relative(drawn, bare)


def test_biases_act_as_in_the_peer(ours, peer, bare):
    tensors = FORMS["peer"](original(alpha=None))[0]
    for name, part in apart(original()).items():
        tensors[f"transformer.{name}.lora_B.bias"] = torch.randn(len(part.up)) / 10
    for pipe in (ours, peer):
        pipe.load_lora_weights(dict(tensors))
    drawn, theirs = latents(ours), latents(peer)
    peer.unload_lora_weights()
    assert relative(drawn, theirs) <= 2e-5 < 1e-2 < relative(drawn, bare)


def test_root_scaled_strengths_of_a_header_are_honoured(tmp_path, ours, peer):
    parts = original(seed=4, alpha=3.0)
    tensors, header = FORMS["peer"](parts)
    header = {HEADER: json.dumps(json.loads(header[HEADER]) | {"transformer.use_rslora": True})}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "a.safetensors", header)
    for pipe in (ours, peer):
        pipe.load_lora_weights(tmp_path / "a.safetensors")
    drawn, theirs = latents(ours), latents(peer)
    peer.unload_lora_weights()
    assert relative(drawn, theirs) <= 2e-5


def test_tensors_in_memory_and_in_eight_bits_are_read(ours, bare):
    tensors = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in spelled(original(), "diffusion_model.").items()}
    exact = {key: tensor.float() for key, tensor in tensors.items()}
    ours.load_lora_weights(exact)
    drawn = latents(ours)
    ours.unload_lora_weights()
    ours.load_lora_weights(tensors)
    assert relative(latents(ours), drawn) <= 2e-2 < 5e-2 < relative(drawn, bare)
    assert {adapter.up.dtype for adapter in read_lora(tensors).layers.values()} == {torch.bfloat16}


def test_halves_of_different_types_multiply(ours):
    tensors = spelled(original(), "diffusion_model.")
    tensors = {key: tensor.bfloat16() if "lora_A" in key else tensor for key, tensor in tensors.items()}
    ours.load_lora_weights(tensors)
    assert relative(latents(ours), latents(expanded((1.0, original())))) <= 2e-2


# Several, fused, swapped, unloaded, on quantized weights


def test_two_adapters_are_the_weighed_sum(tmp_path, ours, bare):
    one, two = original(seed=5, alpha=2.0), original(seed=6, alpha=None, blocks=True)
    ours.load_lora_weights(write(tmp_path / "a", "kohya", one), adapter_name="one")
    ours.load_lora_weights(write(tmp_path / "b", "peer", two), adapter_name="two")
    ours.set_adapters(["one", "two"], [0.3, 0.8])
    both = latents(ours)
    assert relative(both, latents(expanded((0.3, one), (0.8, two)))) <= 2e-5
    ours.fuse_lora(adapter_names=["one", "two"])
    assert relative(latents(ours), both) <= 1e-4
    ours.unfuse_lora()
    ours.set_adapters(["two"], [1.0])
    assert relative(latents(ours), latents(expanded((1.0, two)))) <= 1e-4
    ours.unload_lora_weights()
    assert relative(latents(ours), bare) <= 1e-5


def test_an_adapter_takes_the_place_of_another(tmp_path, ours, expected):
    ours.load_lora_weights(write(tmp_path / "a", "comfy", original(seed=8)), adapter_name="style")
    before = latents(ours)
    ours.load_lora_weights(write(tmp_path / "b", "kohya", original()), adapter_name="style", hotswap=True)
    assert relative(latents(ours), expected) <= 2e-5
    ours.set_adapters("style", 0.5)
    assert relative(latents(ours), latents(expanded((0.5, original())))) <= 2e-5
    with pytest.raises(ValueError, match="no existing adapter"):
        ours.load_lora_weights(tmp_path / "b", adapter_name="other", hotswap=True)
    ours.load_lora_weights(tmp_path / "a", adapter_name="style", hotswap=True)
    assert relative(latents(ours), before) <= 2e-5
    with pytest.raises(ValueError, match="in use"):
        ours.load_lora_weights(tmp_path / "a", adapter_name="style")
    with pytest.raises(ValueError, match="without dots"):
        ours.load_lora_weights(tmp_path / "a", adapter_name="a.b")


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_comfy_adapter_acts_on_a_quantized_base(tmp_path, kind):
    file = write(tmp_path, "comfy", original())
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    pipe.quantize(kind)
    before = latents(pipe)
    pipe.load_lora_weights(file)
    drawn = latents(pipe)
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe), before)
    pipe.load_lora_weights(apart_file := FORMS["peer"](original(alpha=None))[0])
    assert apart_file and relative(latents(pipe), drawn) > 1e-3  # the alpha was not left out
    assert relative(drawn, before) > 1e-2 and relative(drawn, latents(expanded((1.0, original())))) < 0.2


def test_the_unconditional_transformer_has_its_own_loader(ours, bare):
    width = ours.unconditional_transformer.layers[0].attention.to_q.in_features
    name = "unconditional_transformer.layers.0.attention.to_q"
    tensors = {f"{name}.lora_A.weight": torch.randn(2, width), f"{name}.lora_B.weight": torch.randn(width, 2)}
    with pytest.raises(CheckpointError, match="of the unconditional transformer: call its own `load_lora_adapter`"):
        ours.load_lora_weights({**peer_tensors(), **tensors})
    ours.unconditional_transformer.load_lora_adapter(tensors, prefix="unconditional_transformer")
    changed = latents(ours)
    ours.unconditional_transformer.unload_lora()
    assert relative(changed, bare) > 1e-2


def peer_tensors(**options: Any) -> Tensors:
    return FORMS["peer"](original(**{"alpha": None} | options))[0]


# Where the file is


def test_a_folder_is_searched_for_the_usual_name(tmp_path, ours):
    write(tmp_path, "comfy", original(), "other.safetensors")
    ours.load_lora_weights(tmp_path)
    ours.unload_lora_weights()
    write(tmp_path, "comfy", original(), "third.safetensors")
    with pytest.raises(CheckpointError, match=r"holds other.safetensors, third.safetensors: name one"):
        ours.load_lora_weights(tmp_path)
    write(tmp_path, "peer", original(), "pytorch_lora_weights.safetensors")
    ours.load_lora_weights(tmp_path.parent, subfolder=tmp_path.name)


@pytest.mark.parametrize("name", ["adapter.bin", "adapter.pt", "adapter.ckpt", "adapter.safetensors"])
def test_pickles_are_refused_unopened(tmp_path, ours, name):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"transformer.layers.0.attention.to_q.lora_A.weight": Bomb()}, tmp_path / name)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(CheckpointError, match=r"run code when they are opened, so they never are.*Convert"):
            ours.load_lora_weights(path)
    with pytest.raises(CheckpointError, match="pickled"):
        ours.load_lora_weights(tmp_path / name, use_safetensors=False)
    assert not (tmp_path / "exploded").exists()


def test_what_is_not_there_is_said(tmp_path, ours):
    for path in ("./none", tmp_path / "none.safetensors", "none.safetensors"):
        with pytest.raises(CheckpointError, match="there is no such file or folder"):
            ours.load_lora_weights(path)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        ours.load_lora_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"no file 'a.safetensors'"):
        ours.load_lora_weights(tmp_path, weight_name="a.safetensors")
    with pytest.raises(TypeError, match="nonsense"):
        ours.load_lora_weights(tmp_path, nonsense=1)


# What is not known


UNKNOWN = {
    "text_encoder.layers.0.self_attn.q_proj.lora_A.weight": "of a text encoder",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "of a text encoder",
    "diffusion_model.layers.0.attention.qkv.lokr_w1": "LoKr",
    "diffusion_model.layers.0.attention.qkv.hada_w1_a": "LoHa",
    "diffusion_model.layers.0.attention_norm1.diff": "whole weights or differences",
    "diffusion_model.layers.0.attention.o.dora_scale": "DoRA in a form that programs read differently",
    "transformer.layers.7.attention.to_q.lora_A.weight": "a layer that the model has not: it has 7",
    "transformer.layers.00.feed_forward.w1.lora_A.weight": "no known name",
    "transformer.layers.٣.feed_forward.w1.lora_A.weight": "no known name",
    "unconditional_transformer.layers.0.attention.to_q.lora_A.weight": "its own `load_lora_adapter`",
    "something": "no known name",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_tensors_that_cannot_be_loaded_are_named_and_left_out_only_when_asked(name, ours, bare):
    tensors = {**spelled(original(), "diffusion_model."), name: torch.randn(3, 3)}
    with pytest.raises(CheckpointError) as error:
        ours.load_lora_weights(dict(tensors))
    for part in (name, UNKNOWN[name], "1 tensor that cannot be loaded", "`ignore_unknown=True`"):
        assert part in str(error.value)
    assert not hasattr(ours.transformer, "peft_config")
    with pytest.warns(UserWarning, match="left out"):
        ours.load_lora_weights(dict(tensors), ignore_unknown=True)
    assert relative(latents(ours), bare) > 1e-2


def test_shapes_of_another_model_are_named(ours):
    tensors = spelled(original(), "diffusion_model.")
    name = "diffusion_model.layers.3.feed_forward.w2.lora_A.weight"
    tensors[name] = torch.randn(3, WIDE + 16)
    with pytest.raises(CheckpointError) as error:
        ours.load_lora_weights(dict(tensors))
    assert name in str(error.value) and f"[3, {WIDE + 16}], for a layer of {WIDE} inputs" in str(error.value)
    with pytest.warns(UserWarning, match="feed_forward"):
        ours.load_lora_weights(dict(tensors), ignore_unknown=True)
    assert not hasattr(ours.transformer.layers[3].feed_forward.w2, "lora_A")
    other = {key: tensor[:, :-8] if "lora_A" in key else tensor for key, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match="holds no LoRA adapter of this model"):
        ours.load_lora_weights(other, ignore_unknown=True)


def test_many_unknown_names_are_a_dozen_and_a_count():
    names = [f"text_encoder.layers.{i}.self_attn.q_proj.lora_A.weight" for i in range(30)]
    tensors = {**peer_tensors(), **{name: torch.randn(2, 2) for name in names}}
    with pytest.raises(CheckpointError) as error:
        read_lora(tensors)
    assert sum(name in str(error.value) for name in names) == 12 and "30 tensors" in str(error.value)
    assert "and 18 more" in str(error.value)


def test_a_checkpoint_is_told_from_an_adapter():
    path = sketch.path() / "transformer" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointError, match=r"looks like a transformer's checkpoint.*from_single_file"):
        read_lora(path)


# What is broken


def broken(change: str, tensors: Tensors) -> str:
    """Break tensors of an adapter in a way; what the message must name is returned."""
    stem = "diffusion_model.layers.2.attention.qkv."
    down, up, alpha = stem + "lora_A.weight", stem + "lora_B.weight", stem + "alpha"
    if change in ("nan", "inf"):
        tensors[up][1, 1] = float(change)
    elif change == "nan alpha":
        tensors[alpha] = torch.tensor(math.nan)
        return alpha
    elif change == "long alpha":
        tensors[alpha] = torch.ones(2)
        return alpha
    elif change == "rank":
        tensors[down] = torch.randn(5, HIDDEN)
        return down
    elif change == "no partner":
        del tensors[up]
        return down
    elif change == "no pair":
        del tensors[up], tensors[down]
        return alpha
    elif change == "vector":
        tensors[up] = torch.randn(3 * HIDDEN)
    elif change == "empty":
        tensors[down], tensors[up] = torch.randn(0, HIDDEN), torch.randn(3 * HIDDEN, 0)
        return down
    elif change == "integers":
        tensors[up] = torch.ones(3 * HIDDEN, 6, dtype=torch.int32)
    elif change == "twice":
        tensors["lora_unet_layers_2_attention_qkv.lora_up.weight"] = tensors[up].clone()
    elif change == "two namings":
        tensors["diffusion_model.layers.2.attention.to_k.lora_B.weight"] = torch.randn(HIDDEN, 6)
        return "diffusion_model.layers.2.attention.to_k.lora_B.weight"
    elif change == "some magnitudes":
        tensors[stem + "lora_magnitude_vector"] = torch.ones(3 * HIDDEN)
        return "magnitude"
    return up


CHANGES = ["nan", "inf", "nan alpha", "long alpha", "rank", "no partner", "no pair", "vector", "empty", "integers"]


@pytest.mark.parametrize("change", [*CHANGES, "twice", "two namings", "some magnitudes"])
@pytest.mark.parametrize("ignore", [False, True])
def test_a_broken_file_is_refused_with_the_tensors_name(tmp_path, ours, change, ignore):
    tensors = spelled(original(), "diffusion_model.")
    named = broken(change, tensors)
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError) as error:
        ours.load_lora_weights(tmp_path / "broken.safetensors", ignore_unknown=ignore)
    assert named in str(error.value) and str(tmp_path / "broken.safetensors") in str(error.value)
    assert not hasattr(ours.transformer, "peft_config")


@pytest.mark.parametrize("header", ["no json", "[1]", '{"transformer.r": "many"}', '{"transformer.r": 0}', "{}"])
def test_a_header_that_makes_no_sense_is_named(tmp_path, header):
    save_file(peer_tensors(), tmp_path / "a.safetensors", {HEADER: header})
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        read_lora(tmp_path / "a.safetensors")


@pytest.mark.parametrize("pattern", ["(a+)+", "(.*)*x", ".*.*.*.*.*", "(", "x" * 300])
def test_patterns_of_a_header_take_no_endless_time(tmp_path, pattern):
    header = {"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.alpha_pattern": {pattern: 1}}
    save_file(peer_tensors(), tmp_path / "a.safetensors", {HEADER: json.dumps(header)})
    with pytest.raises(CheckpointError, match="configuration of a LoRA adapter"):
        read_lora(tmp_path / "a.safetensors")


def test_a_file_that_is_cut_off_or_changed_is_refused_or_read(tmp_path):
    """Whatever bytes change, the answer is adapters or one clear error."""
    whole = write(tmp_path, "kohya", original()).read_bytes()
    chance = random.Random(0)
    for attempt in range(60):
        spoiled = bytearray(whole)
        if attempt % 2:
            del spoiled[chance.randrange(len(spoiled)) :]
        else:
            for _ in range(3):
                spoiled[chance.randrange(12_000)] = chance.randrange(256)
        (tmp_path / "spoiled.safetensors").write_bytes(spoiled)
        try:
            read_lora(tmp_path / "spoiled.safetensors", CONFIG)
        except CheckpointError as error:
            assert "spoiled.safetensors" in str(error)


def test_an_adapter_of_peft_without_its_configuration_is_warned_of(tmp_path):
    file = write(tmp_path, "peft", original())
    assert read_lora(file).layers["layers.0.attention.to_out.0"].alpha == 2.5
    (tmp_path / "adapter_config.json").unlink()
    with pytest.warns(UserWarning, match=r"keeps the adapter's strength in adapter_config\.json"):
        assert read_lora(file).layers["layers.0.attention.to_out.0"].alpha is None


# From one form to the other and back, bit for bit

TYPES = [torch.bfloat16, torch.float16, torch.float32]
ALPHAS = [None, 1.0, 0.1, 4.0, 1e-3]


def values(generator: torch.Generator, rows: int, columns: int, dtype: torch.dtype, zeros: str) -> Tensor:
    """Random numbers; with some, or all, or negative zeros among them where `zeros` says so."""
    tensor = torch.randn(rows, columns, generator=generator).to(dtype)
    if zeros == "all":
        return torch.zeros_like(tensor)
    if zeros == "column":
        tensor[:, 0] = 0
    if zeros == "row":
        tensor[-1] = 0
    if zeros == "negative":
        tensor[0, -1] = -0.0
    return tensor


@st.composite
def peers(draw: Any) -> tuple[Tensors, Header]:
    """Files in diffusers' form: some of the layers, any ranks, equal or different `lora_A`, a header or none."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    width, found, alphas = 4, {}, {}
    dtype = draw(st.sampled_from(TYPES))
    mixed = draw(st.booleans()) and draw(st.booleans())
    attention, other = ["to_q", "to_k", "to_v"], ["attention.to_out.0", "feed_forward.w1", "adaln_modulation"]
    for number in range(draw(st.integers(1, 2))):
        chosen = draw(st.sets(st.sampled_from(attention + other), min_size=1))
        shared = draw(st.booleans())
        rank, alpha = draw(st.integers(1, 4)), draw(st.sampled_from(ALPHAS))
        together = values(generator, rank, width, dtype, draw(st.sampled_from(["", "row"])))
        for last in sorted(chosen):
            name = f"layers.{number}." + (f"attention.{last}" if last in attention else last)
            if last in attention and shared:
                own, down = rank, together
            else:
                own = draw(st.integers(1, 4))
                down = values(generator, own, width, draw(st.sampled_from(TYPES)) if mixed else dtype, "")
            zeros = draw(st.sampled_from(["", "", "all", "column", "negative"]))
            up = values(generator, width, own, draw(st.sampled_from(TYPES)) if mixed else dtype, zeros)
            found[f"transformer.{name}.lora_A.weight"] = down.clone()
            found[f"transformer.{name}.lora_B.weight"] = up
            alphas[name] = (own, None if alpha is None else alpha * own)  # the same strength for q, k and v
    header = {"trigger": "sks", "ss_tag": "ü"}
    if draw(st.booleans()):
        peft = {"r": 1, "lora_alpha": 1, "rank_pattern": {name: rank for name, (rank, _) in alphas.items()}}
        peft["target_modules"] = sorted(alphas)
        peft["alpha_pattern"] = {name: rank if alpha is None else alpha for name, (rank, alpha) in alphas.items()}
        header[HEADER] = json.dumps({f"transformer.{key}": value for key, value in peft.items()} | {"other": 1})
    return found, header


@st.composite
def comfies(draw: Any) -> tuple[Tensors, Header]:
    """Files in ComfyUI's form: dense or block-diagonal qkv, some with zero columns, alphas of any type and shape."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    width, found = 4, {}
    dtype, alpha = draw(st.sampled_from(TYPES)), draw(st.sampled_from(ALPHAS))
    for number in range(draw(st.integers(1, 2))):
        for last in draw(st.sets(st.sampled_from(["attention.qkv", "attention.o", "feed_forward.w2"]), min_size=1)):
            rank = draw(st.integers(1, 6))
            down = values(generator, rank, width, dtype, draw(st.sampled_from(["", "row"])))
            rows = 3 * width if last.endswith("qkv") else width
            up = values(generator, rows, rank, dtype, draw(st.sampled_from(["", "all", "column", "negative"])))
            kind = draw(st.sampled_from(["dense", "blocks", "equal blocks", "scattered", "padded"]))
            if last.endswith("qkv") and kind != "dense":
                owner = torch.randint(0, 3, (rank,), generator=generator)
                owner = owner if kind == "scattered" else owner.sort().values
                up = torch.where(torch.arange(rows)[:, None] // width == owner, up, torch.zeros_like(up))
                if kind == "equal blocks":
                    down = down[:1].expand(rank, width).clone()
            if kind == "padded":
                down[-1], up[:, -1] = 0, 0
            name = f"diffusion_model.layers.{number}.{last}"
            found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = down, up
            if alpha is not None and draw(st.booleans()):
                shape = draw(st.sampled_from([(), (1,)]))
                found[f"{name}.alpha"] = torch.full(shape, alpha, dtype=draw(st.sampled_from([*TYPES, torch.float64])))
    return found, {"trigger": "sks"}


def same_bits(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    def bits(tensor: Tensor) -> Any:
        return str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).tolist()

    return ours.keys() == theirs.keys() and all(bits(ours[name]) == bits(theirs[name]) for name in ours)


def converted(folder: Path, found: tuple[Tensors, Header], *forms: str) -> tuple[Tensors, Header]:
    """Through `convert_lora`, from form to form."""
    tensors, header = found
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "0.safetensors", header)
    for number, form in enumerate(forms):
        convert_lora(folder / f"{number}.safetensors", folder / f"{number + 1}.safetensors", form, overwrite=True)
    with safe_open(folder / f"{len(forms)}.safetensors", "pt") as file:
        return load_file(folder / f"{len(forms)}.safetensors"), file.metadata()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("converted")


def change(lora: Lora) -> dict[str, Tensor]:
    """What the adapters add to each weight of the peer's names, in float64."""
    found = {}
    for name, adapter in lora.layers.items():
        up = adapter.up.double() * float(adapter.scale)
        if name.endswith("qkv"):
            for one, rows in zip(("to_q", "to_k", "to_v"), up.chunk(3), strict=True):
                found[name.replace("qkv", one)] = rows @ adapter.down.double()
        else:
            found[name.replace("attention.o", "attention.to_out.0")] = up @ adapter.down.double()
    return found


def assert_same_change(one: Lora, other: Lora) -> None:
    ours, theirs = change(one), change(other)
    for name in ours.keys() | theirs.keys():
        known = ours.get(name, theirs.get(name))
        a, b = (found.get(name, torch.zeros_like(known)) for found in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@settings(max_examples=120, deadline=None)
@given(found=peers())
def test_the_peers_form_comes_back_bit_for_bit(place, found):
    tensors, header = converted(place, found, "comfy-lora", "peer-lora")
    assert same_bits(tensors, found[0])
    assert {key: value for key, value in header.items() if not key.startswith("ideoflow")} == {"format": "pt"} | found[
        1
    ]
    comfy = read_lora(place / "1.safetensors")
    assert comfy.form == "comfy" and COMFY_NOTE not in comfy.metadata and HEADER not in comfy.metadata
    assert not any(name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")) for name in comfy.layers)
    assert_same_change(read_lora(place / "0.safetensors"), comfy)


@settings(max_examples=120, deadline=None)
@given(found=comfies())
def test_the_comfy_form_comes_back_bit_for_bit(place, found):
    tensors, header = converted(place, found, "peer-lora", "comfy-lora")
    assert same_bits(tensors, found[0])
    assert header == {"format": "pt"} | found[1]
    peer = read_lora(place / "1.safetensors")
    assert peer.form == "peer" and not any(name.endswith(".alpha") for name in load_file(place / "1.safetensors"))
    assert_same_change(read_lora(place / "0.safetensors"), peer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("to", ["comfy-lora", "peer-lora"])
def test_every_form_is_converted_with_its_strength(tmp_path, form, to):
    parts = original(alpha=2.5)
    source = write(tmp_path, form, parts)
    made = convert_lora(source, tmp_path / "new.safetensors", to)
    again = read_lora(tmp_path / "new.safetensors", CONFIG)
    assert again.form == to.removesuffix("-lora") == made.form
    assert_same_change(again, read_lora(write(tmp_path / "b", "comfy", parts)))
    header = FORMS[form](parts)[1]
    assert {key: value for key, value in header.items() if key != HEADER}.items() <= again.metadata.items()


def test_blocks_are_told_by_their_zeros_alone():
    """A file that nobody noted anything in: the block diagonal falls apart, and a shared `down` stays shared."""
    comfy = read_lora(spelled(original(blocks=True), "diffusion_model."))
    assert {a.rank for name, a in to_peer(comfy).layers.items() if ".to_q" in name} == {2}
    assert COMFY_NOTE not in to_peer(comfy).metadata and PEER_NOTE not in to_comfy(to_peer(comfy)).metadata
    shared = to_peer(read_lora(spelled(original(), "diffusion_model.")))
    assert {a.rank for name, a in shared.layers.items() if ".to_q" in name} == {6}
    assert to_comfy(shared).layers["layers.0.attention.qkv"].rank == 6


def test_a_part_that_has_no_adapter_adds_no_rank():
    tensors = {key: tensor for key, tensor in peer_tensors().items() if "to_k" not in key}
    tensors["transformer.layers.0.attention.to_q.lora_A.weight"] += 1  # no longer shared
    comfy = to_comfy(read_lora(tensors))
    assert comfy.layers["layers.0.attention.qkv"].rank == 12
    assert comfy.layers["layers.0.attention.qkv"].up[HIDDEN : 2 * HIDDEN].count_nonzero() == 0
    assert same_bits(to_peer(comfy).tensors(), tensors)


def test_padding_of_older_files_is_stripped_and_comes_back():
    """Files of one rank for all layers, filled up with zeros."""
    padded = {}
    for name, tensor in spelled(original(alpha=None, blocks=True), "diffusion_model.").items():
        missing = 9 - (tensor.shape[0] if "lora_A" in name else tensor.shape[1])
        padded[name] = torch.nn.functional.pad(tensor, (0, 0, 0, missing) if "lora_A" in name else (0, missing))
    peer = to_peer(read_lora(padded))
    assert {name.split(".", 2)[-1]: a.rank for name, a in peer.layers.items()} == {
        **dict.fromkeys(("attention.to_q", "attention.to_k", "attention.to_v"), 2),
        **{"attention.to_out.0": 4, "feed_forward.w2": 3, "adaln_modulation": 4},
    }
    assert same_bits(to_comfy(peer).tensors(), padded)


def test_different_strengths_of_q_k_and_v_are_held_exactly_or_refused():
    tensors, alphas = {}, {"to_q": 1.0, "to_k": 1.5, "to_v": -4.0}
    for last, alpha in alphas.items():
        name = f"transformer.layers.0.attention.{last}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(3, 8).bfloat16()
        tensors[f"{name}.lora_up.weight"] = torch.randn(8, 3).bfloat16()
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    lora = read_lora(tensors)
    comfy = to_comfy(lora)
    assert_same_change(lora, comfy)
    back = to_peer(comfy)
    for last, alpha in alphas.items():
        adapter = back.layers[f"layers.0.attention.{last}"]
        assert float(adapter.scale) == alpha / 3 and adapter.up.dtype == torch.bfloat16
        assert torch.equal(adapter.up, tensors[f"transformer.layers.0.attention.{last}.lora_up.weight"])
    tensors["transformer.layers.0.attention.to_v.alpha"] = torch.tensor(0.1, dtype=torch.float64)
    with pytest.raises(CheckpointError, match=r"layers\.0\.attention\.qkv.*different strengths"):
        to_comfy(read_lora(tensors))
    tensors["transformer.layers.0.attention.to_v.alpha"] = torch.tensor(0.0)
    with pytest.raises(CheckpointError, match="different strengths"):
        to_comfy(read_lora(tensors))


NOTES = ["", "{", "[]", "null", '{"layers.0.attention.qkv":1}', '{"layers.0.attention.qkv":{"ranks":[1,2]}}']
NOTES += ['{"layers.0.attention.qkv":{"ranks":[9,9,9],"alphas":[null,"x",1],"types":[["a","b"],1,null]}}']
NOTES += ['{"layers.0.attention.qkv":{"rank":99999999,"kept":[0],"alpha":["float32",[99999999],1]}}']
NOTES += ['{"layers.0.attention.qkv":{"rank":12,"kept":[0,0,0,0,0,0],"alpha":null}}']
NOTES += ['{"layers.0.attention.qkv":{"alpha":["float32",[],7.0]}}']


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_leads_elsewhere_is_not_believed(note):
    comfy = read_lora(spelled(original(), "diffusion_model."))
    misled = replace(comfy, metadata={PEER_NOTE: note, "ideoflow.peer_header": note})
    assert same_bits(to_peer(misled).tensors(), to_peer(comfy).tensors())
    assert_same_change(to_peer(misled), to_peer(comfy))
    peer = replace(to_peer(comfy), metadata={COMFY_NOTE: note})
    assert same_bits(to_comfy(peer).tensors(), comfy.tensors())


def test_a_note_of_other_weights_is_not_believed():
    """Trained further after conversion: the blocks have changed, the note has not."""
    comfy = to_comfy(
        read_lora(peer_tensors() | {"transformer.layers.0.attention.to_q.lora_B.weight": torch.zeros(HIDDEN, 6)})
    )
    name = "layers.0.attention.qkv"
    adapter = comfy.layers[name]
    changed = replace(comfy, layers=comfy.layers | {name: replace(adapter, up=adapter.up + 0.5)})
    assert_same_change(to_peer(changed), changed)


# The file that is written


def test_a_new_file_is_whole_or_not_there(tmp_path, monkeypatch):
    source = write(tmp_path, "kohya", original())
    target = tmp_path / "new.safetensors"
    convert_lora(source, target, "peer-lora")
    assert oct(target.stat().st_mode & 0o777) == oct(0o666 & ~umask())
    before = target.read_bytes()
    with pytest.raises(CheckpointError, match="exists"):
        convert_lora(source, target, "comfy-lora")
    assert target.read_bytes() == before
    monkeypatch.setattr(os, "fsync", failing := Failing())
    with pytest.raises(OSError, match="disk full"):
        convert_lora(source, target, "comfy-lora", overwrite=True)
    assert failing.calls == 1 and target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.safetensors", "new.safetensors"]
    monkeypatch.undo()
    convert_lora(target, target, "comfy-lora", overwrite=True)
    assert read_lora(target).form == "comfy"


class Failing:
    calls = 0

    def __call__(self, number: int) -> None:
        self.calls += 1
        raise OSError(28, "disk full")


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_cannot_be_written_is_said(tmp_path):
    source = write(tmp_path, "comfy", original())
    for target, to, says in (
        (tmp_path / "a.bin", "peer-lora", "ends in .safetensors"),
        (tmp_path / "none" / "a.safetensors", "peer-lora", "folder is not there"),
        (tmp_path / "a.safetensors", "kohya", "choose comfy-lora or peer-lora"),
    ):
        with pytest.raises(CheckpointError, match=says):
            convert_lora(source, target, to)
    tensors = peer_tensors()
    for name in apart(original()):
        rows = len(tensors[f"transformer.{name}.lora_B.weight"])
        tensors[f"transformer.{name}.lora_magnitude_vector"] = torch.ones(rows)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "dora.safetensors")
    with pytest.raises(CheckpointError, match="has DoRA, for which"):
        convert_lora(tmp_path / "dora.safetensors", tmp_path / "b.safetensors", "comfy-lora")
    convert_lora(tmp_path / "dora.safetensors", tmp_path / "b.safetensors", "peer-lora")
    save_file(load_file(source) | {"text_encoder.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"c\.safetensors holds 1 tensor"):
        convert_lora(tmp_path / "c.safetensors", tmp_path / "d.safetensors", "peer-lora")
    with pytest.warns(UserWarning, match="left out"):
        convert_lora(tmp_path / "c.safetensors", tmp_path / "d.safetensors", "peer-lora", ignore_unknown=True)
    assert isinstance(read_lora(tmp_path / "d.safetensors").layers["layers.0.attention.to_q"], Adapter)
