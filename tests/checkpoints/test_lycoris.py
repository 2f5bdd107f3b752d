"""LoKr, LoHa, `dora_scale` and strengths of the header alone: what is loaded is the formula, or one clear error."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoHaConfig, LoKrConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor

from ideoflow import sketch
from ideoflow.checkpoints import CheckpointError
from ideoflow.checkpoints.lora import read_lora
from ideoflow.checkpoints.lora_convert import convert_lora
from ideoflow.checkpoints.lora_strength import HEADER
from ideoflow.checkpoints.lycoris import Factored
from ideoflow.ops.factored import FactoredLinear, Kronecker

from .lora_files import CONFIG, HIDDEN, WIDE, Tensors, apart, original, spelled
from .test_lora import latents, relative

ADALN = CONFIG["adaln_dim"]
QKV = "diffusion_model.layers.0.attention.qkv"


@pytest.fixture
def pipe(ours: Any) -> Any:
    return ours


@pytest.fixture(scope="module")
def bare(loaded: Any) -> Tensor:
    return latents(loaded)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) / shape[-1] ** 0.5


def lokr(out: int, width: int, a: int, b: int, ranks: str, rank: int = 3) -> Tensors:
    """Factors (a, b) and (out / a, width / b), those named in `ranks` as products of that rank."""
    found: Tensors = {}
    for side, (rows, columns) in (("w1", (a, b)), ("w2", (out // a, width // b))):
        if side in ranks:
            found[f"lokr_{side}_a"], found[f"lokr_{side}_b"] = draw(rows, rank), draw(rank, columns, seed=1)
        else:
            found[f"lokr_{side}"] = draw(rows, columns)
    return found


def loha(out: int, width: int, rank: int = 3) -> Tensors:
    return {
        "hada_w1_a": draw(out, rank),
        "hada_w1_b": draw(rank, width, seed=1),
        "hada_w2_a": draw(out, rank, seed=2),
        "hada_w2_b": draw(rank, width, seed=3),
    }


def delta(parts: Tensors, alpha: float | None) -> Tensor:
    """The formula in float64: (w1 kron w2) or (w1 * w2), times alpha over the rank where something has a rank."""
    d = {name: tensor.double() for name, tensor in parts.items()}
    if "hada_w1_a" in d:
        scale = 1 if alpha is None else alpha / len(d["hada_w1_b"])
        return (d["hada_w1_a"] @ d["hada_w1_b"]) * (d["hada_w2_a"] @ d["hada_w2_b"]) * scale
    w1, w2 = (d[f"lokr_{s}"] if f"lokr_{s}" in d else d[f"lokr_{s}_a"] @ d[f"lokr_{s}_b"] for s in ("w1", "w2"))
    ranked = [len(d[f"lokr_{s}_b"]) for s in ("w1", "w2") if f"lokr_{s}_b" in d]
    return torch.kron(w1, w2) * (1 if alpha is None or not ranked else alpha / ranked[0])


def named(layer: str, parts: Tensors, alpha: float | None, prefix: str = "diffusion_model.") -> Tensors:
    name = f"{prefix}{layer}"
    more = {} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}
    return {f"{name}.{part}": tensor for part, tensor in parts.items()} | more


# Layers, their factors, and which of the model's layers they are for.
Q3, SIDE = 3 * HIDDEN, [f"attention.{one}" for one in ("to_q", "to_k", "to_v")]
CASES: dict[str, tuple[str, Tensors, list[str]]] = {
    "LoKr, both whole": ("feed_forward.w2", lokr(HIDDEN, WIDE, 8, 16, ""), ["feed_forward.w2"]),
    "LoKr, right in two": ("attention.o", lokr(HIDDEN, HIDDEN, 4, 8, "w2"), ["attention.to_out.0"]),
    "LoKr, left in two": ("feed_forward.w1", lokr(WIDE, HIDDEN, 16, 16, "w1"), ["feed_forward.w1"]),
    "LoKr, both in two": ("adaln_modulation", lokr(4 * HIDDEN, ADALN, 32, 4, "w1 w2"), ["adaln_modulation"]),
    "LoKr of qkv, cut between blocks": ("attention.qkv", lokr(Q3, HIDDEN, 12, 4, "w2"), SIDE),
    "LoKr of qkv, cut inside blocks": ("attention.qkv", lokr(Q3, HIDDEN, 8, 8, "w2"), SIDE),
    "LoKr of qkv, left in two": ("attention.qkv", lokr(Q3, HIDDEN, 64, 8, "w1 w2"), SIDE),
    "LoHa": ("feed_forward.w3", loha(WIDE, HIDDEN), ["feed_forward.w3"]),
    "LoHa of qkv": ("attention.qkv", loha(Q3, HIDDEN), SIDE),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_what_is_loaded_is_the_formula_in_float64(pipe, case, alpha):
    layer, parts, goals = CASES[case]
    pipe.load_lora_weights(named(f"layers.0.{layer}", parts, alpha), adapter_name="a")
    for goal, expected in zip(goals, delta(parts, alpha).chunk(len(goals)), strict=True):
        found = pipe.transformer.get_submodule(f"layers.0.{goal}")
        assert isinstance(found, FactoredLinear)
        bound = 1e-6 * expected.abs().max()
        assert (found.get_delta_weight("a") - expected).abs().max() <= bound
        x = draw(5, expected.shape[1], seed=9)
        change = found(x).double() - found.base_layer(x).double()
        assert (change - x.double() @ expected.T).abs().max() <= 1e-5 * (x.double() @ expected.T).abs().max()


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", "", "model.diffusion_model.", "lycoris_"])
def test_names_of_every_program_are_known(prefix):
    parts = lokr(Q3, HIDDEN, 8, 8, "w2")
    layer = "layers.0.attention.qkv"
    found = read_lora(named(layer.replace(".", "_") if prefix.endswith("_") else layer, parts, 2.0, prefix))
    assert sorted(found.factored) == [f"layers.0.attention.{one}" for one in ("to_k", "to_q", "to_v")]
    assert {one.scale for one in found.factored.values()} == {2 / 3} and found.kinds == {"LoKr"} and not found.layers


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_rows_of_a_kronecker_product(data):
    a, b, c, d, rank = (data.draw(st.integers(1, 6)) for _ in range(5))
    start = data.draw(st.integers(0, a * c - 1))
    stop = data.draw(st.integers(start + 1, a * c))
    left = (draw(a, rank), draw(rank, b)) if data.draw(st.booleans()) else (draw(a, b),)
    right = (draw(c, rank), draw(rank, d)) if data.draw(st.booleans()) else (draw(c, d),)
    part = Factored("LoKr", left, right).part(start, stop)
    assert len(part.left[0]) <= (stop - start - 1) // c + 2  # no more than is needed
    expected = Kronecker(left, right).delta(torch.float64)[start:stop]
    factors = part.factors()
    assert torch.allclose(factors.delta(torch.float64), expected, atol=1e-12)
    x = draw(2, 3, b * d)
    assert torch.allclose(factors(x).double(), x.double() @ expected.T, atol=1e-5)


@pytest.mark.parametrize(
    "config", [LoKrConfig(r=4, alpha=3, decompose_both=True), LoKrConfig(r=64, alpha=32), LoHaConfig(r=4, alpha=6)]
)
def test_what_peft_saves_acts_as_in_peft(tmp_path, pipe, config):
    model = sketch.load().transformer
    config.target_modules, config.init_weights = ["layers.0.feed_forward.w1", "layers.1.attention.to_v"], False
    inject_adapter_in_model(config, model, "default")
    state = {f"base_model.model.{name}": tensor for name, tensor in get_peft_model_state_dict(model).items()}
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in state.items()}, tmp_path / "adapter_model.safetensors"
    )
    config.save_pretrained(tmp_path)
    pipe.load_lora_weights(tmp_path, adapter_name="a")
    for name in config.target_modules:
        theirs = model.get_submodule(name).get_delta_weight("default").detach()
        ours = pipe.transformer.get_submodule(name).get_delta_weight("a")
        assert theirs.abs().max() > 0 and relative(ours, theirs) <= 1e-6


# Together with everything else that adapters do


def whole_file(alpha: float | None = 1.5) -> tuple[Tensors, dict[str, Tensor]]:
    """Adapters of several kinds on several layers, and the changes of the model's weights."""
    tensors, changes = {}, {}
    for number, case in enumerate(CASES):
        layer, parts, goals = CASES[case]
        number %= CONFIG["num_layers"]
        tensors |= named(f"layers.{number}.{layer}", parts, alpha)
        for goal, change in zip(goals, delta(parts, alpha).chunk(len(goals)), strict=True):
            changes[f"layers.{number}.{goal}.weight"] = change
    return tensors, changes


