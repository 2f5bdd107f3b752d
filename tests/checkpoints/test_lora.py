"""LoRA files: every form gives the pipeline the same adapters, comes back bit for bit, or is refused in plain words."""

from __future__ import annotations

import inspect
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ideoflow import Caption, Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints import CheckpointError
from ideoflow.checkpoints.lora import read_lora
from ideoflow.checkpoints.lora_strength import HEADER
from ideoflow.checkpoints.write import bits

from .forms_low_bit import four_bits, write_gguf
from .lora_files import CONFIG, FORMS, HIDDEN, PEERS, WIDE, Part, Tensors, apart, original, peer_tensors, spelled, write

CAPTION = Caption.parse(Path(__file__).parents[2] / "examples" / "captions" / "heart.json").line()


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def latents(pipe: Any) -> Tensor:
    call = dict(height=96, width=112, num_inference_steps=2, guidance_schedule=(3.0, 2.0), output_type="latent")
    return pipe(CAPTION, generator=torch.Generator().manual_seed(3), max_sequence_length=512, **call).images


@pytest.fixture(scope="module")
def peer() -> Any:
    pipe = diffusers.Ideogram4Pipeline.from_pretrained(sketch.path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def bare(loaded: Any) -> Tensor:
    return latents(loaded)


@pytest.fixture(scope="module")
def untouched() -> tuple[Any, Tensor]:
    """A pipeline that never had an adapter, and what it draws: one that had rounds otherwise in the last bits."""
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe, latents(pipe)


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
    assert tensors.keys() == FORMS["diffusers"](parts)[0].keys()
    model = diffusers.Ideogram4Transformer2DModel.from_config(dict(CONFIG))
    peer.load_lora_into_transformer(tensors, model, adapter_name="a", metadata=config)
    for name, part in apart(parts).items():
        layer = model.get_submodule(name)
        assert torch.equal(layer.lora_A["a"].weight, part.down) and torch.equal(layer.lora_B["a"].weight, part.up)
        assert layer.scaling["a"] == (1.0 if alpha is None else pytest.approx(alpha / len(part.down), rel=1e-15))


def test_dora_acts_as_in_the_peer(tmp_path, ours, peer, bare):
    tensors = FORMS["diffusers"](original(alpha=None))[0]
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
    tensors = FORMS["diffusers"](original(alpha=None))[0]
    for name, part in apart(original()).items():
        tensors[f"transformer.{name}.lora_B.bias"] = torch.randn(len(part.up)) / 10
    for pipe in (ours, peer):
        pipe.load_lora_weights(dict(tensors))
    drawn, theirs = latents(ours), latents(peer)
    peer.unload_lora_weights()
    assert relative(drawn, theirs) <= 2e-5 < 1e-2 < relative(drawn, bare)


def test_root_scaled_strengths_of_a_header_are_honoured(tmp_path, ours, peer):
    parts = original(seed=4, alpha=3.0)
    tensors, header = FORMS["diffusers"](parts)
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


def test_halves_of_different_types_are_given_one(ours):
    """peft casts both to the type of the layer's weight, but not where that is stored in whole numbers, as in nf4."""
    tensors = spelled(original(), "diffusion_model.")
    tensors = {key: tensor.bfloat16() if "lora_A" in key else tensor for key, tensor in tensors.items()}
    assert {tensor.dtype for tensor in type(ours).lora_state_dict(tensors).values()} == {torch.float32}


# Several, fused, swapped, unloaded, on quantized weights


def test_two_adapters_are_the_weighed_sum(tmp_path, ours, bare):
    one, two = original(seed=5, alpha=2.0), original(seed=6, alpha=None, blocks=True)
    ours.load_lora_weights(write(tmp_path / "a", "kohya", one), adapter_name="one")
    ours.load_lora_weights(write(tmp_path / "b", "diffusers", two), adapter_name="two")
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
    other = original(seed=8, alpha=5.0, blocks=True)  # of other ranks and strengths
    ours.load_lora_weights(write(tmp_path / "a", "comfy", other), adapter_name="style")
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


def in_few_bits(kind: str, folder: Path) -> Any:
    """A pipeline whose transformer's blocks are stored so."""
    if kind in ("fp8", "int8"):
        pipe = sketch.load()
        pipe.quantize(kind)
        return pipe
    weights = load_file(sketch.path() / "transformer" / "diffusion_pytorch_model.safetensors")
    if kind == "GGUF":
        file = write_gguf(folder / "stored.gguf", weights)
    else:
        file = folder / "stored.safetensors"
        save_file(four_bits(weights), file)
    return Ideogram4Pipeline.from_single_file(file, config=sketch.path())


@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4", "GGUF"])
@pytest.mark.parametrize("owner", ["pipeline", "transformer"])
def test_nothing_is_merged_into_weights_in_few_bits(tmp_path, kind, owner):
    """Neither the layers in few bits nor the others, and the adapter acts as before."""
    pipe = in_few_bits(kind, tmp_path)
    pipe.load_lora_weights(spelled(original(), "diffusion_model."))
    one = pipe if owner == "pipeline" else pipe.transformer
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    with pytest.raises(ValueError, match=r"`fuse_lora` changes weights.*few bits.*act as they are"):
        one.fuse_lora()
    after = pipe.transformer.state_dict()
    assert all(torch.equal(bits(after[name]), bits(tensor)) for name, tensor in before.items())
    assert not any(getattr(part, "merged_adapters", None) for part in pipe.transformer.modules())
    if owner == "pipeline":
        assert not pipe.fused_loras


@pytest.mark.parametrize("owner", ["pipeline", "transformer"])
def test_what_was_merged_before_quantizing_is_not_taken_out_after_it(owner):
    pipe = sketch.load()
    pipe.load_lora_weights(spelled(original(), "diffusion_model."))
    pipe.fuse_lora()
    pipe.quantize("int8")
    with pytest.raises(ValueError, match=r"`unfuse_lora` changes weights.*int8"):
        (pipe if owner == "pipeline" else pipe.transformer).unfuse_lora()
    assert all(part.merged_adapters for part in pipe.transformer.modules() if hasattr(part, "merged_adapters"))


@pytest.mark.parametrize("method", ["fuse_lora", "unfuse_lora", "load_lora_weights", "save_lora_weights"])
def test_signatures_are_those_of_the_peer(method):
    """Ours may take more by name."""
    for ours, theirs in (
        (Ideogram4Pipeline, diffusers.Ideogram4Pipeline),
        (Ideogram4Transformer2DModel, diffusers.Ideogram4Transformer2DModel),
    ):
        if not hasattr(theirs, method):
            continue
        found, expected = (
            [(p.name, p.kind, p.default) for p in inspect.signature(getattr(one, method)).parameters.values()]
            for one in (ours, theirs)
        )
        assert [one for one in found if one[1] != inspect.Parameter.KEYWORD_ONLY][: len(expected)] == expected


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
    pipe.load_lora_weights(apart_file := FORMS["diffusers"](original(alpha=None))[0])
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


# Where the file is


def test_a_folder_is_searched_for_the_usual_name(tmp_path, ours):
    write(tmp_path, "comfy", original(), "other.safetensors")
    ours.load_lora_weights(tmp_path)
    ours.unload_lora_weights()
    write(tmp_path, "comfy", original(), "third.safetensors")
    with pytest.raises(CheckpointError, match=r"holds other.safetensors, third.safetensors: give the path of one"):
        ours.load_lora_weights(tmp_path)
    write(tmp_path, "diffusers", original(), "pytorch_lora_weights.safetensors")
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
    "diffusion_model.layers.0.attention.qkv.lokr_t2": "LoKr or LoHa of a convolution",
    "diffusion_model.double_blocks.0.qkv.lokr_w1": "LoKr or LoHa of a layer that the model has not",
    "diffusion_model.double_blocks.0.qkv.hada_w1_a": "LoKr or LoHa of a layer that the model has not",
    "diffusion_model.layers.0.attention_norm1.diff": "whole weights or differences",
    "diffusion_model.double_blocks.0.qkv.dora_scale": "DoRA of a layer that the model has not",
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
def test_a_broken_file_is_refused_with_the_tensors_name(tmp_path, untouched, change, ignore):
    pipe, before = untouched
    tensors = spelled(original(), "diffusion_model.")
    named = broken(change, tensors)
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError) as error:
        pipe.load_lora_weights(tmp_path / "broken.safetensors", ignore_unknown=ignore)
    assert named in str(error.value) and str(tmp_path / "broken.safetensors") in str(error.value)
    assert not hasattr(pipe.transformer, "peft_config")
    assert torch.equal(latents(pipe), before)