def changed(*weighed: tuple[float, dict[str, Tensor]]) -> Any:
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    state = {name: tensor.double() for name, tensor in pipe.transformer.state_dict().items()}
    for weight, changes in weighed:
        for name, change in changes.items():
            state[name] = state[name] + weight * change
    pipe.transformer.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return pipe


def test_pictures_are_those_of_the_sum(pipe, bare):
    tensors, changes = whole_file()
    pipe.load_lora_weights(tensors, adapter_name="one")
    drawn = latents(pipe)
    assert relative(drawn, latents(changed((1.0, changes)))) <= 2e-5 < 1e-2 < relative(drawn, bare)
    pipe.set_adapters("one", 0.4)
    weaker = latents(changed((0.4, changes)))
    assert relative(latents(pipe), weaker) <= 2e-5
    pipe.fuse_lora()
    assert relative(latents(pipe), weaker) <= 1e-4
    pipe.unload_lora_weights()
    assert relative(latents(pipe), weaker) <= 1e-4 and not hasattr(pipe.transformer, "peft_config")
    pipe.transformer.load_state_dict(sketch.load().transformer.state_dict())


@pytest.mark.parametrize("first", ["LoRA", "LoKr"])
def test_it_goes_with_lora_on_the_same_layers(pipe, bare, first):
    tensors, changes = whole_file()
    parts = original(seed=5, alpha=2.0)
    lora = {f"{n}.weight": (p.alpha / len(p.down)) * p.up.double() @ p.down.double() for n, p in apart(parts).items()}
    files = {"LoRA": spelled(parts, "diffusion_model."), "LoKr": tensors}
    for kind in (first, *(files.keys() - {first})):
        pipe.load_lora_weights(files[kind], adapter_name=kind)
        assert pipe.get_active_adapters() == [kind]  # as with two of LoRA
    pipe.set_adapters(["LoRA", "LoKr"], [0.5, 0.7])
    assert relative(latents(pipe), latents(changed((0.5, lora), (0.7, changes)))) <= 2e-5
    pipe.disable_lora()
    assert relative(latents(pipe), bare) <= 1e-6
    pipe.enable_lora()
    pipe.delete_adapters("LoRA")
    pipe.set_adapters("LoKr", 1.0)
    assert relative(latents(pipe), latents(changed((1.0, changes)))) <= 2e-5
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe), bare)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_it_acts_on_weights_in_few_bits(kind):
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(whole_file()[0])
    expected = latents(pipe)
    pipe.quantize(kind)
    before = latents(pipe)
    other = sketch.load()
    other.quantize(kind)
    other.load_lora_weights(whole_file()[0])
    assert relative(latents(other), before) <= 1e-5 and relative(before, expected) <= 0.2


def test_the_scale_of_a_call_and_half_precision(pipe):
    tensors, changes = whole_file()
    pipe.load_lora_weights(tensors)
    call = dict(height=96, width=112, num_inference_steps=2, guidance_schedule=(3.0, 2.0), output_type="latent")
    drawn = pipe("a heart", generator=torch.Generator().manual_seed(3), attention_kwargs={"scale": 0.5}, **call).images
    other = changed((0.5, changes))
    assert relative(drawn, other("a heart", generator=torch.Generator().manual_seed(3), **call).images) <= 2e-5
    half = sketch.load(torch.bfloat16)
    half.load_lora_weights(tensors)
    layers = [part for part in half.transformer.modules() if isinstance(part, FactoredLinear)]
    assert {scale for layer in layers for scale in layer.scaling.values()} == {
        0.5,
        1.0,
    }  # 1.5 over 3, and of whole ones
    for layer in layers:
        assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
        assert layer(draw(2, layer.in_features).bfloat16()).dtype == torch.bfloat16


def test_the_other_branch_loads_by_its_prefix(tmp_path):
    pipe = sketch.load()
    narrow = pipe.unconditional_transformer.hidden_size
    both = named("layers.0.attention.to_q", lokr(narrow, narrow, 4, 8, "w2"), 2.0, "unconditional_transformer.")
    both |= named("layers.0.attention.to_k", lokr(HIDDEN, HIDDEN, 4, 8, "w2"), 2.0, "transformer.")
    save_file({name: tensor.clone() for name, tensor in both.items()}, tmp_path / "both.safetensors")
    with pytest.raises(CheckpointError, match="unconditional transformer: call its own `load_lora_adapter`"):
        pipe.load_lora_weights(tmp_path / "both.safetensors")
    pipe.unconditional_transformer.load_lora_adapter(tmp_path / "both.safetensors", prefix="unconditional_transformer")
    names = [name for name, part in pipe.unconditional_transformer.named_modules() if isinstance(part, FactoredLinear)]
    assert names == ["layers.0.attention.to_q"]
    with pytest.raises(CheckpointError, match="no tensors whose names begin with 'other'"):
        pipe.transformer.load_lora_adapter(tmp_path / "both.safetensors", prefix="other")