@pytest.mark.parametrize("header", ["no json", "[1]", '{"transformer.r": "many"}', '{"transformer.r": 0}', "{}"])
def test_a_header_that_makes_no_sense_is_named(tmp_path, header):
    save_file(peer_tensors(), tmp_path / "a.safetensors", {HEADER: header})
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        read_lora(tmp_path / "a.safetensors")


def test_settings_that_peft_does_not_know_are_refused_by_name(tmp_path, untouched):
    """As diffusers does; those that say nothing, as newer versions of peft write them, are let pass."""
    pipe, before = untouched
    tensors, header = FORMS["diffusers"](original())
    told = {**json.loads(header[HEADER]), "transformer.of_next_year": None}
    save_file(tensors, tmp_path / "b.safetensors", {HEADER: json.dumps({**told, "transformer.twist": 2})})
    for error in (CheckpointError, TypeError):
        with pytest.raises(error, match=r"b\.safetensors.*twist.*`LoraConfig` class could not be instantiated"):
            pipe.load_lora_weights(tmp_path / "b.safetensors")
    assert torch.equal(latents(pipe), before)
    fresh = sketch.load()
    save_file(tensors, tmp_path / "a.safetensors", {HEADER: json.dumps(told)})
    fresh.load_lora_weights(tmp_path / "a.safetensors")


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