# What is refused


def broken(change: str) -> tuple[Tensors, str]:
    tensors = named("layers.0.attention.qkv", lokr(Q3, HIDDEN, 8, 8, "w2"), 2.0)
    hadamard = named("layers.0.attention.o", loha(HIDDEN, HIDDEN), 2.0)
    o = "diffusion_model.layers.0.attention.o"
    if change == "no w1":
        return {n: t for n, t in tensors.items() if not n.endswith("w1")}, "lokr_w1 is not there"
    if change == "half of w2":
        return {n: t for n, t in tensors.items() if not n.endswith("w2_a")}, "lokr_w2_a is not there"
    if change == "both forms":
        return tensors | {f"{QKV}.lokr_w2": draw(96, 32)}, "keep it, or lokr_w2_a and lokr_w2_b"
    if change == "half of LoHa":
        return {n: t for n, t in hadamard.items() if not n.endswith("w2_b")}, "hada_w2_b is not there"
    if change == "ranks":
        return tensors | {f"{QKV}.lokr_w2_b": draw(4, 32)}, "they must be equal"
    if change == "two ranks and an alpha":
        both = lokr(Q3, HIDDEN, 8, 8, "w1 w2") | {"lokr_w1_a": draw(8, 2), "lokr_w1_b": draw(2, 8)}
        return named("layers.0.attention.qkv", both, 2.0), "says not which"
    if change == "another model":
        return named("layers.0.attention.qkv", lokr(Q3 * 2, HIDDEN, 8, 8, "w2"), 2.0), f"of shape [{Q3 * 2}, {HIDDEN}]"
    if change == "shapes of LoHa":
        return hadamard | {f"{o}.hada_w2_a": draw(HIDDEN + 1, 3)}, "different shapes"
    if change == "convolution":
        return tensors | {f"{QKV}.lokr_t2": draw(3, 3, 1, 1)}, "of a convolution"
    if change == "vector":
        return tensors | {f"{QKV}.lokr_w1": draw(8)}, "must be a matrix"
    if change == "not finite":
        return tensors | {f"{QKV}.lokr_w1": torch.full((8, 8), torch.inf)}, "not finite"
    if change == "with DoRA":
        return tensors | {f"{QKV}.dora_scale": draw(Q3, 1)}, "makes this LoKr with DoRA, which is not supported"
    if change == "with LoRA":
        return tensors | {f"{QKV}.lora_A.weight": draw(3, HIDDEN)}, "has no place in LoKr"
    assert change == "LoKr and LoHa"
    return tensors | {f"{QKV}.hada_w1_a": draw(Q3, 3)}, "has no place in LoKr"


CHANGES = ["no w1", "half of w2", "both forms", "half of LoHa", "ranks", "two ranks and an alpha", "another model"]
CHANGES += ["shapes of LoHa", "convolution", "vector", "not finite", "with DoRA", "with LoRA", "LoKr and LoHa"]


@pytest.mark.parametrize("change", CHANGES)
def test_broken_factors_are_named(pipe, change):
    tensors, message = broken(change)
    with pytest.raises(CheckpointError) as error:
        pipe.load_lora_weights(tensors)
    assert message in str(error.value) and "layers.0" in str(error.value) and "has no partner" not in str(error.value)
    assert not hasattr(pipe.transformer, "peft_config")


def test_what_cannot_be_done_with_it_is_said(tmp_path, pipe):
    tensors, _ = whole_file()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    for form in ("comfy-lora", "diffusers-lora"):
        with pytest.raises(CheckpointError, match=r"a\.safetensors holds LoHa and LoKr.*not converted"):
            convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", form)
    with pytest.raises(CheckpointError, match="cannot say: load it with"):
        type(pipe).lora_state_dict(tmp_path / "a.safetensors")
    pipe.load_lora_weights(tmp_path / "a.safetensors", adapter_name="a")
    with pytest.raises(CheckpointError, match="`hotswap` exchanges LoRA alone"):
        pipe.load_lora_weights(tmp_path / "a.safetensors", adapter_name="a", hotswap=True)
    with pytest.raises(ValueError, match="is LoKr or LoHa, which is not written"):
        pipe.transformer.save_lora_adapter(tmp_path / "saved", adapter_name="a")
    with pytest.raises(ValueError, match="in use"):
        pipe.load_lora_weights(tmp_path / "a.safetensors", adapter_name="a")
    with pytest.raises(CheckpointError, match=r"adapters on its layers \(a\)"):
        pipe.save_pretrained(tmp_path / "pipe")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors"]


# DoRA as trainers of the LyCORIS kind write it


def test_dora_scale_is_dora(pipe, bare):
    tensors = spelled(original(alpha=3.0), "diffusion_model.")
    magnitudes, columns = {}, {}
    for name in {name.rpartition(".lora_")[0] for name in tensors if ".lora_" in name}:
        rows = len(tensors[f"{name}.lora_B.weight"])
        strength = 1 + draw(rows).abs()
        magnitudes[f"{name}.lora_magnitude_vector"], columns[f"{name}.dora_scale"] = strength, strength[:, None]
    drawn = []
    for more in (magnitudes, columns):
        pipe.load_lora_weights({**tensors, **more})
        drawn.append(latents(pipe))
        pipe.unload_lora_weights()
    assert torch.equal(*drawn) and relative(drawn[0], bare) > 1e-2
    name = "diffusion_model.layers.0.attention.o"
    with pytest.raises(CheckpointError, match=r"DoRA with a magnitude for each input.*is not supported"):
        pipe.load_lora_weights({**tensors, **columns, f"{name}.dora_scale": draw(1, HIDDEN)})


# Strengths that stand in the header alone


@pytest.mark.parametrize(
    "header",
    [{"lora_alpha": "3"}, {"transformer.lora_alpha": "3.0", "transformer.r": "4"}, {"network_alpha": "3", "rank": "4"}],
)
def test_a_strength_of_the_header_alone_is_honoured(tmp_path, header):
    tensors = {k: t for k, t in spelled(original(), "diffusion_model.", alpha=False).items() if ".attention.o." in k}
    save_file(tensors, tmp_path / "a.safetensors", header)
    read = read_lora(tmp_path / "a.safetensors")
    assert {float(adapter.scale) for adapter in read.layers.values()} == {0.75}
    for form in ("diffusers-lora", "comfy-lora"):
        convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", form, overwrite=True)
        again = read_lora(tmp_path / "b.safetensors")
        assert {float(adapter.scale) for adapter in again.layers.values()} == {0.75}
    factors = named("layers.0.attention.o", lokr(HIDDEN, HIDDEN, 4, 8, "w2", rank=4), None)
    save_file(factors, tmp_path / "c.safetensors", header)
    assert {one.scale for one in read_lora(tmp_path / "c.safetensors").factored.values()} == {0.75}


def test_tensors_win_over_the_header_and_contradictions_are_named(tmp_path):
    tensors = {k: t for k, t in spelled(original(alpha=2.0), "diffusion_model.").items() if ".attention.o." in k}
    file = tmp_path / "a.safetensors"
    save_file(tensors, file, {"lora_alpha": "8"})
    assert {float(adapter.scale) for adapter in read_lora(file).layers.values()} == {0.5}
    bare = {name: tensor for name, tensor in tensors.items() if not name.endswith("alpha")}
    for header, message in (
        ({"lora_alpha": "8", "r": "16"}, "rank 4.*for rank 16: they do not belong together"),
        ({"lora_alpha": "8", "network_alpha": "16"}, "lora_alpha=8, network_alpha=16"),
        ({"lora_alpha": "many\x1b[2J"}, r"cannot be read: lora_alpha=many\\x1b\[2J"),
        ({"lora_alpha": "nan"}, "cannot be read"),
    ):
        save_file(bare, file, header)
        with pytest.raises(CheckpointError, match=message):
            read_lora(file)
    settings = {"transformer.r": 4, "transformer.lora_alpha": 2}
    save_file(bare, file, {"lora_alpha": "8", HEADER: json.dumps(settings)})
    assert {float(adapter.scale) for adapter in read_lora(file).layers.values()} == {0.5}
